"""A headless Chromium, spoken to by the WebDriver protocol (w3.org/TR/webdriver2) with the standard library.

Debian's packages chromium and chromium-driver bring both programs.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from instant_env.requirements import BROWSER, find_program

#: A cold start on a busy machine.
_TIMEOUT_S = 120


class Browser:
    """One window of one session of chromedriver."""

    def __init__(self, url: str) -> None:
        self._url = url
        arguments = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium has no sandbox for root
        options = {"binary": find_program("chromium"), "args": arguments}
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        answer = self._post("/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{answer['sessionId']}"

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - chromedriver on loopback
            self._url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return json.load(answer)["value"]

    def _post(self, path: str, body: object) -> Any:
        return self._call("POST", path, body)

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol, for what WebDriver has not: devices and preferences."""
        return self._post(f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, page: Path | str, width: int, *, dark: bool = False, height: int = 800) -> None:
        """Open a file, or an address, as a device of that width sees it."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])
        self._post(f"{self._session}/url", {"url": page if isinstance(page, str) else page.as_uri()})

    def run(self, script: str) -> Any:
        """What a piece of JavaScript returns."""
        return self._post(f"{self._session}/execute/sync", {"script": script, "args": []})

    def console(self) -> list[dict[str, Any]]:
        """What the page made Chromium say: errors of scripts and of loading, breaches of its policy."""
        entries: list[dict[str, Any]] = self._post(f"{self._session}/se/log", {"type": "browser"})
        return entries

    def screenshot(self, path: Path) -> None:
        """The whole page, as long as it is."""
        picture = self.cdp("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call("DELETE", self._session)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser with a profile of its own; a test without one is skipped, but in CI it fails."""
    if BROWSER.where() is None:
        message = "no Chromium: make setup installs it on Debian, `invoke doctor` says how"
        if os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    with tempfile.TemporaryDirectory() as home:
        driver = subprocess.Popen(
            [find_program("chromedriver") or "chromedriver", "--port=0"],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "HOME": home},
        )  # fmt: skip
        try:
            assert driver.stdout is not None
            for line in driver.stdout:
                if match := re.search(r"started successfully on port (\d+)", line):
                    break
            else:
                pytest.fail("chromedriver did not start")
            with Browser(f"http://127.0.0.1:{match[1]}") as browser:
                yield browser
        finally:
            driver.terminate()
            driver.wait(30)

"""A client of the HTTP service, of one on this host or elsewhere."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from instant_env.errors import InstantEnvError, UsageError
from instant_env.foreign import read_text
from instant_env.service.web.listener import is_loopback
from instant_env.settings import Settings

#: What `invoke serve` writes in its state directory, readable by its user alone.
URL_FILE, TOKEN_FILE = "url", "token"

_CONNECT_S = 10
#: A /wait takes up to a minute.
_ANSWER_S = 90
#: A request that can be repeated is sent this often in all.
_ATTEMPTS = 4
#: The longest that a client waits between two of them without saying so.
_LONGEST_PAUSE_S = 10.0
#: A stream that was open for this long was a good one, events or not.
_LASTING_S = 5.0
_RETRIED = frozenset({502, 503, 504})


class ServiceError(InstantEnvError):
    """The service refused a request, or does not answer. ``code`` is a problem's, or empty."""

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.exit_code = _EXIT_CODES.get(code, 1)


#: Wrong requests are the caller's (2); what the cloud did not do is the cloud's (4).
_EXIT_CODES = {
    "invalid-request": 2, "invalid-key": 2, "unsupported-technique": 2, "ttl-out-of-range": 2,
    "not-found": 2, "capacity": 4, "pool-empty": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a service is, and the token for it."""

    url: str
    token: str

    @property
    def is_here(self) -> bool:
        return is_loopback(urlsplit(self.url).hostname or "")


def locate(settings: Settings, url: str = "") -> Place:
    """The service of the flag or the settings, or the one that runs here. Raises UsageError.

    A token of this host's service is sent to that service only, whatever URL is asked for.
    """
    here = _read(settings.service_dir / URL_FILE)
    chosen = (url or settings.service_url or here).rstrip("/")
    if not chosen:
        raise UsageError(
            "no service runs here", hint="start one: invoke serve; or name one: --url https://HOST"
        )
    parts = urlsplit(chosen)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.path.strip("/"):
        raise UsageError(
            f"--url {chosen} is not the address of a service", hint="for example: https://HOST:8443"
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(f"{chosen} would carry the token in the clear", hint="use https://")
    token = settings.service_token or (_read(settings.service_dir / TOKEN_FILE) if chosen == here else "")
    if not token:
        raise UsageError(f"no token for {chosen}", hint="put one in INSTANT_ENV_SERVICE_TOKEN")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("the token has characters that no token has", hint="copy it again")
    return Place(chosen, token)


def _read(path: Path) -> str:
    return read_text(path).strip() if path.is_file() else ""


class ServiceClient:
    """Requests as values: answers are the JSON of docs/service.md, refusals are ServiceError."""

    def __init__(self, place: Place, *, sleep: Callable[[float], None] = time.sleep, **options: Any) -> None:
        self.place = place
        self._sleep = sleep
        self._http = httpx2.Client(
            base_url=place.url,
            headers={"Authorization": f"Bearer {place.token}", "User-Agent": "instant-env"},
            timeout=httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S),
            # No proxy is between us and this host, whatever the environment says of the world outside.
            trust_env=not place.is_here,
            **options,
        )

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def take(self, ask: Mapping[str, Any], *, wait_s: float = 0) -> dict[str, Any]:
        """A new lease. Its idempotency key is made here, once: a lost answer is asked for again with it."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        if wait_s:
            headers["Prefer"] = f"wait={wait_s:.0f}"
        return self.request("POST", "/v1/instances", json=dict(ask), headers=headers)

    def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The answer's JSON. Raises ServiceError.

        Sent again when the connection fails or the service is not ready: everything here can be repeated,
        but what makes a token.
        """
        attempts = 1 if (method, path) == ("POST", "/v1/tokens") else _ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                answer = self._http.request(method, path, **options)
            except httpx2.ConnectError as error:
                # Nobody listens: on this host that is final.
                if attempt == attempts or self.place.is_here:
                    raise self._unreachable(error) from error
                self._sleep(_pause_s(None, attempt))
                continue
            except httpx2.HTTPError as error:
                if attempt == attempts:
                    raise self._unreachable(error) from error
                self._sleep(_pause_s(None, attempt))
                continue
            pause_s = _pause_s(answer, attempt)
            if answer.status_code in _RETRIED and attempt < attempts and pause_s <= _LONGEST_PAUSE_S:
                self._sleep(pause_s)
                continue
            return _content(answer, self.place)
        raise AssertionError("unreachable")

    def _unreachable(self, error: Exception | str) -> ServiceError:
        cause = str(error) or type(error).__name__
        hint = (
            "start it: invoke serve" if self.place.is_here else "is the address right, and the network there?"
        )
        return ServiceError(f"no service answers at {self.place.url}: {cause}", hint=hint)

    def events(self, lease_id: str) -> Iterator[dict[str, Any]]:
        """A lease's events to the last one; after a broken connection it goes on behind the last seen.

        Raises ServiceError when several connections in a row bring nothing.
        """
        last = ""
        fruitless = 0
        while True:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
            fruitless += 1
            opened = time.monotonic()
            cause: Exception | None = None
            try:
                with self._http.stream("GET", f"/v1/instances/{lease_id}/events", headers=headers) as answer:
                    if answer.status_code == 204:
                        return
                    if answer.status_code != 200:
                        answer.read()
                        _content(answer, self.place)
                    for event in parsed(answer.iter_lines()):
                        last, fruitless = str(event["sequence"]), 0
                        yield event
                        if event["kind"] in ("ended", "failed"):
                            return
            except httpx2.HTTPError as error:
                cause = error
            if time.monotonic() - opened > _LASTING_S:  # a proxy cuts what is silent for long
                fruitless = 0
            if fruitless >= _ATTEMPTS:
                raise self._unreachable(cause or "the stream of events ends at once")
            self._sleep(_pause_s(None, fruitless))


def parsed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The events of a stream (HTML, section 9.2.6) that have an id; comments and farewells do not."""
    data: list[str] = []
    has_id = False
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
            has_id = has_id or name == "id"
            continue
        if data and has_id:
            yield json.loads("\n".join(data))
        data, has_id = [], False


def _pause_s(answer: httpx2.Response | None, attempt: int) -> float:
    text = "" if answer is None else str(answer.headers.get("retry-after", ""))
    return float(text) if text.isdigit() else min(_LONGEST_PAUSE_S, 0.25 * float(2**attempt))


def _content(answer: httpx2.Response, place: Place) -> dict[str, Any]:
    """The answer's JSON. Raises ServiceError with a problem's own words."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ServiceError(
            f"{place.url} answered {answer.status_code}, and not as this service does",
            hint="is --url the address of an instant-env service, or is a proxy in between?",
        )
    if answer.is_success:
        return content
    detail = str(content.get("detail") or content.get("title") or answer.status_code)
    hint = str(content.get("hint") or "")
    code = str(content.get("code", ""))
    if code == "unauthorized":
        hint = "is the token in INSTANT_ENV_SERVICE_TOKEN this service's, and not revoked?"
    elif content.get("retry_after_s") and not hint:
        hint = f"try again in {content['retry_after_s']:.0f} s"
    raise ServiceError(f"{code}: {detail}" if code else detail, hint=hint, code=code)

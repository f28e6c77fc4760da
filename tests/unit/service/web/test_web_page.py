"""The page, in a headless Chromium over the fake: a machine is taken, becomes ready, and expires."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Browser, open_browser
from support.patience import until
from support.service.served import KEY, Served, serving

from instant_env.service.records import Scope
from instant_env.service_settings import ServiceSettings

#: With a directory here, pictures stay for somebody to look at.
_PICTURES = os.environ.get("PAGE_PICTURES", "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def fast() -> Iterator[Served]:
    """A lease's minute is six seconds."""
    with serving(ServiceSettings(ttl_s=60, min_ttl_s=30), speed=10) as service:
        yield service


def picture(browser: Browser, name: str) -> None:
    if _PICTURES:
        browser.screenshot(Path(_PICTURES) / f"{name}.png")


def state(browser: Browser) -> str:
    text: str = browser.run("return document.querySelector('.lease')?.dataset.state || ''")
    return text


def open_page(browser: Browser, service: Served, width: int, *, dark: bool = False) -> None:
    browser.look("about:blank", width, dark=dark)
    browser.console()  # the page of the test before has lost its service, and says so
    browser.look(f"{service.url}/#token={service.fake.admin_secret}", width, dark=dark)
    until(lambda: browser.run("return document.querySelector('#pools table') !== null"))


@pytest.mark.slow
def test_a_machine_is_taken_becomes_ready_is_extended_and_expires(browser: Browser, fast: Served) -> None:
    fast.call(lambda: setattr(fast.fake, "hold", asyncio.Event()))
    open_page(browser, fast, 1280)
    assert browser.run("return location.hash") == ""  # the token is not in the history
    assert browser.run("return sessionStorage.getItem('token')") == fast.fake.admin_secret
    browser.run(
        f"document.getElementById('key').value = '{KEY}';"
        "document.getElementById('technique').value = 'cold';"
        "document.querySelector('#take button').click()"
    )
    until(lambda: state(browser) == "provisioning")
    width = "return Number(document.querySelector('svg.growing .open').getAttribute('width'))"
    until(lambda: browser.run(width) > 0)  # the bar grows by itself
    first = browser.run(width)
    until(lambda: browser.run(width) != first)
    picture(browser, "provisioning-1280")
    assert fast.fake.hold is not None
    fast.call(fast.fake.hold.set)
    until(lambda: state(browser) == "ready")
    left = browser.run("return document.querySelector('time[data-expires]').textContent")
    assert re.fullmatch(r"\d+(:\d\d)? (s|min)", left)
    assert "ssh -p 2222 root@127.0.0.1" in browser.run(
        "return document.querySelector('.command').textContent"
    )
    before = browser.run("return document.querySelector('time[data-expires]').dataset.expires")
    browser.run("document.querySelector('[data-action=extend]').click()")
    until(lambda: browser.run("return document.querySelector('time[data-expires]').dataset.expires") > before)
    picture(browser, "ready-1280")
    with fast.client() as client:  # a quarter of an hour more would take the test a minute and a half
        lease = client.get("/v1/instances").json()["leases"][0]
        client.post(f"/v1/instances/{lease['id']}/ttl", json={"ttl_seconds": 30, "shorten": True})
    until(lambda: browser.run("return document.querySelector('#over .lease')?.dataset.state") == "ended")
    assert "its time was over" in browser.run("return document.querySelector('#over').textContent")
    assert not [line for line in browser.console() if line["level"] == "SEVERE"]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 320])
def test_the_page_fits_whatever_looks_at_it(browser: Browser, fast: Served, width: int, dark: bool) -> None:
    with fast.client() as client:
        for technique in ("warm-running", "cold"):
            ask = {"public_key": KEY, "technique": technique, "ttl_seconds": 3600}
            client.post("/v1/instances", json=ask, headers={"Prefer": "wait=60"})
        ended = client.post("/v1/instances", json={"public_key": KEY, "technique": "cold"}).json()
        client.delete(ended["url"])
    open_page(browser, fast, width, dark=dark)
    until(lambda: browser.run("return document.querySelectorAll('.lease[data-state=ready]').length") == 2)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    fields = "[...document.querySelectorAll('input, textarea, select')]"
    assert browser.run(f"return {fields}.filter(each => !each.labels.length).length") == 0
    buttons = "[...document.querySelectorAll('button')].filter(each => each.offsetHeight)"
    assert browser.run(f"return {buttons}.filter(each => each.offsetHeight < 28).length") == 0
    picture(browser, f"page-{width}-{'dark' if dark else 'light'}")
    assert not [line for line in browser.console() if line["level"] == "SEVERE"]


@pytest.mark.slow
def test_signing_in_with_a_wrong_token_and_ending_a_lease(browser: Browser, fast: Served) -> None:
    browser.look("about:blank", 400)
    browser.look(f"{fast.url}/", 400)
    browser.run("sessionStorage.clear(); location.reload()")
    until(lambda: browser.run("return !document.getElementById('sign-in').hidden"))
    picture(browser, "sign-in-400")
    sign_in = (
        "document.getElementById('token').value = '{}';document.querySelector('#sign-in button').click()"
    )
    browser.run(sign_in.format("ie_wrong"))
    problem = "return document.getElementById('problem').textContent"
    until(lambda: "does not know" in browser.run(problem))
    reader = fast.fake.add_token("reader", {Scope.READ})
    browser.run(sign_in.format(reader))
    until(lambda: browser.run("return document.querySelector('#pools table') !== null"))
    browser.run(f"document.getElementById('key').value='{KEY}'")
    browser.run("document.querySelector('#take button').click()")
    until(lambda: "scope lease" in browser.run(problem))
    open_page(browser, fast, 400)
    browser.run(
        f"document.getElementById('key').value='{KEY}'; document.getElementById('ttl').value='3600';"
        "document.querySelector('#take button').click()"
    )
    until(lambda: state(browser) == "ready")
    end = "document.querySelector('[data-action=end]').click()"
    browser.run(end)
    assert browser.run("return document.querySelector('[data-action=end]').textContent") == "End it now?"
    browser.run(end)
    until(lambda: state(browser) in ("ending", "ended"))


def test_the_page_tells_strangers_nothing_and_loads_nothing() -> None:
    with serving() as service, service.client("") as stranger:
        answer = stranger.get("/")
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert not re.search(r"(src|href)=\"(https?:)?//", answer.text)
        assert not re.search(r"\sstyle=|<script>|\son\w+=", answer.text)
        for path in re.findall(r'(?:src|href)="(/page/[^"]+)"', answer.text):
            kept = stranger.get(path)
            assert kept.status_code == 200
            assert "immutable" in kept.headers["cache-control"]
        assert stranger.get("/page/board").status_code == 401
        assert stranger.get("/page/../app.py").status_code == 404
        assert stranger.get("/page/view.py").status_code == 404


def test_texts_of_strangers_are_escaped_on_the_board() -> None:
    with serving(speed=100) as service, service.client() as client:
        lease = client.post("/v1/instances", json={"public_key": KEY, "technique": "cold"}).json()
        fail = service.fake.fail(lease["id"], "<img src=x onerror=alert(1)>")
        service.call(lambda: asyncio.ensure_future(fail))
        board = until(lambda: (html := client.get("/page/board").json()["sections"]["leases"]) and
                      "no machine came up" in html and html)  # fmt: skip
        assert "&lt;img" in str(board)
        assert "<img" not in str(board)

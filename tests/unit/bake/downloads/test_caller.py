"""How this computer's configuration becomes the proxy's upstreams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from instant_env.bake.downloads.caller import Ask, callers_upstreams
from instant_env.bake.downloads.caller import ask as really_ask
from instant_env.bake.downloads.upstreams import Address, Upstreams


def answers(**by_program: str) -> Ask:
    """Programs that are not named are not installed."""

    def ask(command: list[str]) -> str:
        return by_program.get(command[0].replace("-", "_"), "")

    return ask


NOTHING_INSTALLED = answers()


def upstreams(
    ask: Ask = NOTHING_INSTALLED, environment: Mapping[str, str] | None = None, debian: tuple[str, ...] = ()
) -> Upstreams:
    return callers_upstreams(
        environment=environment or {},
        ask=ask,
        is_debian=lambda uri, _: uri.startswith(debian) and bool(debian),
    )


def where(by: Upstreams, url: str) -> str:
    return by.resolve(Address.parse(url)).url


@pytest.fixture(autouse=True)
def no_mirror_of_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSTANT_ENV_DEBIAN_MIRROR", raising=False)
    monkeypatch.delenv("INSTANT_ENV_DEBIAN_SECURITY_MIRROR", raising=False)


def test_without_any_configuration_everything_is_where_its_name_says() -> None:
    by = upstreams()
    for url in ("https://static.rust-lang.org/x", "https://pypi.org/simple/a/", "https://other.example/"):
        assert where(by, url) == url
    # The name that Debian's images have resolves on EC2's own networks only.
    assert where(by, "https://cdn-aws.deb.debian.org/debian/a") == "http://deb.debian.org/debian/a"
    assert (
        where(by, "http://security.debian.org/debian-security/a") == "http://deb.debian.org/debian-security/a"
    )


APT_SOURCES = """\
bookworm https://packages.example/tools/
bookworm http://mirror.example/pub/debian/
bookworm-security http://mirror.example/pub/security/
bookworm-updates http://other.example/debian/
"""


def test_debians_packages_come_from_the_callers_mirror_of_the_suite() -> None:
    by = upstreams(answers(apt_get=APT_SOURCES), debian=("http://mirror.example/",))
    assert where(by, "https://cdn-aws.deb.debian.org/debian/a?b") == "http://mirror.example/pub/debian/a?b"
    assert where(by, "http://deb.debian.org/debian-security/a") == "http://mirror.example/pub/security/a"


def test_others_archives_of_a_suite_of_that_name_are_no_mirrors() -> None:
    by = upstreams(answers(apt_get=APT_SOURCES))
    assert where(by, "https://deb.debian.org/debian/a") == "http://deb.debian.org/debian/a"


def test_what_is_set_for_the_stock_images_comes_first() -> None:
    environment = {"INSTANT_ENV_DEBIAN_MIRROR": "http://set.example/debian"}
    by = upstreams(answers(apt_get=APT_SOURCES), environment, debian=("http://mirror.example/",))
    assert where(by, "https://deb.debian.org/debian/a") == "http://set.example/debian/a"
    assert where(by, "https://deb.debian.org/debian-security/a") == "http://mirror.example/pub/security/a"


@pytest.mark.parametrize(("value", "proxy"), [("http://cache.example:3142", "cache.example"), ("DIRECT", "")])
def test_apts_own_proxy_counts_for_its_packages_only(value: str, proxy: str) -> None:
    by = upstreams(answers(apt_config=value))
    by = Upstreams(by.routes, lambda _, __: "http://everybodys.example:8080")
    address = by.resolve(Address.parse("http://deb.debian.org/debian/a"))
    assert by.connect(address)[0].host == (proxy or "deb.debian.org")
    assert by.connect(by.resolve(Address.parse("http://other.example/a")))[0].host == "everybodys.example"


def test_registries_are_reached_by_the_callers_mirrors(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[source.crates-io]\nreplace-with = "near"\n[source.near]\nregistry = "sparse+https://crates.example/i/"\n'
    )
    by = upstreams(
        answers(npm="https://npm.example/all/", go="https://go.example|direct"),
        {
            "PIP_INDEX_URL": "https://me:secret@pip.example/simple",
            "RUSTUP_DIST_SERVER": "https://rust.example",
            "CARGO_HOME": str(tmp_path),
        },
    )
    assert where(by, "https://registry.npmjs.org/a") == "https://npm.example/all/a"
    assert where(by, "https://proxy.golang.org/a/@v/list") == "https://go.example/a/@v/list"
    assert where(by, "https://pypi.org/simple/a/") == "https://pip.example/simple/a/"
    assert where(by, "https://static.rust-lang.org/dist/a") == "https://rust.example/dist/a"
    assert where(by, "https://index.crates.io/config.json") == "https://crates.example/i/config.json"
    assert "secret" not in repr(by)


def test_what_is_no_mirror_is_left_alone() -> None:
    by = upstreams(
        answers(npm="https://registry.npmjs.org/", go="https://proxy.golang.org,direct"), {"GOPROXY": "off"}
    )
    assert where(by, "https://registry.npmjs.org/a") == "https://registry.npmjs.org/a"
    assert where(by, "https://proxy.golang.org/a") == "https://proxy.golang.org/a"


def test_a_program_that_fails_or_is_not_there_says_nothing() -> None:
    assert really_ask(["no-such-program-anywhere"]) == ""
    assert really_ask(["sh", "-c", "echo words; exit 1"]) == ""
    assert really_ask(["sh", "-c", "echo words"]) == "words"

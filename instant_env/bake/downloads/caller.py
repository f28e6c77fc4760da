"""How this computer reaches registries: what its own apt, pip, npm, Go, rustup and cargo are configured with.

Asked for when a bake begins, of the programs that there are. Nothing here has an address of a mirror.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from instant_env.bake.downloads.upstreams import Address, Route, Upstreams
from instant_env.debian.mirrors import SUITE, Mirrors

#: Names under which Debian's archive is known: they serve the same files. Its images for EC2 use cdn-aws.
DEBIAN_HOSTS = ("deb.debian.org", "cdn-aws.deb.debian.org", "security.debian.org", "ftp.debian.org")
#: What apt takes for "no proxy" (apt-transport-http(1)).
_NO_PROXY = "DIRECT"
_TIMEOUT_S = 20
#: A Release file has its Origin in the first lines.
_RELEASE_BYTES = 4096

#: The output of a command that only reads; empty when it fails or is not installed.
Ask = Callable[[list[str]], str]
#: Whether a URI has Debian's own archive of a suite: others use its suites' names for theirs.
IsDebian = Callable[[str, str], bool]


def ask(command: list[str]) -> str:
    """See Ask."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def is_debian(uri: str, suite: str) -> bool:
    """See IsDebian: by the Release file there."""
    address = Address.parse(f"{uri.rstrip('/')}/dists/{suite}/Release")
    connection, target, headers = Upstreams().connect(address)
    try:
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        return answer.status == 200 and b"Origin: Debian\n" in answer.read(_RELEASE_BYTES)
    except Exception:  # noqa: BLE001 - whatever keeps it from being one
        return False
    finally:
        connection.close()


def callers_upstreams(
    *, environment: Mapping[str, str] = os.environ, ask: Ask = ask, is_debian: IsDebian = is_debian
) -> Upstreams:
    """This computer's."""
    routes = [*_debian(environment, ask, is_debian), *_registries(environment, ask)]
    return Upstreams(tuple(routes))


def _debian(environment: Mapping[str, str], ask: Ask, is_debian: IsDebian) -> Iterator[Route]:
    """INSTANT_ENV_DEBIAN_MIRROR and INSTANT_ENV_DEBIAN_SECURITY_MIRROR, as for the stock images; then apt's
    sources of the suite; then deb.debian.org."""
    output = ask(["apt-get", "indextargets", "--no-release-info", "--format", "$(RELEASE) $(REPO_URI)"])
    sources = [pair for line in dict.fromkeys(output.splitlines()) if len(pair := line.split()) == 2]
    proxies = {}
    for scheme in ("http", "https"):
        if value := ask(["apt-config", "dump", "--format", "%v%n", f"Acquire::{scheme}::Proxy"]):
            proxies[scheme] = "" if value.upper() == _NO_PROXY else value
    default = Mirrors.from_environment()
    for path, suite, variable, fallback in (
        ("debian-security", f"{SUITE}-security", "INSTANT_ENV_DEBIAN_SECURITY_MIRROR", default.security),
        ("debian", SUITE, "INSTANT_ENV_DEBIAN_MIRROR", default.archive),
    ):
        mirror = environment.get(variable) or _mirror(sources, suite, is_debian) or fallback
        for host in DEBIAN_HOSTS:
            for scheme in ("http", "https"):
                yield Route(f"{scheme}://{host}/{path}/", mirror, proxies)


def _mirror(sources: list[list[str]], suite: str, is_debian: IsDebian) -> str | None:
    """The URI of the first source of ``suite`` that is Debian's."""
    for release, uri in sources:
        parts = urllib.parse.urlsplit(uri)
        if (
            release == suite
            and parts.scheme in ("http", "https")
            and (parts.hostname in DEBIAN_HOSTS or is_debian(uri, suite))
        ):
            return uri
    return None


def _registries(environment: Mapping[str, str], ask: Ask) -> Iterator[Route]:
    """Those for which this computer has a mirror."""
    index = environment.get("PIP_INDEX_URL") or ask(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    )
    candidates = [
        ("https://pypi.org/simple/", index),
        ("https://registry.npmjs.org/", ask(["npm", "config", "get", "registry"])),
        (
            "https://proxy.golang.org/",
            _first_url(environment.get("GOPROXY") or ask(["go", "env", "GOPROXY"])),
        ),
        ("https://static.rust-lang.org/rustup/", environment.get("RUSTUP_UPDATE_ROOT", "")),
        ("https://static.rust-lang.org/", environment.get("RUSTUP_DIST_SERVER", "")),
        ("https://index.crates.io/", _cargo_index(environment)),
    ]
    for beginning, mirror in candidates:
        if mirror.startswith(("http://", "https://")) and not f"{mirror.rstrip('/')}/".startswith(beginning):
            yield Route(beginning, mirror)


def _first_url(goproxy: str) -> str:
    """GOPROXY is a list, by commas and bars, in which ``direct`` and ``off`` are words (go help goproxy)."""
    words = goproxy.replace("|", ",").split(",")
    return next((word.strip() for word in words if word.strip().startswith("http")), "")


def _cargo_index(environment: Mapping[str, str]) -> str:
    """What replaces crates.io in cargo's configuration, if that is a sparse registry (The Cargo Book, source
    replacement)."""
    home = Path(environment.get("CARGO_HOME") or Path(environment.get("HOME", "/")) / ".cargo")
    for name in ("config.toml", "config"):
        try:
            sources = tomllib.loads((home / name).read_text(encoding="utf-8")).get("source", {})
            replacement = sources.get("crates-io", {}).get("replace-with", "")
            registry = str(sources.get(replacement, {}).get("registry", ""))
        except (OSError, UnicodeError, tomllib.TOMLDecodeError, AttributeError):
            continue
        if registry.startswith("sparse+"):
            return registry.removeprefix("sparse+")
    return ""

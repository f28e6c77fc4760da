"""What recipes make of an image's package sources, by apt itself."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instant_env.bake.recipe import environment
from instant_env.settings import ROOT

#: As Debian's images for EC2 have them.
CLOUD_SOURCES = """Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates bookworm-backports
Components: main

Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian-security.list
Suites: bookworm-security
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://backports.example/debian
Suites: bookworm-backports
Components: main
"""
MIRRORS = {"debian": "debian", "debian-security": "debian-security"}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The part of an image that holds apt's sources, and what stands for /run/instant-bake."""
    etc = tmp_path / "etc-apt"
    (etc / "sources.list.d").mkdir(parents=True)
    (etc / "mirrors").mkdir()
    (etc / "sources.list.d/debian.sources").write_text(CLOUD_SOURCES.replace("/etc/apt", str(etc)))
    for name, path in MIRRORS.items():
        text = f"# the nearest\nhttps://cdn-aws.deb.debian.org/{path}\n"
        (etc / f"mirrors/{name}.list").write_text(text)
    (etc / "sources.list").write_text(
        "deb [trusted=yes] http://one.example/debian bookworm main\n"
        "deb http://one.example/debian bookworm-backports main\n"
        "deb-src http://one.example/debian bookworm main\n"
    )
    return tmp_path


def run(image: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The template, and a command behind it."""
    text = environment(ROOT / "recipes/minimal").get_template("shared/apt.sh.j2").render()
    for there, here in (
        ("/etc/apt", "etc-apt"),
        ("/run/instant-bake", "run"),
        ("/usr/sbin/policy-rc.d", "policy-rc.d"),
    ):
        text = text.replace(there, str(image / here))
    state = f"""
cat >>"$APT_CONFIG" <<APT
Dir::State "{image}/state";
Dir::State::status "/dev/null";
Dir::Cache "{image}/cache";
APT::Sandbox::User "root";
Acquire::Retries "0";
APT
mkdir -p {image}/state/lists/partial {image}/cache/archives/partial
"""
    return subprocess.run(
        ["sh", "-euc", text + state + command],
        env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


TARGETS = """apt-get indextargets --no-release-info --format '$(CREATED_BY) $(REPO_URI) $(RELEASE)' |
    grep -E '^(Packages|Sources|Translations) ' | sort"""


def test_only_the_packages_of_a_release_and_its_updates_are_fetched(image: Path) -> None:
    result = run(image, TARGETS)
    assert result.returncode == 0, result.stderr
    assert {tuple(line.split()) for line in result.stdout.splitlines()} == {
        ("Packages", "http://one.example/debian/", "bookworm"),
        ("Packages", "https://cdn-aws.deb.debian.org/debian/", "bookworm"),
        ("Packages", "https://cdn-aws.deb.debian.org/debian/", "bookworm-updates"),
        ("Packages", "https://cdn-aws.deb.debian.org/debian-security/", "bookworm-security"),
    }


def test_what_https_names_comes_by_way_of_the_caller(image: Path) -> None:
    result = run(image, TARGETS, INSTANT_ENV_DOWNLOADS="http://127.0.0.1:4711")
    assert {line.split()[1] for line in result.stdout.splitlines()} == {
        "http://one.example/debian/",
        "http://127.0.0.1:4711/cdn-aws.deb.debian.org/debian/",
        "http://127.0.0.1:4711/cdn-aws.deb.debian.org/debian-security/",
    }


def test_the_images_own_sources_stay_as_they_are(image: Path) -> None:
    files = sorted(path for path in (image / "etc-apt").rglob("*") if path.is_file())
    before = [path.read_bytes() for path in files]
    run(image, TARGETS, INSTANT_ENV_DOWNLOADS="http://127.0.0.1:4711")
    assert sorted(path for path in (image / "etc-apt").rglob("*") if path.is_file()) == files
    assert [path.read_bytes() for path in files] == before


#: Stands for unshare(1), which takes root: notes what it was asked to do, and what policy-rc.d says then.
_UNSHARE = """#!/bin/sh
printf '%s\\n' "$*" >ROOT/asked
sh ROOT/policy-rc.d docker start
echo $? >ROOT/policy
exit "${STATUS:-0}"
"""


def install(image: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """apt_install of two packages."""
    (image / "bin").mkdir()
    (image / "bin/unshare").write_text(_UNSHARE.replace("ROOT", str(image)))
    (image / "bin/unshare").chmod(0o755)
    path = f"{image / 'bin'}:{os.environ['PATH']}"
    return run(image, "apt_install one two; echo installed", PATH=path, **variables)


@pytest.mark.parametrize("status", [0, 100])
def test_daemons_are_kept_from_starting_while_packages_are_installed_and_nothing_stays(
    image: Path, status: int
) -> None:
    result = install(image, STATUS=str(status))
    assert result.returncode == status
    assert ("installed" in result.stdout) == (status == 0)
    assert (image / "asked").read_text().strip().endswith("apt-get install --yes --quiet one two")
    # invoke-rc.d(8): 101 is "action not allowed".
    assert (image / "policy").read_text().strip() == "101"
    assert not (image / "policy-rc.d").is_symlink()


def test_an_images_own_policy_stays(image: Path) -> None:
    (image / "policy-rc.d").write_text("#!/bin/sh\nexit 104\n")
    result = install(image)
    assert "note: the image has a policy-rc.d of its own" in result.stdout
    assert (image / "policy-rc.d").read_text().endswith("exit 104\n")


@pytest.fixture
def refusing() -> Iterator[int]:
    """The port of a proxy that refuses everything, as ours does with a host that is not allowed."""

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403, "one.example:80 is not among the hosts of recipe tool")

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def closed() -> int:
    """A port that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_lists_that_could_not_be_fetched_end_the_step(image: Path, closed: int) -> None:
    """apt-get update alone ends with 0 then, and the next line of the log would be about a package."""
    (image / "etc-apt/sources.list.d/debian.sources").unlink()
    proxy = {"http_proxy": f"http://127.0.0.1:{closed}"}
    assert run(image, "apt-get update --quiet", **proxy).returncode == 0
    result = run(image, "apt_update; echo went on", **proxy)
    assert result.returncode == 1
    assert "went on" not in result.stdout
    assert "http://one.example/debian/dists/bookworm/InRelease" in result.stderr


def test_a_refusal_is_in_the_words_of_the_proxy(image: Path, refusing: int) -> None:
    (image / "etc-apt/sources.list.d/debian.sources").unlink()
    result = run(image, "apt_update; echo went on", http_proxy=f"http://127.0.0.1:{refusing}")
    assert result.returncode == 1
    assert "went on" not in result.stdout
    assert "one.example:80 is not among the hosts of recipe tool" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("apt: the lists of packages could not be fetched")

"""The recipes `devbox` and `container-host`, as far as they can be had without a machine.

Their scripts, as rendered, with the real curl and git against a mirror on loopback. Docker and rustup are
imitated: what they do on a machine is not shown here, and the recipes' documents say so.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import platform
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.moved_machine import Machine

from instant_env.arch import Arch
from instant_env.bake import artefacts
from instant_env.bake.plan import File, Script, make_plan
from instant_env.bake.recipe import load_base, resolve
from instant_env.settings import ROOT
from instant_env.toolchain import go_build

RECIPES = ROOT / "recipes"
BASE = load_base(RECIPES, "debian-12")


class Mirror(http.server.ThreadingHTTPServer):
    """Serves a directory, and counts what is asked for."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(directory)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    directory = tmp_path / "mirror"
    directory.mkdir()
    server = Mirror(directory)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def put(tmp_path: Path, place: str, content: bytes) -> str:
    """A file on the mirror; its SHA-256."""
    file = tmp_path / "mirror" / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def rendered(name: str, step: str, given: dict[str, str]) -> str:
    recipe = resolve(RECIPES, name, "apt")
    made = dict.fromkeys(artefacts.names(recipe), Path(__file__))
    plan = make_plan(recipe, BASE, "ami-1", Arch.X86_64, made, given)
    (found,) = (one for one in plan.steps if one.name == step)
    assert isinstance(found, (Script, File))
    return found.text if isinstance(found, Script) else found.content.decode()


RUSTUP_INIT = """#!/bin/sh
mkdir -p "$HOME/.cargo/bin"
for program in "$HOME/.cargo/bin/cargo" "$HOME/.cargo/bin/rustc"; do
    echo '#!/bin/sh' >"$program"; chmod 0755 "$program"
done
echo "$RUSTUP_DIST_SERVER $*" >"$HOME/rustup-said"
"""


@pytest.fixture
def tools(tmp_path: Path, mirror: Mirror) -> dict[str, str]:
    """Parameters of `devbox` whose downloads are on the mirror."""
    return {
        "mirror": mirror.url,
        "rustup_url": "https://rustup.example/releases/rustup",
        "rustup_sha256": put(tmp_path, "rustup.example/releases/rustup", RUSTUP_INIT.encode()),
    }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path / "root", also=("/etc/devbox", "/run/devbox-idle"))
    (found.root / "home/admin").mkdir(parents=True)
    (found.root / "var/tmp").mkdir(parents=True)
    # The rest of runuser is the kernel's business; owners need the account.
    found.program("runuser", '[ "$1 $2 $3" = "-u admin --" ] || exit 1; shift 3; exec "$@"')
    return found


def test_devbox_installs_what_its_mirror_serves(
    machine: Machine, mirror: Mirror, tools: dict[str, str]
) -> None:
    result = machine.run(rendered("devbox", "tools", {**tools, "rust_toolchain": "1.80.1"}))
    assert result.returncode == 0, result.stderr
    root = machine.root
    for program in ("cargo", "rustc"):
        assert os.access(root / "home/admin/.cargo/bin" / program, os.X_OK), program
    said = (root / "home/admin/rustup-said").read_text()
    assert said.startswith(f"{mirror.url}/static.rust-lang.org -y ")
    assert "--component clippy,rustfmt --default-toolchain 1.80.1" in said
    assert mirror.asked == ["/rustup.example/releases/rustup"]
    assert list((root / "var/tmp").iterdir()) == [], "downloads do not stay"


def test_another_digest_stops_the_bake_and_nothing_is_run(machine: Machine, tools: dict[str, str]) -> None:
    result = machine.run(rendered("devbox", "tools", {**tools, "rustup_sha256": "0f" * 32}))
    assert result.returncode == 1
    assert result.stderr.endswith(f"has SHA-256 {tools['rustup_sha256']}, not {'0f' * 32}\n")
    assert not (machine.root / "home/admin/.cargo").exists()
    assert list((machine.root / "var/tmp").iterdir()) == []


def test_without_a_mirror_each_comes_from_its_own_host(tools: dict[str, str]) -> None:
    text = rendered("devbox", "tools", {key: value for key, value in tools.items() if key != "mirror"})
    assert "127.0.0.1" not in text
    assert "RUSTUP_DIST_SERVER" not in text
    assert "fetch https://rustup.example/releases/rustup " in text


def test_a_repository_is_cloned_once_and_whole(
    machine: Machine, mirror: Mirror, tools: dict[str, str], tmp_path: Path
) -> None:
    """By the real git, from a repository served as plain files."""
    source, home = tmp_path / "source", machine.root / "home/admin"
    identity = ["-c", "user.name=a", "-c", "user.email=a@example"]

    def git(*arguments: str | Path) -> None:
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init", "-b", "work", source)
    (source / "file").write_text("content")
    git("-C", source, "add", "file")
    git("-C", source, "commit", "-m", "first")
    git("clone", "--bare", source, tmp_path / "mirror/team/app.git")
    script = rendered(
        "devbox",
        "clone-script",
        {**tools, "repository": f"{mirror.url}/team/app.git", "repository_ref": "work"},
    )
    failed = machine.run(script, HOME=str(home))
    assert failed.returncode != 0, "git update-server-info has not been run: this is a server that cannot"
    assert not (home / "app").exists()
    git("-C", tmp_path / "mirror/team/app.git", "update-server-info")
    assert machine.run(script, HOME=str(home)).returncode == 0
    assert (home / "app/file").read_text() == "content"
    (home / "app/file").write_text("my work")
    assert machine.run(script, HOME=str(home)).returncode == 0
    assert (home / "app/file").read_text() == "my work"
    assert [path.name for path in home.iterdir()] == ["app"]


@pytest.mark.parametrize(("when", "unit", "profile"), [("boot", True, False), ("login", False, True)])
def test_the_clone_is_for_boot_or_login(
    machine: Machine, tools: dict[str, str], when: str, unit: bool, profile: bool
) -> None:
    machine.program("systemctl", f'echo "$@" >>{machine.root}/enabled')
    for directory in ("etc/systemd/system", "etc/profile.d"):
        (machine.root / directory).mkdir(parents=True)
    given = {**tools, "repository": "https://a.example/b.git", "clone_at": when}
    result = machine.run(rendered("devbox", "units", given))
    assert result.returncode == 0, result.stderr
    enabled = machine.root / "enabled"
    assert enabled.exists() is unit
    assert not unit or enabled.read_text() == "--no-reload enable devbox-clone.service\n"
    assert (machine.root / "etc/systemd/system/devbox-clone.service").exists() is unit
    assert (machine.root / "etc/profile.d/devbox-clone.sh").exists() is profile


def test_hooks_run_once_after_idleness_and_again_after_use(machine: Machine) -> None:
    """Time, processes and load are the test's."""
    machine.program("cut", f"cat {machine.root}/uptime")
    machine.program("awk", f"cat {machine.root}/load")
    machine.program("pgrep", f'case "$*" in *sshd*) [ -e {machine.root}/session ] ;; *) exit 1 ;; esac')
    (machine.root / "load").write_text("")
    hook = machine.write(
        "etc/devbox/idle.d/10-note", f'#!/bin/sh\necho "$IDLE_S $LAST_USE" >>{machine.root}/ran\n'
    )
    hook.chmod(0o755)
    machine.write("etc/devbox/idle.d/README", "not a hook")
    script = machine.moved(rendered("devbox", "idle-script", {"idle_minutes": "5"}))

    def at(uptime: int, *arguments: str) -> str:
        (machine.root / "uptime").write_text(f"{uptime}\n")
        path = f"{machine.programs}:{os.environ['PATH']}"
        result = subprocess.run(
            ["sh", script, *arguments], env={"PATH": path}, capture_output=True, text=True, check=True
        )
        assert result.stderr == ""
        return result.stdout

    ran = machine.root / "ran"
    assert at(10) == "0 s idle; last use: its start\n"
    (machine.root / "session").touch()
    at(400, "check")
    assert at(460) == "0 s idle; last use: an SSH connection\n"
    (machine.root / "session").unlink()
    at(700, "check")
    assert not ran.exists()
    at(760, "check")
    at(820, "check")
    assert ran.read_text() == "300 an SSH connection\n"
    (machine.root / "load").write_text("a load of 0.9")
    at(880, "check")
    (machine.root / "load").write_text("")
    at(1200, "check")
    assert ran.read_text() == "300 an SSH connection\n320 a load of 0.9\n"


DOCKER = r"""
echo "$@" >>"$STATE/said"
[ "$1" != image ] || [ -e "$STATE/have-${3##*:}" ]
"""


@pytest.mark.slow  # compiles
def test_the_runner_reads_what_the_recipe_writes(tmp_path: Path) -> None:
    """The settings of all parameters; the step ends with the real program's word on them."""
    given = {
        "image": "team/app", "tag": "v1", "ports": "80:8080 443:8443", "health_port": "8080",
        "environment": "ssm", "environment_parameter": "/team/app", "aws_logs_group": "/team/app",
        "ecr_login": "true", "insecure_registries": "10.0.0.5:5000 registry.internal:5000",
    }  # fmt: skip
    root = tmp_path / "root"
    machine = Machine(root, also=("/etc/container-host", "/etc/docker", "/var/lib/container-host"))
    program = go_build("cmd/container-host", Arch.parse(platform.machine()), root / "usr/local/sbin")
    result = machine.run(rendered("container-host", "settings", given))
    assert (result.returncode, result.stdout) == (0, "team/app:v1\n"), result.stderr
    file = root / "etc/container-host/config.json"
    assert file.parent.stat().st_mode & 0o777 == 0o700
    settings = json.loads(file.read_text())
    assert settings["ports"] == ["80:8080", "443:8443"]
    assert (settings["ecr_login"], settings["health_interval_s"]) == (True, 10)
    assert json.loads((root / "etc/docker/daemon.json").read_text()) == {
        "log-driver": "json-file", "log-opts": {"max-size": "10m", "max-file": "3"},
        "insecure-registries": ["10.0.0.5:5000", "registry.internal:5000"],
    }  # fmt: skip
    file.write_text(json.dumps(settings | {"health_pth": "/"}))
    refused = subprocess.run([program, "check", file], capture_output=True, text=True, check=False)
    assert (refused.returncode, "health_pth" in refused.stderr) == (1, True)


def test_an_archive_is_fetched_checked_and_loaded(machine: Machine, mirror: Mirror, tmp_path: Path) -> None:
    digest = put(tmp_path, "images.example/app.tar", b"layers")
    (machine.root / "state").mkdir(parents=True)
    (machine.root / "state/have-v1").touch()
    machine.program("docker", DOCKER)
    machine.program("systemctl", 'echo systemctl "$@" >>"$STATE/said"')
    given = {"image": "team/app", "tag": "v1", "mirror": mirror.url,
             "archive_url": "https://images.example/app.tar"}  # fmt: skip
    state = str(machine.root / "state")
    result = machine.run(
        rendered("container-host", "image", {**given, "archive_sha256": digest}), STATE=state
    )
    assert result.returncode == 0, result.stderr
    start, load, inspect, stop = (machine.root / "state/said").read_text().splitlines()
    assert start == "systemctl start docker.service"
    assert load.startswith("load --quiet --input ")
    assert inspect == "image inspect team/app:v1"
    assert stop.startswith("systemctl stop docker.service")
    missing = machine.run(rendered("container-host", "image", given), STATE=state)
    assert missing.returncode == 1
    assert "archive_url needs archive_sha256 and image" in missing.stderr

"""The recipes `devbox` and `container-host`, as far as they can be had without a machine.

Their scripts, as rendered, with the real curl, git, unzip and tar against a mirror on loopback. Docker,
rustup and the AWS CLI's installer are imitated: what they do on a machine is not shown here, and the recipes'
documents say so.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import signal
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.moved_machine import Machine

from instant_env.arch import Arch
from instant_env.bake.plan import File, Script, make_plan
from instant_env.bake.recipe import load_base, resolve
from instant_env.settings import ROOT

RECIPES = ROOT / "recipes"
BASE = load_base(RECIPES, "debian-12")


class Mirror(http.server.ThreadingHTTPServer):
    """Serves a directory; counts what is asked for, answers health checks, and plays the metadata service."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        self.asked: list[str] = []
        self.healthy = True
        self.container_tag: str | None = None
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(directory)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/health":
            self._answer(200 if self.server.healthy else 500, "")
        elif self.path.startswith("/latest/meta-data/tags/"):
            tag = self.server.container_tag
            assert self.headers["X-aws-ec2-metadata-token"] == "token"
            self._answer(404 if tag is None else 200, tag or "")
        else:
            super().do_GET()

    def do_PUT(self) -> None:
        self._answer(200, "token")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

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
    artefact = Path(__file__)
    made = {"instant-init": artefact, "imagetool": artefact, "efi-stub": artefact}
    plan = make_plan(resolve(RECIPES, name, "apt"), BASE, "ami-1", Arch.X86_64, made, given)
    (found,) = (one for one in plan.steps if one.name == step)
    assert isinstance(found, (Script, File))
    return found.text if isinstance(found, Script) else found.content.decode()


AWSCLI_INSTALLER = """#!/bin/sh
# as the real one: ./aws/install --bin-dir B --install-dir I
mkdir -p "$2" "$4/v2/2.27.50/dist/awscli/examples"
echo '#!/bin/sh' >"$2/aws"; chmod 0755 "$2/aws"
echo KEY >"$4/v2/2.27.50/dist/awscli/examples/create-key-pair.rst"
"""
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
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        info = zipfile.ZipInfo("aws/install")
        info.external_attr = 0o755 << 16
        archive.writestr(info, AWSCLI_INSTALLER)
    nextest = io.BytesIO()
    with tarfile.open(fileobj=nextest, mode="w:gz") as tar:
        member = tarfile.TarInfo("cargo-nextest")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"next"))
    given = {"mirror": mirror.url}
    for tool, content in (
        ("awscli", packed.getvalue()), ("compose", b"#!/bin/sh\n"), ("rustup", RUSTUP_INIT.encode()),
        ("nextest", nextest.getvalue()),
    ):  # fmt: skip
        given[f"{tool}_url"] = f"https://{tool}.example/releases/{tool}"
        given[f"{tool}_sha256"] = put(tmp_path, f"{tool}.example/releases/{tool}", content)
    return given


INSTALL = """skip=
for word; do
    shift
    if [ "$word" = -o ]; then skip=yes; elif [ -n "$skip" ]; then skip=; else set -- "$@" "$word"; fi
done
exec /usr/bin/install "$@"
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path / "root")
    (found.root / "home/admin").mkdir(parents=True)
    (found.root / "var/tmp").mkdir(parents=True)
    # The rest of runuser is the kernel's business; owners need the account.
    found.program("runuser", '[ "$1 $2 $3" = "-u admin --" ] || exit 1; shift 3; exec "$@"')
    found.program("install", INSTALL)
    return found


def test_devbox_installs_what_its_mirror_serves(
    machine: Machine, mirror: Mirror, tools: dict[str, str]
) -> None:
    result = machine.run(rendered("devbox", "tools", {**tools, "rust_toolchain": "1.80.1"}))
    assert result.returncode == 0, result.stderr
    root = machine.root
    for program in ("usr/local/bin/aws", "usr/local/lib/docker/cli-plugins/docker-compose",
                    "home/admin/.cargo/bin/rustc", "home/admin/.cargo/bin/cargo-nextest"):  # fmt: skip
        assert os.access(root / program, os.X_OK), program
    assert not list(root.glob("usr/local/aws-cli/**/examples"))
    said = (root / "home/admin/rustup-said").read_text()
    assert said.startswith(f"{mirror.url}/static.rust-lang.org -y ")
    assert "--default-toolchain 1.80.1" in said
    assert mirror.asked == [
        f"/{tool}.example/releases/{tool}" for tool in ("awscli", "compose", "rustup", "nextest")
    ]
    assert list((root / "var/tmp").iterdir()) == [], "downloads do not stay"


def test_another_digest_stops_the_bake_and_nothing_is_run(machine: Machine, tools: dict[str, str]) -> None:
    result = machine.run(rendered("devbox", "tools", {**tools, "awscli_sha256": "0f" * 32}))
    assert result.returncode == 1
    assert result.stderr.endswith(f"has SHA-256 {tools['awscli_sha256']}, not {'0f' * 32}\n")
    assert not (machine.root / "usr").exists()
    assert list((machine.root / "var/tmp").iterdir()) == []


def test_without_a_mirror_each_comes_from_its_own_host(tools: dict[str, str]) -> None:
    text = rendered("devbox", "tools", {key: value for key, value in tools.items() if key != "mirror"})
    assert "127.0.0.1" not in text
    assert "RUSTUP_DIST_SERVER" not in text
    assert "fetch https://awscli.example/releases/awscli " in text


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
    assert ("devbox-clone.service" in (machine.root / "enabled").read_text()) is unit
    assert (machine.root / "etc/systemd/system/devbox-clone.service").exists() is unit
    assert (machine.root / "etc/profile.d/devbox-clone.sh").exists() is profile


@pytest.mark.parametrize(
    ("labelled", "signatures", "expected"),
    [
        (
            "",
            {"nvme1n1": 2, "nvme2n1": 2},
            "mkfs.ext4 -q -L devbox-data /dev/nvme1n1\nmount /dev/nvme1n1 /data\n",
        ),
        (
            "",
            {"nvme1n1": 0, "nvme2n1": 2},
            "mkfs.ext4 -q -L devbox-data /dev/nvme2n1\nmount /dev/nvme2n1 /data\n",
        ),
        ("", {"nvme1n1": 0, "nvme2n1": 0}, ""),
        ("/dev/nvme2n1", {"nvme1n1": 2, "nvme2n1": 0}, "mount /dev/nvme2n1 /data\n"),
    ],
)
def test_only_a_blank_disk_becomes_the_data_volume(
    machine: Machine, tools: dict[str, str], labelled: str, signatures: dict[str, int], expected: str
) -> None:
    """lsblk and blkid answer as on a machine with a root of three partitions and two more disks."""
    done = machine.root / "done"
    done.write_text("")
    machine.program("findmnt", "echo /dev/nvme0n1p1")
    machine.program(
        "lsblk",
        'case "$*" in *PKNAME*) echo nvme0n1 ;; *--nodeps*) printf "nvme0n1\\nnvme1n1\\nnvme2n1\\n" ;;'
        ' *nvme0n1) printf "a\\nb\\nc\\nd\\n" ;; *) echo one ;; esac',
    )
    cases = " ".join(f'"-p /dev/{disk}") exit {status} ;;' for disk, status in signatures.items())
    found = f"echo {labelled}" if labelled else "exit 2"
    machine.program("blkid", f'case "$*" in {cases} "-L devbox-data") {found} ;; *) exit 4 ;; esac')
    for name in ("mkfs.ext4", "mount"):
        machine.program(name, f'echo {name} "$@" >>{done}')
    machine.program("mountpoint", "exit 1")
    for name in ("mkdir", "chown"):
        machine.program(name, "exit 0")
    result = machine.run(rendered("devbox", "data-script", tools))
    assert result.returncode == 0, result.stderr
    assert done.read_text() == expected


DOCKER = r"""
echo "$@" >>"$STATE/said"
case "$1" in
image) [ -e "$STATE/have-${3##*:}" ] ;;
pull) touch "$STATE/have-${3##*:}" ;;
run) while [ ! -e "$STATE/stop" ]; do sleep 0.05; done; exit 3 ;;
stop) touch "$STATE/stop" ;;
esac
"""


def run_container(machine: Machine, mirror: Mirror, **given: str) -> tuple[subprocess.Popen[str], Path]:
    """The runner as systemd would start it, with a docker that writes down what it is told."""
    state = machine.root / "state"
    state.mkdir(exist_ok=True)
    machine.program("docker", DOCKER)
    script = machine.moved(rendered("container-host", "runner", {"image": "team/app", **given}))
    path = f"{machine.programs}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "STATE": str(state), "INSTANT_ENV_IMDS": mirror.url}
    process = subprocess.Popen(["sh", script], env=environment, stderr=subprocess.PIPE, text=True)
    return process, state / "said"


def wait_for(said: Path, word: str) -> None:
    deadline = time.monotonic() + 60
    while not (said.exists() and word in said.read_text()):
        assert time.monotonic() < deadline, f"docker was never told: {word}"
        time.sleep(0.05)


def test_the_launch_names_the_tag_and_systemd_ends_it(machine: Machine, mirror: Mirror) -> None:
    mirror.container_tag = "v1.2"
    process, said = run_container(machine, mirror, ports="80:8080 443:8443")
    wait_for(said, "run ")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert said.read_text().splitlines() == [
        "rm --force container-host", "image inspect team/app:v1.2", "pull --quiet team/app:v1.2",
        "run --rm --name container-host --publish 80:8080 --publish 443:8443 team/app:v1.2",
        "stop --time 10 container-host",
    ]  # fmt: skip


@pytest.mark.parametrize("tag", [None, "v1; reboot", "$(reboot)", "-v", "a" * 129])
def test_a_tag_that_is_none_is_not_used_and_what_is_baked_in_is_not_pulled(
    machine: Machine, mirror: Mirror, tag: str | None
) -> None:
    (machine.root / "state").mkdir(parents=True)
    (machine.root / "state/have-stable").touch()
    mirror.container_tag = tag
    process, said = run_container(machine, mirror, tag="stable")
    wait_for(said, "run ")
    (machine.root / "state/stop").touch()
    assert process.wait(timeout=60) == 3, "the container's own exit status, for systemd to start it again"
    assert "run --rm --name container-host team/app:stable" in said.read_text()
    assert "pull" not in said.read_text()
    assert process.stderr is not None
    assert ("is no container tag" in process.stderr.read()) is (tag is not None)


@pytest.mark.slow
def test_a_container_that_fails_its_check_is_ended(machine: Machine, mirror: Mirror) -> None:
    process, said = run_container(
        machine, mirror, health_url=f"{mirror.url}/health", health_interval_s="1", health_failures="2",
        health_grace_s="0",
    )  # fmt: skip
    wait_for(said, "run ")
    deadline = time.monotonic() + 60
    while mirror.asked.count("/health") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.poll() is None, "a healthy one goes on"
    mirror.healthy = False
    assert process.wait(timeout=60) == 1
    assert "stop --time 10 container-host" in said.read_text()
    assert process.stderr is not None
    assert "2 checks of" in process.stderr.read()


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
    assert "archive_url needs archive_sha256" in missing.stderr

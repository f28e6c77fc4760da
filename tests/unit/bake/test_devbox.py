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
import json
import os
import platform
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.moved_machine import Machine

from instant_env.arch import Arch
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
    artefact = Path(__file__)
    made = dict.fromkeys(("instant-init", "imagetool", "efi-stub", "container-host"), artefact)
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

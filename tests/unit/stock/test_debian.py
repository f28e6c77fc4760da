"""The debian-12 base without building it: the cache, the host's checks, what goes in, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.processes import alive

from instant_env.arch import Arch
from instant_env.debian import foreign, mirrors
from instant_env.debian.mirrors import Mirrors
from instant_env.errors import MissingToolError, UsageError
from instant_env.localec2 import stock
from instant_env.localec2.stock import debian, debian_contents, disk, model
from instant_env.progress import Progress
from instant_env.settings import ROOT

pytest_plugins = ["support.stock_site"]

MIRRORS = Mirrors("http://one/debian", "http://one/debian-security")


def an_image(cache_dir: Path, digest: str) -> stock.StockImage:
    """A record in the cache, with a disk that is none."""
    path = model.stock_dir(cache_dir) / f"{model.image_stem('debian-12', Arch.X86_64, digest)}.qcow2"
    path.write_bytes(b"disk")
    image = stock.StockImage(
        base="debian-12", arch=Arch.X86_64, name="n", description="d", owner_id="1", ssm_parameter="/p",
        root_device_name="/dev/xvda", disk=path, size_gib=2, boot_mode="uefi-preferred", digest=digest,
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    return model.save(image)


def test_the_cached_image_is_not_built_again(tmp_path: Path, progress: Progress, lines: list[str]) -> None:
    digest = debian.digest_of_inputs(Arch.X86_64, Mirrors.from_environment())
    image = an_image(tmp_path, digest)
    assert stock.build("debian-12", Arch.X86_64, tmp_path, progress) == image
    assert lines == []


def test_a_moved_cache_still_serves(tmp_path: Path) -> None:
    an_image(tmp_path / "old", "abc")
    (tmp_path / "old").rename(tmp_path / "new")
    image = model.load_cached(tmp_path / "new", "debian-12", Arch.X86_64, "abc")
    assert image is not None
    assert image.disk.is_relative_to(tmp_path / "new")


@pytest.mark.parametrize("damage", ["{", "{}"])
def test_a_damaged_record_or_a_missing_disk_counts_as_not_cached(tmp_path: Path, damage: str) -> None:
    image = an_image(tmp_path, "abc")
    image.disk.with_suffix(".json").write_text(damage)
    assert model.load_cached(tmp_path, "debian-12", Arch.X86_64, "abc") is None
    image = an_image(tmp_path, "abc")
    image.disk.unlink()
    assert model.load_cached(tmp_path, "debian-12", Arch.X86_64, "abc") is None


def test_the_digest_follows_what_goes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = debian.digest_of_inputs(Arch.X86_64, MIRRORS)
    assert digest == debian.digest_of_inputs(Arch.X86_64, MIRRORS)
    assert len(digest) == 16
    others = {
        debian.digest_of_inputs(Arch.ARM64, MIRRORS),
        debian.digest_of_inputs(Arch.X86_64, Mirrors("http://two/debian", MIRRORS.security)),
    }
    monkeypatch.setattr(debian_contents, "_CLOUD_CFG", "#cloud-config\n")
    others.add(debian.digest_of_inputs(Arch.X86_64, MIRRORS))
    assert len(others - {digest}) == 3


def test_mirrors_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTANT_ENV_DEBIAN_MIRROR", "http://mirror/debian")
    monkeypatch.delenv("INSTANT_ENV_DEBIAN_SECURITY_MIRROR", raising=False)
    sources = Mirrors.from_environment().sources().splitlines()
    assert [line.split("] ")[1] for line in sources] == [
        "http://mirror/debian bookworm main",
        "http://mirror/debian bookworm-updates main",
        "http://deb.debian.org/debian-security bookworm-security main",
    ]
    assert all("[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" in line for line in sources)


def test_contents_agree_with_the_disk(tmp_path: Path) -> None:
    ids = disk.Identifiers.from_digest("test")
    files = {file.path: file for file in debian_contents.late_files(Arch.X86_64, ids)}
    assert f"PARTUUID={ids.root_partition} / ext4" in files["/etc/fstab"].text
    probe = tmp_path / "grub-probe"
    probe.write_text(files["/tmp/stock/grub-probe"].text)  # noqa: S108 (a key)
    probe.chmod(0o755)
    command = [str(probe), "--device", "/dev/x", "--target=fs_uuid"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout == f"{ids.root_filesystem}\n"
    finish = files["/tmp/stock/finish"].text  # noqa: S108 (a key)
    assert "--showformat='${Package} ${Version} ${Architecture}\\n'" in finish
    subprocess.run(["sh", "-n"], input=finish, text=True, check=True)
    assert str(ids.root_filesystem) in debian_contents.esp_grub_cfg(ids)


def test_packages_are_those_of_the_architecture() -> None:
    assert {"linux-image-cloud-amd64", "cloud-init", "openssh-server", "netplan.io"} <= set(
        debian_contents.packages(Arch.X86_64)
    )
    arm = debian_contents.packages(Arch.ARM64)
    assert "linux-image-cloud-arm64" in arm
    assert not [name for name in arm if "amd64" in name]


def test_the_overlay_belongs_to_root(tmp_path: Path) -> None:
    debian.overlay(tmp_path / "o.tar", (debian_contents.File("/etc/x", "text\n", 0o600),))
    with tarfile.open(tmp_path / "o.tar") as archive:
        member = archive.getmembers()[0]
    assert (member.name, member.uid, member.gid, member.mode) == ("etc/x", 0, 0, 0o600)


@pytest.mark.parametrize("user_id", [0, 1000])
def test_another_architecture_needs_an_emulator_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, progress: Progress, user_id: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user_id)
    other = Arch.ARM64 if os.uname().machine == "x86_64" else Arch.X86_64
    monkeypatch.setattr(foreign, "runs", lambda *_: False)
    monkeypatch.setattr(foreign, "registration", lambda *_: ["false"])
    monkeypatch.setattr(debian, "_build", None)  # is not reached
    with pytest.raises(MissingToolError, match=f"programs for {other} cannot run here"):
        stock.build("debian-12", other, tmp_path, progress)
    assert not list(model.stock_dir(tmp_path).iterdir())


def test_missing_programs_and_keys_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arch = Arch.parse(os.uname().machine)
    monkeypatch.setattr(debian, "_TOOLS", {"no-mmdebstrap": "mmdebstrap"})
    with pytest.raises(MissingToolError) as caught:
        debian.check_host(arch)
    assert caught.value.hint == "run: apt-get install mmdebstrap"
    monkeypatch.setattr(debian, "_TOOLS", {"sh": "dash"})
    monkeypatch.setattr(debian, "_USER_TOOLS", {})
    monkeypatch.setattr(mirrors, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(MissingToolError) as caught:
        debian.check_host(arch)
    assert caught.value.hint == "run: apt-get install debian-archive-keyring"


def test_unknown_bases_are_named_with_the_known_ones(tmp_path: Path, progress: Progress) -> None:
    with pytest.raises(UsageError, match="unknown base 'debian-99'") as caught:
        stock.build("debian-99", Arch.X86_64, tmp_path, progress)
    assert caught.value.hint == "use one of: debian-12, debian-12-xfs, al2023, al2023-like, tiny"


#: A build whose mmdebstrap is a script; stands for an impatient user's terminal.
BUILD = """
import signal, sys
from pathlib import Path
from instant_env.arch import Arch
from instant_env.localec2.stock import debian
debian.check_host = lambda arch: None
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
try:
    debian.build(Arch.X86_64, Path(sys.argv[1]), print)
except KeyboardInterrupt:
    sys.exit(130)
"""


def run_build(tmp_path: Path, mmdebstrap: str) -> subprocess.Popen[str]:
    """Start a build in a process of its own, with ``mmdebstrap`` as the text of that program."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    program = tmp_path / "bin/mmdebstrap"
    program.write_text(f"#!/bin/sh\n{mmdebstrap}\n")
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, tmp_path / "cache"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def left_behind(tmp_path: Path) -> list[str]:
    """Names in the temporary directory, and in the cache besides the lock and the log."""
    names = [path.name for path in (tmp_path / "tmp").iterdir()]
    cached = (path for path in (tmp_path / "cache/stock").iterdir() if path.suffix not in (".lock", ".log"))
    return names + [path.name for path in cached]


@pytest.mark.skipif(os.geteuid() != 0, reason="the script stands for mmdebstrap's user namespace too")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = run_build(tmp_path, f"echo $$ >{tmp_path}/pid; sleep 100 & echo $! >>{tmp_path}/pid; wait")
    pids = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while not (pids.exists() and pids.read_text().count("\n") == 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert left_behind(tmp_path) == []
    deadline = time.monotonic() + 60  # killed they are, but a process ends in its own time
    while running := [pid for pid in map(int, pids.read_text().split()) if alive(pid)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.02)


@pytest.mark.skipif(os.geteuid() != 0, reason="the script stands for mmdebstrap's user namespace too")
def test_a_failed_build_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    process = run_build(tmp_path, "mkdir -p $TMPDIR/mmdebstrap.x/etc; echo 'E: no such suite' >&2; exit 1")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "BuildError: mmdebstrap failed (1): E: no such suite" in errors
    assert left_behind(tmp_path) == []

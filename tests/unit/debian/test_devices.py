"""A build's commands have device nodes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.debian import devices
from instant_env.debian.command import Runner
from instant_env.debian.mirrors import Mirrors
from instant_env.localec2.stock import debian, disk

NODES = ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm")


def host_devices() -> dict[str, tuple[int, int, int, int]]:
    """Mode, owner, number and inode of the nodes that a chroot needs."""
    nodes = {}
    for name in NODES:
        status = Path("/dev", name).lstat()
        nodes[name] = (status.st_mode, status.st_uid, status.st_rdev, status.st_ino)
    return nodes


@pytest.fixture
def unchanged_devices() -> Iterator[None]:
    before = host_devices()
    yield
    assert host_devices() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user cannot change the host's devices")
class TestAsRoot:
    @pytest.fixture(autouse=True)
    def may_mount(self) -> None:
        if not devices._possible():
            pytest.skip("this root may not mount")

    @pytest.mark.usefixtures("unchanged_devices")
    def test_a_command_changes_devices_of_its_own(self) -> None:
        script = (
            "chmod 0644 /dev/null; rm /dev/zero; mknod /dev/instant-env-probe c 1 3; "
            "stat --format %a /dev/null; head -c 3 /dev/urandom | wc -c; test -c /dev/ptmx; cat"
        )
        result = subprocess.run(
            [*devices.own_devices(), "sh", "-ec", script],
            input="from outside",
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.split() == ["644", "3", "from", "outside"]

    def test_a_command_sees_what_is_in_shared_memory(self) -> None:
        """TMPDIR may be there: a build's files must not vanish behind the /dev of its own."""
        with tempfile.NamedTemporaryFile(dir="/dev/shm", mode="w+") as file:
            file.write("from outside")
            file.flush()
            command = [*devices.own_devices(), "sh", "-ec", f"cat {file.name}; ls -l /proc/self/fd/9 || true"]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout == "from outside"

    @pytest.mark.usefixtures("unchanged_devices")
    def test_a_stock_build_does(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a stand-in for mmdebstrap that does what a package's script might, under a new name."""
        stand_in = tmp_path / "bin" / "mmdebstrap"
        stand_in.parent.mkdir()
        stand_in.write_text("#!/bin/sh\nmknod /dev/instant-env-probe c 1 3\n")
        stand_in.chmod(0o755)
        monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
        ids = disk.Identifiers.from_digest("test")
        mirrors = Mirrors("http://one/debian", "http://one/debian-security")
        probe = Path("/dev/instant-env-probe")
        try:
            description = debian.describe(Arch.X86_64, mirrors)
            debian._bootstrap(Runner(tmp_path / "log"), tmp_path, description, ids, lambda _: None)
            assert not probe.exists()
        finally:
            probe.unlink(missing_ok=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root has the other way")
@pytest.mark.usefixtures("unchanged_devices")
def test_a_user_has_no_way_to_them() -> None:
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap")
    change = ["mmdebstrap", "--unshare-helper", "chmod", "0600", "/dev/null"]
    assert subprocess.run(change, capture_output=True, check=False).returncode != 0
    assert devices.own_devices() == ()

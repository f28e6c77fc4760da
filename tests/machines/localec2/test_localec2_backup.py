"""Copies of a running machine's disks: real QEMU, no guest. Its monitor writes in the guest's place."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.localec2.qemu import command_line, disks
from instant_env.localec2.qemu.backup import BackupError, Copy
from instant_env.localec2.qemu.machine import Machine

pytestmark = pytest.mark.boot

ROOT, EXTRA = "vol-00000000000000001", "vol-00000000000000002"


class Bench:
    """A machine with two disks, the second over a snapshot."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.exits = threading.Event()
        disks.create(self.path("under"), 1)
        self.offline("under", "write -P 85 1M 64k")
        disks.create(self.path(ROOT), 1)
        disks.create(self.path(EXTRA), 2, self.path("under"))
        platform = command_line.find_platform(Arch.X86_64)
        variables = directory / "variables.fd"
        variables.write_bytes(platform.firmware_variables.read_bytes())
        spec = command_line.MachineSpec(
            instance_id="i-00000000000000000", instance_type="t3.micro", platform=platform, accelerator="tcg",
            vcpus=1, memory_mib=256,
            disks=tuple(command_line.Disk(name, self.path(name)) for name in (ROOT, EXTRA)),
            nics=(), variables=variables, console=directory / "console.log", qmp=directory / "qmp",
        )  # fmt: skip
        self.machine = Machine(spec, directory / "qemu.log", lambda _: self.exits.set())
        self.machine.start()

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.qcow2"

    def offline(self, name: str, command: str) -> str:
        options = ["-r", "-U"] if command.startswith("read") else []
        line = ["qemu-io", *options, "-c", command, str(self.path(name))]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout

    def live(self, node: str, command: str) -> None:
        # Through the guest's device: what goes to the node itself passes the backup job by.
        line = f'qemu-io -d dev-{node} "{command}"'
        self.machine.qmp.execute("human-monitor-command", {"command-line": line})

    def begin(self, *names: str) -> threading.Thread:
        """Start copies of the disks named; the files are beside them, named copy-..."""
        copies = []
        for name in names:
            target, backing = self.path(f"copy-{name[-2:]}"), self.path("under") if name == EXTRA else None
            disks.create(target, 2 if name == EXTRA else 1, backing)
            copies.append(Copy(name, target, incremental=backing is not None))
        self.problem: BackupError | None = None
        begun = threading.Event()

        def run() -> None:
            try:
                self.machine.copy_disks(copies, begun)
            except BackupError as error:
                self.problem = error

        thread = threading.Thread(target=run)
        thread.start()
        assert begun.wait(20)
        return thread


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.machine.quit()
    assert made.exits.wait(10)


def test_copies_show_the_instant_at_which_they_began(bench: Bench) -> None:
    bench.live(ROOT, "write -P 65 0 64k")
    bench.live(EXTRA, "write -P 66 0 64k")
    copying = bench.begin(ROOT, EXTRA)
    bench.live(ROOT, "write -P 90 0 64k")
    bench.live(EXTRA, "write -P 90 0 64k")
    copying.join()
    assert bench.problem is None
    assert "failed" not in bench.offline("copy-01", "read -P 65 0 64k")
    assert "failed" not in bench.offline("copy-02", "read -P 66 0 64k")
    assert "failed" not in bench.offline("copy-02", "read -P 85 1M 64k"), "what lies under it shows"
    for name in ("copy-01", "copy-02"):
        assert bench.path(name).stat().st_blocks * 512 < 1 << 20, "sparse"
    assert {node["node-name"] for node in bench.machine.qmp.execute("query-named-block-nodes")}.isdisjoint(
        {"to-copy-01", "to-copy-02"}
    )
    # The disk itself lives on.
    bench.live(ROOT, "write -P 67 1M 64k")


def test_a_machine_that_ends_finishes_its_copies_first(bench: Bench) -> None:
    bench.live(ROOT, "write -P 65 0 96M")
    copying = bench.begin(ROOT)
    bench.machine.quit()
    copying.join()
    assert bench.problem is None
    assert bench.exits.wait(10)
    assert "failed" not in bench.offline("copy-01", "read -P 65 64M 1M")


def test_a_machine_that_is_killed_fails_its_copies(bench: Bench) -> None:
    bench.live(ROOT, "write -P 65 0 256M")
    copying = bench.begin(ROOT)
    assert bench.machine._process is not None
    bench.machine._process.kill()
    copying.join(20)
    assert not copying.is_alive()
    assert bench.problem is not None

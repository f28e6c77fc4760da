"""One QEMU machine for the tests of init/: kernel started directly, NVMe root, metadata at EC2's address."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
from init_disk import ROOT_DEVICE, USER, Disk

from instant_env.arch import Arch
from instant_env.localec2.qmp import Qmp
from instant_env.toolchain import go_build

ADDRESS = "172.31.5.10"
BOOT_LIMIT_S = 90.0


class Machine:
    """A running machine. Waiting methods fail with what the console shows."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, console: Path, qmp: Path) -> None:
        self.process, self.port, self.console, self._qmp = process, port, console, qmp

    def press_power_button(self) -> None:
        qmp = Qmp(self._qmp)
        qmp.execute("system_powerdown")
        qmp.close()

    def wait_for(self, text: str, limit_s: float = BOOT_LIMIT_S) -> str:
        """The console's line with ``text``, once it is there."""
        deadline = time.monotonic() + limit_s
        while True:
            output = self.console.read_text(errors="replace") if self.console.exists() else ""
            for line in output.split("\n")[:-1]:
                if text in line:
                    return line.strip()
            assert self.process.poll() is None, f"QEMU ended before {text!r}:\n{output}"
            assert time.monotonic() < deadline, f"no {text!r} within {limit_s} s:\n{output}"
            time.sleep(0.05)

    def wait_for_end(self, limit_s: float = 60.0) -> float:
        """Seconds until the machine has powered itself off."""
        started = time.monotonic()
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.console.read_text(errors='replace')}") from None
        return time.monotonic() - started

    def timeline(self) -> dict[str, Any]:
        """What the init printed when it had started sshd."""
        line = self.wait_for("instant-init: timeline ")
        found: dict[str, Any] = json.loads(line.partition("timeline ")[2])
        return found


class Login:
    """An authenticated SSH connection, used from ordinary functions."""

    def __init__(self, machine: Machine, key: asyncssh.SSHKey) -> None:
        self._loop = asyncio.new_event_loop()
        self._connection = self._loop.run_until_complete(self._connect(machine, key))
        shown = self._connection.get_server_host_key()
        assert shown is not None
        self.host_key: str = shown.get_fingerprint()

    async def _connect(self, machine: Machine, key: asyncssh.SSHKey) -> asyncssh.SSHClientConnection:
        """QEMU accepts before sshd does and then closes, so the first tries may fail."""
        deadline = time.monotonic() + BOOT_LIMIT_S
        while True:
            try:
                return await asyncssh.connect(
                    "127.0.0.1", machine.port, username=USER, client_keys=[key], known_hosts=None,
                    config=None, agent_path=None, connect_timeout=10, login_timeout=30,
                )  # fmt: skip
            except (OSError, asyncssh.ConnectionLost, asyncssh.DisconnectError) as error:
                if isinstance(error, asyncssh.PermissionDenied) or time.monotonic() > deadline:
                    raise
                assert machine.process.poll() is None, machine.console.read_text(errors="replace")
                await asyncio.sleep(0.1)

    def run(self, command: str, *, terminal: str | None = None) -> str:
        """Standard output of ``command``; a failure is the test's."""
        result = self._loop.run_until_complete(
            asyncio.wait_for(self._connection.run(command, term_type=terminal), 60)
        )
        assert result.exit_status == 0, f"{command}: {result.exit_status} {result.stdout!r} {result.stderr!r}"
        return str(result.stdout).strip()

    def close(self) -> None:
        self._connection.abort()
        self._loop.run_until_complete(self._connection.wait_closed())
        self._loop.close()


@contextmanager
def login(machine: Machine, key: asyncssh.SSHKey) -> Iterator[Login]:
    session = Login(machine, key)
    try:
        yield session
    finally:
        session.close()


def metadata(key: asyncssh.SSHKey | None, user_data: str | None = None) -> dict[str, Any]:
    """The file of the imds helper (instant_env/localec2/imds/README.md); only what the init asks for."""
    tree: dict[str, Any] = {"instance-id": "i-0123456789abcdef0"}
    if key is not None:
        tree["public-keys"] = {"0": {"openssh-key": key.export_public_key().decode()}}
    return {
        "version": 1, "token_key": secrets.token_hex(32), "http_tokens": "required",
        "http_endpoint": "enabled", "instance_tags": False, "tags": {},
        "tree": tree, "key_names": ["test"] if key else [],
        "user_data_base64": base64.b64encode(user_data.encode()).decode() if user_data else None,
        "document": {"accountId": "123456789012", "architecture": "x86_64", "instanceId": tree["instance-id"],
                     "region": "us-east-1"},
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def boot(disk: Disk, directory: Path, items: dict[str, Any]) -> Iterator[Machine]:
    """Start the machine; whatever happens, it is gone afterwards."""
    directory.mkdir()
    (directory / "metadata.json").write_text(json.dumps(items))
    console, qmp, port = directory / "console.log", directory / "qmp", _free_port()
    imds = go_build("instant_env/localec2/imds/cmd/imds", Arch.X86_64)
    network = (
        f"user,id=n,net=160.0.0.0/4,host=172.31.0.1,dns=172.31.0.2,dhcpstart={ADDRESS},restrict=on,"
        f"hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:22,"
        f"guestfwd=tcp:169.254.169.254:80-cmd:{imds} --metadata {directory / 'metadata.json'}"
    )
    arguments = f"root={ROOT_DEVICE} rootwait rw init=/usr/sbin/instant-init console=ttyS0,115200n8 quiet"
    process = subprocess.Popen(
        [
            "nice", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35",
            "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-kernel", disk.kernel,
            "-append", arguments,
            "-drive", f"if=none,id=d,format=raw,cache=unsafe,file={disk.path}",
            "-device", "nvme,drive=d,serial=vol0123456789abcdef0",
            "-netdev", network, "-device", "virtio-net-pci,netdev=n,romfile=",
            "-serial", f"file:{console}", "-qmp", f"unix:{qmp},server=on,wait=off",
        ]
    )  # fmt: skip
    try:
        yield Machine(process, port, console, qmp)
    finally:
        process.kill()
        process.wait()

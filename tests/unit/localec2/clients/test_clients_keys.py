"""Keys that localec2 makes, in the hands of clients."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from support import ssh_server

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


async def greet(process: asyncssh.SSHServerProcess[str]) -> None:
    process.stdout.write("welcome\n")
    process.exit(0)


def login(key: Path, port: int) -> subprocess.CompletedProcess[str]:
    options = [
        "-oStrictHostKeyChecking=no", f"-oUserKnownHostsFile={key}.hosts", "-oIdentitiesOnly=yes",
        "-oBatchMode=yes", "-F", "none", "-i", str(key), "-p", str(port),
    ]  # fmt: skip
    return subprocess.run(
        ["ssh", *options, "admin@127.0.0.1", "true"], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_openssh_logs_in_with_a_created_key(served: Served, tmp_path: Path, kind: str) -> None:
    """An RSA key signs by SHA-2: OpenSSH does not take SHA-1 any more."""
    key = tmp_path / "key"
    key.write_text(served.ec2.create_key_pair(KeyName="made", KeyType=kind)["KeyMaterial"])  # type: ignore[arg-type]
    key.chmod(0o600)
    modern = ["rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519"]
    server: dict[str, Any] = {"server_factory": ssh_server.TakesAnyKey, "process_factory": greet}
    with ssh_server.listening(signature_algs=modern, **server) as port:
        result = login(key, port)
    assert (result.returncode, result.stdout) == (0, "welcome\n"), result.stderr


def test_openssh_signs_nothing_by_sha1(served: Served, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(served.ec2.create_key_pair(KeyName="made", KeyType="rsa")["KeyMaterial"])
    key.chmod(0o600)
    server: dict[str, Any] = {"server_factory": ssh_server.TakesAnyKey, "process_factory": greet}
    with ssh_server.listening(signature_algs=["ssh-rsa"], **server) as port:
        assert login(key, port).returncode == 255

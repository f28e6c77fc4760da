"""Public keys are parsed, and sshd says of a public key alone whether it would accept it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from support import ssh_server
from support.launch_servers import free_port

from instant_env.public_key import PublicKey, PublicKeyError
from instant_env.ssh import key_query
from instant_env.ssh.login import HandshakeFailed, KeyRefused


def new_key(kind: str = "ssh-ed25519", **options: Any) -> str:
    return asyncssh.generate_private_key(kind, **options).export_public_key().decode().strip()


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa"])
def test_a_key_is_read_and_written_as_it_is(kind: str) -> None:
    line = new_key(kind)
    key = PublicKey.parse(f"  {line} me@host  two\n")
    assert str(key) == f"{line} me@host  two"
    assert key.fingerprint == asyncssh.import_public_key(line).get_fingerprint()


def test_what_is_no_single_key_is_refused() -> None:
    line = new_key()
    kind, body = line.split()
    for text, reason in (
        ("", "is not a type"),
        (f'command="id" {line}', "is not a type"),
        (f"{line}\n{line}", "one line"),
        (f"{kind} {body[:-8]}", "not a ssh-ed25519 public key"),
        (f"ssh-rsa {body}", "ssh-rsa"),
        (f"{line} a\x1bb", "control characters"),
        (f"{line} a\ud800b", "control characters"),
        (new_key("ssh-rsa", key_size=1024), "at least 2048 bits, this one 1024"),
        (new_key("ssh-dss"), "is not a type"),
    ):
        with pytest.raises(PublicKeyError, match=reason):
            PublicKey.parse(text)


async def ask(port: int, user: str, line: str) -> key_query.Acceptance:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setblocking(False)
    return await key_query.query(sock, user, PublicKey.parse(line))


class Knows(asyncssh.SSHServer):
    """A server that knows one key."""

    line = new_key()

    def begin_auth(self, username: str) -> bool:
        return username != "open"

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        del username
        return key.export_public_key().decode().strip() == self.line


def test_a_server_says_whether_it_would_accept_a_key() -> None:
    with ssh_server.listening(server_factory=Knows) as port:
        before = time.monotonic_ns()
        acceptance = asyncio.run(ask(port, "me", Knows.line))
        assert before < acceptance.accepted_ns < time.monotonic_ns()
        with pytest.raises(KeyRefused):
            asyncio.run(ask(port, "me", new_key()))
        with pytest.raises(HandshakeFailed, match="everybody"):
            asyncio.run(ask(port, "open", new_key()))


@contextmanager
def sshd(directory: Path) -> Iterator[int]:
    """OpenSSH's server, as this user; ``directory/authorized_keys`` has the keys it accepts."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("no sshd here")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "host"], check=True)
    port = free_port()
    (directory / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\nStrictModes no\n"
    )
    with subprocess.Popen(
        [program, "-D", "-e", "-f", directory / "config"], stderr=subprocess.DEVNULL
    ) as server:
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert time.monotonic() < deadline, "sshd does not listen"
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()


def test_openssh_says_whether_it_would_accept_a_key(tmp_path: Path) -> None:
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    ours = new_key()
    with sshd(tmp_path) as port:
        with pytest.raises(KeyRefused):
            asyncio.run(ask(port, user, ours))
        (tmp_path / "authorized_keys").write_text(f"{new_key()}\n{ours}\n")
        assert asyncio.run(ask(port, user, ours)).host_key_fingerprint.startswith("SHA256:")
        rsa = new_key("ssh-rsa", key_size=2048)
        (tmp_path / "authorized_keys").write_text(f"{rsa}\n")
        assert asyncio.run(ask(port, user, rsa)).accepted_ns
        with pytest.raises(KeyRefused):
            asyncio.run(ask(port, user, ours))

"""The host's side of public addresses: a block 127.a.b.0/24 of this server's own, an address per machine."""

from __future__ import annotations

import socket

from instant_env.errors import InstantEnvError

#: Whoever holds this UDP port on 127.a.b.1 owns 127.a.b.0/24; the kernel frees it with the process.
CLAIM_PORT = 29017
#: Blocks 127.64.0.0/24 to 127.127.255.0/24; low ones are left to systemd-resolved and the like.
BLOCKS = 64 * 256
#: Ports below 1024 move up by this much where they cannot be bound (no root, or sshd on 0.0.0.0:22).
UNPRIVILEGED_OFFSET = 10000
#: An address's last number: .1 is the claim's, .2 tries whether low ports can be bound.
FIRST, LAST = 4, 254


class NetworkError(InstantEnvError):
    """No address is left, or the network does not do what it was asked to."""


def _bindable(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As a listener binds: connections that linger in TIME_WAIT do not matter, another listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
        return True


class AddressBlock:
    """The addresses 127.a.b.4 to 127.a.b.254 of one server."""

    def __init__(self, preferred: int) -> None:
        """Claim a block, the preferred one if it is free. Raises NetworkError when all are taken."""
        for step in range(BLOCKS):
            number = (preferred + step) % BLOCKS
            claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                claim.bind((f"{self._prefix(number)}.1", CLAIM_PORT))
            except OSError:
                claim.close()
                continue
            self.number, self._claim = number, claim
            break
        else:
            raise NetworkError("no 127.a.b.0/24 is free on this machine")
        self._taken: set[str] = set()
        self._last = FIRST - 1
        self._low_ports = _bindable(f"{self._prefix(self.number)}.2", 22)

    @staticmethod
    def _prefix(number: int) -> str:
        return f"127.{64 + number // 256}.{number % 256}"

    @property
    def ssh_port(self) -> int:
        """The port where a guest's port 22 is found."""
        return 22 + self.port_offset

    @property
    def port_offset(self) -> int:
        """A guest's port below 1024 is found this much higher."""
        return 0 if self._low_ports else UNPRIVILEGED_OFFSET

    def allot(self) -> str:
        """A loopback address for a machine. Round robin, so that an address is not reused at once."""
        for _ in range(LAST - FIRST + 1):
            self._last = self._last + 1 if self._last < LAST else FIRST
            address = f"{self._prefix(self.number)}.{self._last}"
            if address not in self._taken and _bindable(address, self.ssh_port):
                self._taken.add(address)
                return address
        raise NetworkError("all addresses are in use", hint="terminate instances")

    def reclaim(self, address: str) -> str:
        """Take an address again that was kept from an earlier server; on another block it changes."""
        previous = f"{self._prefix(self.number)}.{address.rpartition('.')[2]}"
        if previous in self._taken:
            return self.allot()
        self._taken.add(previous)
        return previous

    def release(self, address: str | None) -> None:
        """Give an address back."""
        self._taken.discard(address or "")

    def close(self) -> None:
        """Give the block back."""
        self._claim.close()

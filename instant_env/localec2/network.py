"""The network of guests: user-mode networking, behind a seam that a network of our own can take.

The seam is :class:`UserNetwork`: addresses are allotted and released, a :class:`Link` becomes QEMU arguments,
and a running machine's open ports are changed through its monitor. Nothing else in localec2 knows how packets
go.

What this network cannot do: guests reach neither each other nor the host nor anything beyond (`restrict=on`);
they have IMDS, DHCP and the connections forwarded to them. A forwarded connection is accepted before the
guest accepts it. The guest's netmask is /4, because a guestfwd address must lie inside the guest's network
and 169.254.169.254 and the default VPC have no shorter common prefix (see QEMU's net/slirp.c,
slirp_guestfwd).
"""

from __future__ import annotations

import ipaddress
import logging
import shlex
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from instant_env.errors import InstantEnvError
from instant_env.localec2.records import RuleRecord

log = logging.getLogger(__name__)

#: Address that connections to 127/8 come from: what caller-ip answers, and what rules are matched against.
CALLER_ADDRESS = ipaddress.IPv4Address("127.0.0.1")
#: Whoever holds this UDP port on 127.a.b.1 owns 127.a.b.0/24; the kernel frees it with the process.
CLAIM_PORT = 29017
#: Blocks 127.64.0.0/24 to 127.127.255.0/24; low ones are left to systemd-resolved and the like.
BLOCKS = 64 * 256
#: Ports below 1024 move up by this much where they cannot be bound (no root, or sshd on 0.0.0.0:22).
UNPRIVILEGED_OFFSET = 10000
#: A forward is one listening socket, so a rule for a wide range opens this many ports of it, from its start
#: ...
MAX_FORWARDS_PER_RULE = 32
#: ... and these, where they are in the range.
COMMON_PORTS = (22, 80, 443, 8000, 8080, 8443)


class NetworkError(InstantEnvError):
    """No address is left, or a port cannot be had."""


@dataclass(frozen=True)
class Link:
    """One machine's connection to the network."""

    private_ip: str
    public_ip: str | None
    domain: str
    imds_helper: Path
    metadata_file: Path
    ports: frozenset[int]


def open_ports(rules: Iterable[RuleRecord]) -> frozenset[int]:
    """The TCP ports that these rules open to the caller on this machine."""
    ports: set[int] = set()
    for rule in rules:
        if rule.egress or rule.ip_protocol not in ("tcp", "-1") or not _admits_caller(rule):
            continue
        first, last = (0, 65535) if rule.ip_protocol == "-1" else (rule.from_port or 0, rule.to_port or 65535)
        first = max(first, 1)
        ports.update(range(first, min(last, first + MAX_FORWARDS_PER_RULE - 1) + 1))
        ports.update(port for port in COMMON_PORTS if first <= port <= last)
    return frozenset(ports)


def _admits_caller(rule: RuleRecord) -> bool:
    try:
        return CALLER_ADDRESS in ipaddress.IPv4Network(rule.ip_range.get("CidrIp", ""), strict=False)
    except ValueError:
        return False  # an IPv6 range, a prefix list or another group


def _bindable(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As QEMU binds: connections that linger in TIME_WAIT do not matter, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
        return True


class UserNetwork:
    """The address plan 127.a.b.0/24 and the forwards of one server."""

    def __init__(self, preferred_block: int) -> None:
        """Claim a block, the preferred one if it is free. Raises NetworkError when all are taken."""
        for step in range(BLOCKS):
            block = (preferred_block + step) % BLOCKS
            claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                claim.bind((f"{self._prefix(block)}.1", CLAIM_PORT))
            except OSError:
                claim.close()
                continue
            self.block, self._claim = block, claim
            break
        else:
            raise NetworkError("no 127.a.b.0/24 is free on this machine")
        self._taken: set[str] = set()
        self._last = 3
        self._low_ports = _bindable(f"{self._prefix(self.block)}.2", 22)

    @staticmethod
    def _prefix(block: int) -> str:
        return f"127.{64 + block // 256}.{block % 256}"

    @property
    def ssh_port(self) -> int:
        """The port where a guest's port 22 is found."""
        return self.host_port(22)

    def host_port(self, port: int) -> int:
        """Where a guest's port is found on its loopback address."""
        return port if port >= 1024 or self._low_ports else port + UNPRIVILEGED_OFFSET

    def allot(self) -> str:
        """A loopback address for a machine. Round robin, so that an address is not reused at once."""
        for _ in range(251):
            self._last = self._last + 1 if self._last < 254 else 4
            address = f"{self._prefix(self.block)}.{self._last}"
            if address not in self._taken and _bindable(address, self.ssh_port):
                self._taken.add(address)
                return address
        raise NetworkError("all addresses are in use", hint="terminate instances")

    def release(self, address: str | None) -> None:
        """Give an address back."""
        self._taken.discard(address or "")

    def arguments(self, link: Link) -> list[str]:
        """QEMU's arguments for the network backend, named ``net0``."""
        imds = shlex.join([str(link.imds_helper), "--metadata", str(link.metadata_file)])
        options = [
            "user", "id=net0", "restrict=on", "ipv6=off", "net=160.0.0.0/4", "host=172.31.0.1",
            "dns=172.31.0.2",
            f"dhcpstart={link.private_ip}", f"domainname={link.domain}",
            f"hostname=ip-{link.private_ip.replace('.', '-')}",
            f"guestfwd=tcp:169.254.169.254:80-cmd:{imds.replace(',', ',,')}",
        ]  # fmt: skip
        options += [f"hostfwd={self._forward(link, port)}" for port in sorted(self._free_ports(link))]
        return ["-netdev", ",".join(options)]

    def change_ports(
        self, link: Link, wanted: frozenset[int], monitor: Callable[[str], str]
    ) -> frozenset[int]:
        """Open and close ports of a running machine; returns those that are open now."""
        if link.public_ip is None:
            return link.ports
        ports = set(link.ports)
        for port in sorted(link.ports - wanted):
            monitor(f"hostfwd_remove net0 tcp:{link.public_ip}:{self.host_port(port)}")
            ports.discard(port)
        for port in sorted(wanted - link.ports):
            if answer := monitor(f"hostfwd_add net0 {self._forward(link, port)}"):
                log.warning("port %d of %s cannot be forwarded: %s", port, link.public_ip, answer)
            else:
                ports.add(port)
        return frozenset(ports)

    def bound(self, link: Link) -> Link:
        """The link with the ports that can really be had: QEMU would not start with one that cannot."""
        return replace(link, ports=self._free_ports(link))

    def _free_ports(self, link: Link) -> frozenset[int]:
        if link.public_ip is None:
            return frozenset()
        return frozenset(port for port in link.ports if _bindable(link.public_ip, self.host_port(port)))

    def _forward(self, link: Link, port: int) -> str:
        return f"tcp:{link.public_ip}:{self.host_port(port)}-{link.private_ip}:{port}"

    def close(self) -> None:
        """Give the block back."""
        self._claim.close()

"""The network of guests: VPCs of our own, made by netd, behind a seam.

The rest of localec2 says which interfaces there are and what the security groups admit; how packets go is
netd's business (cmd/netd/main.go). QEMU connects every interface to a Unix socket of netd. Commands are sent
with the state's lock held and never waited for then: they are carried out in the order in which they were
given.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instant_env.localec2.network.addresses import AddressBlock, NetworkError
from instant_env.localec2.network.netd_client import ANSWER_TIMEOUT_S, Answer, NetdClient
from instant_env.localec2.records.records import SecurityGroupRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interface:
    """One network interface, as netd is told of it."""

    id: str
    vpc: str
    vpc_cidr: str
    socket: str  # where QEMU connects to
    mac: str
    address: str
    subnet: str
    public: str  # its address on the host's loopback; "" without one, and in a subnet that is not public
    host_name: str
    metadata: str  # the file that its IMDS serves
    groups: tuple[str, ...]


def rules(groups: Iterable[SecurityGroupRecord]) -> dict[str, list[dict[str, Any]]]:
    """Security groups in netd's words: rules of IPv4 ranges and of groups, which are all that match here."""
    return {
        group.id: [
            {
                "egress": rule.egress, "protocol": rule.ip_protocol,
                # All ports, or for ICMP all types and codes, are -1 or left out.
                "from": 0 if rule.from_port is None else rule.from_port,
                "to": 65535 if rule.to_port is None else rule.to_port,
                "cidr": rule.ip_range.get("CidrIp", ""), "group": rule.source_group.get("GroupId", ""),
            }
            for rule in group.rules
        ]
        for group in groups
    }  # fmt: skip


class Network:
    """The network of one server: its addresses on the host and its netd."""

    def __init__(
        self, addresses: AddressBlock, program: Path, *, domain: str, egress: bool,
    ) -> None:  # fmt: skip
        """Start netd. Raises NetworkError when it cannot be started."""
        self.addresses = addresses
        # Called, in a thread of the network's, when netd died: a new one runs then, but every machine's card
        # has lost its cable for good (QEMU does not connect again).
        self.on_loss: Callable[[], None] = lambda: None
        # Called in the same way with an interface's id when its guest has used its address, once per boot.
        self.on_guest_up: Callable[[str], None] = lambda _: None
        self._program = program
        self._arguments = [
            "-domain", domain, f"-egress={str(egress).lower()}",
            "-port-offset", str(addresses.port_offset),
        ]  # fmt: skip
        self._lock = threading.Lock()
        self._groups: dict[str, list[dict[str, Any]]] = {}
        self._interfaces: dict[str, Interface] = {}
        self._client = self._start()

    def _start(self) -> NetdClient:
        return NetdClient(self._program, self._arguments, self._died, self._happened)

    def _happened(self, event: str, interface_id: str) -> None:
        log.info("%s: %s", interface_id, event)
        if event == "up":
            self.on_guest_up(interface_id)

    def _died(self) -> None:
        with self._lock:
            self._interfaces.clear()
            try:
                self._client = self._start()
            except NetworkError:
                log.exception("no new netd; machines cannot be started any more")
            else:
                self._client.send("groups", groups=self._groups)
        self.on_loss()

    def set_groups(self, groups: dict[str, list[dict[str, Any]]]) -> None:
        """Make these all security groups that there are."""
        with self._lock:
            if groups != self._groups:
                self._groups = groups
                self._client.send("groups", groups=groups)

    def plug(self, interface: Interface) -> Future[Answer]:
        """Make an interface, or change the public address and the groups of one that is there.

        When the future is done, QEMU can connect.
        """
        with self._lock:
            if self._interfaces.get(interface.id) == interface:
                done: Future[Answer] = Future()
                done.set_result({})
                return done
            self._interfaces[interface.id] = interface
            return self._client.send("port", port=asdict(interface))

    def unplug(self, interface_id: str) -> None:
        """Remove an interface, if it is there."""
        with self._lock:
            if self._interfaces.pop(interface_id, None) is not None:
                self._client.send("remove", name=interface_id)

    def fault(
        self, interface_id: str, *, drop_dhcp: int = 0, drop_probability: float = 0.0, delay_ms: int = 0,
        silent_dns: bool = False,
    ) -> None:  # fmt: skip
        """Make an interface lossy or slow; without arguments, make it good again.

        ``drop_dhcp``: the guest's next this many DHCP messages are lost. ``drop_probability``: of every
        packet, either way. ``delay_ms``: of every packet, either way. ``silent_dns``: the resolver does not
        answer. Raises NetworkError for an unknown interface or invalid values. Waits: not
        with the state's lock held.
        """
        faults = {
            "drop_dhcp": drop_dhcp, "drop_probability": drop_probability, "delay_ms": delay_ms,
            "silent_dns": silent_dns,
        }  # fmt: skip
        with self._lock:
            future = self._client.send("faults", name=interface_id, faults=faults)
        future.result(ANSWER_TIMEOUT_S)

    def status(self) -> dict[str, Any]:
        """By interface: whether its guest has spoken (``up``), where clients are listened for (``open``)."""
        with self._lock:
            future = self._client.send("status")
        ports: dict[str, Any] = future.result(ANSWER_TIMEOUT_S).get("ports", {})
        return ports

    @property
    def pid(self) -> int:
        return self._client.pid

    def close(self) -> None:
        """End netd and give the addresses back."""
        self._client.close()
        self.addresses.close()

"""Probe addresses side by side in one thread, by a loop over a selector."""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import time
from collections.abc import Callable

from instant_env.ssh.connect_probe import Probe, ProbePolicy, SshAnswer

_NS = 1_000_000_000


class Probes:
    """Addresses that are probed side by side by one thread: call :meth:`turn` again and again."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._probes: set[Probe] = set()

    def start(
        self,
        address: str,
        port: int,
        policy: ProbePolicy,
        *,
        not_before_ns: int,
        on_found: Callable[[SshAnswer], None],
    ) -> Probe:
        """Probe until found or stopped. ``on_found`` is called once at most and owns the socket.

        ``not_before_ns`` is the latest instant at which the machine surely did not answer (its launch): the
        resolution of an answer to the very first connect reaches back to it.
        """

        def finish(answer: SshAnswer) -> None:
            self._probes.discard(probe)
            on_found(answer)

        probe = Probe(self._selector, (address, port), policy, not_before_ns, finish)
        self._probes.add(probe)
        return probe

    def stop(self, probe: Probe) -> None:
        """Close its sockets, all of them."""
        self._probes.discard(probe)
        probe.close()

    def watch(self, sock: socket.socket, on_readable: Callable[[], None]) -> None:
        """Call ``on_readable`` in a turn, whenever there is something to read."""
        self._selector.register(sock, selectors.EVENT_READ, on_readable)

    def turn(self, until_ns: int | None = None) -> None:
        """Wait for the next thing to do, at most until ``until_ns``, and do it."""
        due = [probe.next_ns for probe in self._probes]
        if until_ns is not None:
            due.append(until_ns)
        wait_s = max(0, min(due) - time.monotonic_ns()) / _NS if due else None
        # Waited for by select(2), which counts microseconds: epoll_wait(2) would be up to 1 ms late.
        select.select([self._selector], [], [], wait_s)
        for key, _ in self._selector.select(0):
            if self._selector.get_map().get(key.fd) is key:  # else dropped in this very turn
                key.data()
        now = time.monotonic_ns()
        for probe in [probe for probe in self._probes if now >= probe.next_ns]:
            probe.tick()

    def close(self) -> None:
        for probe in self._probes:
            probe.close()
        self._selector.close()


def find(address: str, port: int, policy: ProbePolicy, *, timeout_s: float) -> SshAnswer | None:
    """Wait until sshd at ``address`` sends its version line; None when it does not within the time.

    The caller owns the socket that is returned.
    """
    now = time.monotonic_ns()
    until_ns = now + int(timeout_s * _NS)
    answers: list[SshAnswer] = []
    with contextlib.closing(Probes()) as probes:
        probes.start(address, port, policy, not_before_ns=now, on_found=answers.append)
        while not answers and time.monotonic_ns() < until_ns:
            probes.turn(until_ns)
    return answers[0] if answers else None

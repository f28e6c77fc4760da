"""Deliver a warm machine: hand it over by its parked connection, and have sshd's word that its key is in.

The proof's key exchange is done before (:mod:`instant_env.launch.standing_query`), or runs beside the write,
so the question costs one round trip once the machine has answered. No EC2 call is made.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from instant_env.launch.hand_over import HandOverAnswer, HandOverRequest
from instant_env.launch.parked import Parked
from instant_env.launch.standing_query import Door
from instant_env.launch.timeline import MarkName, Timeline
from instant_env.public_key import PublicKey
from instant_env.ssh.dial import dial
from instant_env.ssh.key_query import Acceptance, PreparedQuery
from instant_env.ssh.login import HandshakeFailed


class Proof:
    """sshd's word that a key is let in, for a machine that serves already. ``async with``: what is open is
    closed in the end.

    t4 is the yes. t3 is the version line of a connection that was made for it; with ``standing``, whose line
    came long before, it is the moment of the question. The question is put once. A connection that fails
    before is made anew, once.
    """

    def __init__(
        self, door: Door, key: PublicKey, timeline: Timeline, *,
        standing: PreparedQuery | None = None, timeout_s: float = 20.0,
    ) -> None:  # fmt: skip
        self._door = door
        self._key = key
        self._timeline = timeline
        self._timeout_s = timeout_s
        self._query = standing
        self._opening = None if standing else asyncio.create_task(self._open())

    async def __aenter__(self) -> Proof:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._query is not None:
            self._query.close()

    async def _open(self) -> PreparedQuery:
        answer = await dial(self._door.address, self._door.port, timeout_s=self._timeout_s)
        self._timeline.mark(MarkName.T3_TCP, answer.accepted_ns, answer.resolution_ns)
        self._timeline.mark(MarkName.T3, answer.banner_ns, answer.resolution_ns)
        self._query = PreparedQuery(answer.sock, self._door.username, self._door.host_keys)
        await self._query.exchange()
        return self._query

    async def ask(self) -> Acceptance:
        """Wait for the key exchange, put the question, and mark t4.

        Raises KeyRefused, HostKeyMismatch, HandshakeFailed, and TimeoutError.
        """
        asked_ns = time.monotonic_ns()
        async with asyncio.timeout(self._timeout_s):
            try:
                acceptance = await self._put()
            except HandshakeFailed:
                if self._query is not None and self._query.asked:
                    raise
                await self._open()
                acceptance = await self._put()
        if MarkName.T3 not in self._timeline.marks:
            self._timeline.mark(MarkName.T3_TCP, asked_ns)
            self._timeline.mark(MarkName.T3, asked_ns)
        self._timeline.mark(MarkName.T4, acceptance.accepted_ns)
        return acceptance

    async def _put(self) -> Acceptance:
        if self._opening is not None:
            opening, self._opening = self._opening, None
            await opening
        if self._query is None:
            raise HandshakeFailed("there is no connection")
        return await self._query.ask(self._key)


@dataclass(frozen=True)
class Delivery:
    """A warm machine that is the lessee's, and lets the key in. t1 and t2 are the acknowledged hand-over."""

    timeline: Timeline
    answer: HandOverAnswer
    host_key: PublicKey | None


async def deliver(
    parked: Parked, door: Door, request: HandOverRequest, timeline: Timeline, *, timeout_s: float = 20.0
) -> Delivery:
    """Hand the machine over and prove the key, each within ``timeout_s``; ``timeline`` began with the
    request.

    Raises what :meth:`Parked.hand_over` and :meth:`Proof.ask` raise. After the write
    (``parked.written``) the machine is the lessee's or nobody's, whatever is raised. The parked connection
    stays open, and is the caller's to close.
    """
    standing = parked.take_query()
    async with Proof(door, request.public_key, timeline, standing=standing, timeout_s=timeout_s) as proof:
        answer = await parked.hand_over(request, timeout_s=timeout_s)
        acknowledged_ns = time.monotonic_ns()
        timeline.mark(MarkName.T1, acknowledged_ns)
        timeline.mark(MarkName.T2, acknowledged_ns)
        acceptance = await proof.ask()
    return Delivery(timeline, answer, acceptance.host_key)

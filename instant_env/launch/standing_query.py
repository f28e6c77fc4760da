"""A connection to a waiting machine whose key exchange is done, for the question of the delivery.

A new connection costs four round trips and, in an emulated guest, a quarter of a second. So each warm machine
has one open that has asked nothing yet, and is made anew before its sshd would end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass

from instant_env.errors import InstantEnvError
from instant_env.ssh.dial import dial
from instant_env.ssh.host_keys import HostKeys
from instant_env.ssh.key_query import PreparedQuery

#: sshd ends connections without a login after two minutes (sshd_config(5), LoginGraceTime), and 9.8 and later
#: charge the address for those that it ends (PerSourcePenalties, grace-exceeded): ours end before that.
_RENEW_S = 90.0
#: After a connection that came to nothing.
_RETRY_S = 15.0
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Door:
    """Where a machine's sshd is, who may log in there, and what it proves itself by."""

    address: str
    port: int
    username: str
    host_keys: HostKeys | None


class StandingQuery:
    """Keeps a query prepared until it is taken or closed; in an event loop."""

    def __init__(self, door: Door, *, renew_s: float = _RENEW_S, retry_s: float = _RETRY_S) -> None:
        self._door = door
        self._renew_s, self._retry_s = renew_s, retry_s
        self._query: PreparedQuery | None = None
        self._keeping = asyncio.create_task(self._keep())

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`take` would have one."""
        return self._query is not None and self._query.alive

    def take(self) -> PreparedQuery | None:
        """The query, which is the caller's from now on; None while there is none. No other is prepared."""
        query, self._query = self._query, None
        self.close()
        return query if query is not None and query.alive else None

    def close(self) -> None:
        self._keeping.cancel()
        self._put(None)

    def _put(self, query: PreparedQuery | None) -> None:
        if self._query is not None:
            self._query.close()
        self._query = query

    async def _keep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    self._put(await self._prepare())
            except (InstantEnvError, TimeoutError):
                # The machine may be busy or gone. Who looks after it notices by its parked connection.
                self._put(None)
            # Machines that were filled together do not all work at once.
            pause_s = self._renew_s if self._query else self._retry_s
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.0))  # noqa: S311 - no secret

    async def _prepare(self) -> PreparedQuery:
        door = self._door
        answer = await dial(door.address, door.port, timeout_s=_TIMEOUT_S)
        query = PreparedQuery(answer.sock, door.username, door.host_keys)
        with contextlib.ExitStack() as unless_prepared:
            unless_prepared.callback(query.close)
            await query.exchange()
            unless_prepared.pop_all()
        return query

"""What this process asked EC2 to launch of late: those ids exist, whatever EC2 says in the first minutes.

EC2 is eventually consistent: for a while after RunInstances another of its servers may not know the machine's
id (InvalidInstanceID.NotFound), nor list it by its tags (EC2 Developer Guide, "Eventual consistency in the
Amazon EC2 API"). And a request whose answer never came may have made a machine all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from botocore.exceptions import ClientError

#: For so long after RunInstances has answered with an id, NotFound for it means "not yet".
NOT_YET_S = 120.0
#: A request without an answer that is older has been done or has not, and tags are consistent.
_UNSETTLED_S = 60.0
#: By then everything about a machine is known everywhere; the log must not grow with a service's life.
_FORGET_S = 3600.0


@dataclass
class _Request:
    run_id: str
    begun_s: float
    instance_id: str = ""
    ended: bool = False


@dataclass
class LaunchLog:
    """The requests of one connection. Threads may share it."""

    clock: Callable[[], float] = time.monotonic
    _requests: list[_Request] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def request(self, run_id: str) -> Iterator[Callable[[str], None]]:
        """Around one RunInstances; call what it yields with the id that was answered.

        A ClientError is an answer, and there is no machine. Anything else that ends the block leaves the
        request without an answer.
        """
        one = _Request(run_id, self.clock())
        with self._lock:
            old = self.clock() - _FORGET_S
            self._requests = [request for request in self._requests if request.begun_s > old]
            self._requests.append(one)

        def answered(instance_id: str) -> None:
            one.instance_id = instance_id

        try:
            yield answered
        except ClientError:
            one.ended = True
            raise

    def ended(self, instance_id: str) -> None:
        """EC2 has taken TerminateInstances of this machine, or it is not there."""
        for request in self._of(instance_id):
            request.ended = True

    def is_young(self, instance_id: str) -> bool:
        """Whether RunInstances answered with this id so lately that NotFound means "not yet"."""
        since_s = self.clock() - NOT_YET_S
        return any(request.begun_s > since_s for request in self._of(instance_id))

    def open_ids(self, run_id: str) -> set[str]:
        """Machines of a run that were launched here and not ended, whether their tags can be found or not."""
        with self._lock:
            requests = [one for one in self._requests if one.run_id == run_id and not one.ended]
        return {one.instance_id for one in requests if one.instance_id}

    def unanswered(self, run_id: str) -> bool:
        """Whether a request of the last minute has no answer: its machine can only be found by its tags."""
        since_s = self.clock() - _UNSETTLED_S
        with self._lock:
            return any(
                one.run_id == run_id and not one.ended and not one.instance_id and one.begun_s > since_s
                for one in self._requests
            )

    def _of(self, instance_id: str) -> list[_Request]:
        with self._lock:
            return [one for one in self._requests if one.instance_id == instance_id]

"""Processes full of clients that claim machines from one store, and that are killed while they do.

Each client has numbered requests, each with an idempotency key of its own, and writes down every answer. A
process that was killed is started again and repeats what has no answer yet, as a client does that lost one.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import event, insert

from instant_env.service.records import Idempotency
from instant_env.service.store import schema
from instant_env.service.store.rows import values_of
from instant_env.service.store.sql import SqlStore
from instant_env.waiting import wait_until
from support.service.records import NOW, WIDE, ready_machine, request, token, warm

CLAIMER = token("claimer")
#: Where in an admission a process can kill itself: after a statement that begins so; before the commit; after
#: it and before the answer is written down.
POINTS = ("UPDATE machines", "INSERT INTO leases", "INSERT INTO events", "commit", "answer")

Opener = Callable[[Path], SqlStore]


class Answer(NamedTuple):
    """What a client was told."""

    key: str
    lease_id: str
    machine_id: str


class Death(NamedTuple):
    """A process kills itself at ``point`` of its n-th admission."""

    point: str
    nth: int


@dataclass
class Crowd:
    """``processes`` times ``clients`` clients with ``requests`` requests each."""

    opener: Opener
    directory: Path
    processes: int
    clients: int
    requests: int
    _workers: dict[int, ForkServerProcess] = field(default_factory=dict)
    _deaths: list[Death] = field(default_factory=list)
    _doomed: set[int] = field(default_factory=set)
    kills: int = 0

    @property
    def total(self) -> int:
        return self.processes * self.clients * self.requests

    def fill(self, store: SqlStore) -> None:
        """One machine for each request. In one transaction: each fsync takes milliseconds."""
        with store.writing() as connection:
            connection.execute(
                insert(schema.machines), [values_of(ready_machine()) for _ in range(self.total)]
            )

    def answers(self) -> list[Answer]:
        """Those that were written down whole."""
        lines = [
            line
            for path in sorted(self.directory.glob("answers-*"))
            for line in path.read_text().splitlines(keepends=True)
        ]
        return [Answer(*line.split()) for line in lines if line.endswith("\n")]

    def run(self, deaths: list[Death], random_kills: int, chance: random.Random, timeout_s: float) -> None:
        """Until every request is answered; raises AssertionError when a process ends otherwise than by a
        kill."""
        thresholds = sorted(chance.sample(range(self.total // 20, self.total * 2 // 3), random_kills))
        self._deaths = list(deaths)
        for number in range(self.processes):
            self._start(number)

        def is_over() -> bool:
            for number, worker in list(self._workers.items()):
                self._look_at(number, worker)
            others = [number for number in self._workers if number not in self._doomed]
            if thresholds and others and len(self.answers()) >= thresholds[0]:
                number = chance.choice(others)
                worker = self._workers[number]
                worker.kill()
                worker.join()
                if worker.exitcode == -signal.SIGKILL:  # and it had not just ended by itself
                    thresholds.pop(0)
                self._look_at(number, worker)
            return not self._workers

        try:
            assert wait_until(is_over, timeout_s, 0.02), f"{len(self.answers())} answers of {self.total}"
        finally:
            for worker in self._workers.values():
                worker.kill()
                worker.join()

    def _look_at(self, number: int, worker: ForkServerProcess) -> None:
        """Start again what was killed."""
        if worker.exitcode is None:
            return
        del self._workers[number]
        self._doomed.discard(number)
        if worker.exitcode == -signal.SIGKILL:
            self.kills += 1
            self._start(number)
        else:
            assert worker.exitcode == 0, f"process {number} ended with {worker.exitcode}"

    def _start(self, number: int) -> None:
        death = self._deaths.pop() if self._deaths else None
        if death:
            self._doomed.add(number)
        worker = forks().Process(
            target=_work, args=(self.opener, self.directory, number, self.clients, self.requests, death)
        )
        worker.start()
        self._workers[number] = worker


def forks() -> ForkServerContext:
    """For processes that begin at once: forked from one that has imported the store, not from pytest, which
    has threads."""
    context = multiprocessing.get_context("forkserver")
    # By a path of the installed packages: the server of Python 3.11 has no other.
    context.set_forkserver_preload(["instant_env.service.store.sqlite"])
    return context


def _work(
    opener: Opener, directory: Path, number: int, clients: int, requests: int, death: Death | None
) -> None:
    """One process: its clients are threads."""
    path = directory / f"answers-{number}"
    answered = {line.split()[0] for line in path.read_text().splitlines()} if path.exists() else set()
    book = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = opener(directory)
    at_point = _doom(store, death)

    def serve(client: int) -> None:
        for one in range(requests):
            key = f"{number}-{client}-{one}"
            if key in answered:
                continue
            outcome = store.admit(
                CLAIMER,
                request(),
                (warm(),),
                limits=WIDE,
                idempotency=Idempotency(key, "fingerprint"),
                now=NOW,
            )
            at_point("answer")
            os.write(book, f"{key} {outcome.lease.id} {outcome.lease.machine_id}\n".encode())

    threads = [threading.Thread(target=serve, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    # A client that failed has written its traceback, and has no answer.
    asked = {f"{number}-{client}-{one}" for client in range(clients) for one in range(requests)}
    given = {line.split()[0] for line in path.read_text().splitlines()}
    os._exit(0 if asked == given else 1)


def _doom(store: SqlStore, death: Death | None) -> Callable[[str], None]:
    """Kill this process when the n-th admission is at the point."""
    seen = 0

    def at_point(point: str) -> None:
        nonlocal seen
        if death and point.startswith(death.point):
            seen += 1
            if seen == death.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    def after_statement(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        at_point(statement)

    if death:
        event.listen(store.engine, "after_cursor_execute", after_statement)
        event.listen(store.engine, "commit", lambda _connection: at_point("commit"))
    return at_point

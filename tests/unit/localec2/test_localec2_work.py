"""Work that is done after the answer."""

from __future__ import annotations

import threading

from instant_env.localec2.instances.job_queue import Work


def test_jobs_of_one_name_run_in_order_and_those_of_others_at_once() -> None:
    work, gate, done = Work(), threading.Event(), threading.Event()
    seen: list[tuple[str, int]] = []

    def job(number: int, last: bool = False) -> None:
        def run(name: str) -> None:
            gate.wait(60)
            seen.append((name, number))
            if last:
                done.set()

        work.add("a", run)

    for number in range(50):
        job(number, last=number == 49)
    other = threading.Event()
    work.add("b", lambda _: other.set())
    assert other.wait(60), "b does not wait for a"
    gate.set()
    assert done.wait(60)
    assert seen == [("a", number) for number in range(50)]


def test_a_job_that_fails_does_not_stop_the_next() -> None:
    work, done = Work(), threading.Event()

    def fail(_: str) -> None:
        raise ValueError("no")

    work.add("a", fail)
    work.add("a", lambda _: done.set())
    assert done.wait(60)

"""SIGKILL at each step boundary of a bake, a process of its own; `clean` then takes all that it left."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
from support.pretend_bakery import NOTHING, Bakery

from instant_env.cloud import janitor
from instant_env.cloud.janitor import Policy
from instant_env.cloud.removal import remove

pytest_plugins = ("support.pretend_bakery",)
pytestmark = pytest.mark.slow


def test_nothing_is_left_wherever_a_bake_is_killed(bakery: Bakery) -> None:
    """A boundary is a line that the bake says: there it stands still until it is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pretend_bakery"])
    boundaries: list[str] = []
    machines = 0
    while True:
        said, theirs = context.Pipe(duplex=False)
        bake = context.Process(target=bakery.elsewhere().bake, args=(len(boundaries), theirs))
        bake.start()
        theirs.close()
        lines = [str(said.recv()) for _ in range(len(boundaries) + 1)]
        if lines[-1] == "done":
            bake.join()
            break
        boundaries.append(lines[-1])
        assert bake.pid is not None
        os.kill(bake.pid, signal.SIGKILL)
        bake.join()
        machines += len(bakery.leftovers()["instances"])
        removals = janitor.survey(bakery.cloud, Policy(keep=99)).removals
        assert remove(bakery.cloud, removals, lambda _: None).failures == [], lines[-1]
        assert bakery.leftovers() == NOTHING, lines[-1]
        assert (bakery.images(), bakery.snapshots()) == ([], []), lines[-1]
    print(*boundaries, sep="\n")
    assert any("verify" in line and "launched" in line for line in boundaries)
    assert machines >= 8  # most of them left one
    assert bakery.leftovers() == NOTHING
    assert len(bakery.baked()) == 1

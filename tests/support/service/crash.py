"""A service that is killed at its n-th step, and the one after it: run as a program of its own.

EC2 is a file here, so it outlives the process. A step is a call to the fleet that is about to be made, a
machine that EC2 has just made or changed, and a row that was just written: between two of them nothing
lasting happens. `python -m support.service.crash DIRECTORY` walks all steps, each in a directory of its own,
and prints one JSON object per step.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instant_env.service.engine.context import Context
from instant_env.service.engine.fleet import Sighting
from instant_env.service.records import LeaseState, MachineState
from support.service.fleet import FakeFleet
from support.service.rig import Clock, Rig, plan, rig

_WRITES = frozenset(
    {"admit", "claim", "change_lease", "add_machine", "change_machine", "add_sample", "set_pool_control"}
)
_TTL_S = 60
_MOVING = (LeaseState.REQUESTED, LeaseState.PROVISIONING)


class Steps:
    """Counts, and kills this process at one of them."""

    def __init__(self, fatal: int = 0) -> None:
        self.fatal = fatal
        self.names: list[str] = []

    def pass_by(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


class _Machines(dict[str, Sighting]):
    """What EC2 has, in a file."""

    def __init__(self, path: Path, steps: Steps) -> None:
        self._steps = steps
        super().__init__(pickle.loads(path.read_bytes()) if path.exists() else {})  # noqa: S301 - our own
        self._path = path

    def __setitem__(self, key: str, value: Sighting) -> None:
        super().__setitem__(key, value)
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(pickle.dumps(dict(self)))
        temporary.replace(self._path)
        self._steps.pass_by(f"EC2: {value.state}")


class FileFleet(FakeFleet):
    """RunInstances with a known client token is the machine that there is, as EC2 has it."""

    def __init__(self, path: Path, steps: Steps) -> None:
        super().__init__()
        self.machines = _Machines(path, steps)
        self._steps = steps

    async def _step(self, operation: str, about: str) -> None:
        if operation not in ("sightings", "catalogue"):
            self._steps.pass_by(f"call: {operation}")
        await super()._step(operation, about)

    def add(self, **fields: Any) -> Sighting:
        known = [one for one in self.machines.values() if one.machine_id == fields["machine_id"]]
        if known:
            return known[0]
        return super().add(**fields, instance_id=f"i-{os.urandom(8).hex()}")


def _count_writes(context: Context, steps: Steps) -> None:
    plain = context.db

    async def counted(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if method.__name__ not in _WRITES:
            return await plain(method, *args, **kwargs)
        result = await plain(method, *args, **kwargs)
        steps.pass_by(f"wrote: {method.__name__}")
        return result

    context.db = counted  # type: ignore[method-assign]


async def _fill(directory: Path, technique: str) -> None:
    if technique != "cold":
        async with rig(directory / "store", fleet=FileFleet(directory / "ec2", Steps()), clock=_clock()) as r:
            await r.fill()


def _clock(s: float = 0.0) -> Clock:
    clock = Clock()
    clock.advance(s)
    return clock


def _plans(technique: str) -> list[Any]:
    return [] if technique == "cold" else [plan()]


async def _live(directory: Path, technique: str, steps: Steps) -> None:
    """Take a lease, and end it by its time."""
    fleet, clock = FileFleet(directory / "ec2", steps), _clock()
    async with rig(directory / "store", fleet=fleet, clock=clock, plans=_plans(technique)) as r:
        _count_writes(r.context, steps)
        await r.look_up()
        lease = await r.ready(await r.take("auto", ttl_s=_TTL_S, key="the-key"))
        clock.advance(_TTL_S + 1)
        await r.leases.tick()
        await r.tower.tick()
        assert r.lease(lease.id).state is LeaseState.ENDED


async def _after(directory: Path, technique: str) -> dict[str, Any]:
    """The service after the killed one: what it makes of it, at once and after the lease's time."""
    fleet, clock = FileFleet(directory / "ec2", Steps()), _clock(200)
    async with rig(directory / "store", fleet=fleet, clock=clock, plans=_plans(technique)) as r:
        await r.engine._take_up_pools()
        await r.leases.resume()
        await r.until(lambda: all(lease.state not in _MOVING for lease in _leases(r)))
        await r.until(lambda: not r.leases._works)
        found = [lease.state.value for lease in _leases(r)]
        # Whoever lost the answer asks again with the same key: there is never a second lease for it.
        again = await r.ready(await r.take("auto", ttl_s=_TTL_S, key="the-key"))
        for _ in range(4):
            clock.advance(150)
            await r.leases.tick()
            await r.tower.tick()
        live = {one.machine_id for one in fleet.machines.values() if not one.is_gone}
        waiting = {machine.id for machine in r.machines(MachineState.READY, MachineState.FILLING)}
        return {
            "found": found,
            "leases": len(_leases(r)),
            "again": again.state.value,
            "states": [lease.state.value for lease in _leases(r)],
            "leaked": sorted(live - waiting),
            "lost": sorted(waiting - live),
        }


def _leases(r: Rig) -> list[Any]:
    return list(r.store.leases().leases)


def _in_child(work: Callable[[], None]) -> int:
    """The wait status of a fork that does this."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def _walk(root: Path, technique: str) -> None:
    template = root / f"{technique}-template"
    template.mkdir()
    assert _in_child(lambda: asyncio.run(_fill(template, technique))) == 0
    count = root / "count"

    def rehearse(directory: Path) -> None:
        steps = Steps()
        asyncio.run(_live(directory, technique, steps))
        count.write_text(json.dumps(steps.names))

    rehearsal = root / f"{technique}-rehearsal"
    shutil.copytree(template, rehearsal)
    assert _in_child(lambda: rehearse(rehearsal)) == 0
    names = json.loads(count.read_text())
    for fatal in range(1, len(names) + 1):
        directory = root / f"{technique}-{fatal}"
        shutil.copytree(template, directory)

        def one(directory: Path = directory, fatal: int = fatal) -> None:
            asyncio.run(_live(directory, technique, Steps(fatal)))

        status = _in_child(one)
        result = directory / "result"

        def look(directory: Path = directory, result: Path = result) -> None:
            result.write_text(json.dumps(asyncio.run(_after(directory, technique))))

        after = _in_child(look)
        about = {"technique": technique, "step": fatal, "name": names[fatal - 1]}
        outcome = json.loads(result.read_text()) if after == 0 else {"error": after}
        print(json.dumps({**about, "killed": os.WIFSIGNALED(status), **outcome}), flush=True)


def main() -> None:
    root = Path(sys.argv[1])
    for technique in ("warm-running", "cold"):
        _walk(root, technique)


if __name__ == "__main__":
    main()

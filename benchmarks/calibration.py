"""What the harness itself adds: the error of t3 and t4, API calls and CPU time per attempt, by attempts in
flight.

    .venv/bin/python benchmarks/calibration.py [--attempts 60] [--in-flight 1 10 20]
    .venv/bin/python benchmarks/calibration.py --attempts 100 --in-flight 1 10 50

Machines are stand-ins that know when they opened their port, when they answered and when they said yes; the
API is moto's, over HTTP, in another process. The error of t3 is how long the port was open until a connect
succeeded ("connect", of which the pace of the connects alone is 0 to 10 ms), and how long the answer was out
until it was read ("answer"). That of t4 is from the key's last check, which holds the check of the signature,
to t4. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import stand_ins

from harness.run.lag import LagMeter, short_pauses
from instant_env.cloud.instances import Market
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.tags import Role
from instant_env.launch.guest import GuestReadError
from instant_env.launch.launch import Launch
from instant_env.launch.launcher import Launcher
from instant_env.launch.login_check import PrivateKeyLogin
from instant_env.launch.techniques import LaunchSpec, PoolSlot, Prepared
from instant_env.launch.techniques.cold import Cold
from instant_env.launch.timeline import MarkName, Outcome
from instant_env.user_data import UserData

#: Of the project, p99 with 20 in flight on two cores.
TARGET_MS = 15.0


@dataclass
class Calibration:
    """Errors in ms, one each attempt that was ok, and what the harness took."""

    in_flight: int
    t3_ms: list[float] = field(default_factory=list)
    connect_ms: list[float] = field(default_factory=list)
    answer_ms: list[float] = field(default_factory=list)
    t4_ms: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    cpu_s: float = 0.0
    took_s: float = 0.0

    @property
    def attempts(self) -> int:
        return len(self.t3_ms) + len(self.failures)

    @property
    def calls_per_attempt(self) -> float:
        return sum(self.calls.values()) / self.attempts

    def as_json(self) -> dict[str, Any]:
        return {
            "in_flight": self.in_flight,
            "attempts": self.attempts,
            "failures": self.failures,
            "t3_error_ms": _figures(self.t3_ms),
            "t3_of_it_connect_ms": _figures(self.connect_ms),
            "t3_of_it_answer_ms": _figures(self.answer_ms),
            "t4_error_ms": _figures(self.t4_ms),
            "harness_lag_ms": _figures(self.lag_ms),
            "of_it_prober_lag_ms": _figures(self.late_ms),
            "api_calls_per_attempt": round(self.calls_per_attempt, 2),
            "api_calls": self.calls,
            "cpu_ms_per_attempt": round(self.cpu_s * 1000 / self.attempts, 1),
            "took_s": round(self.took_s, 1),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


def _figures(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    named = {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99), "max": max(values)}
    return {name: round(value, 2) for name, value in named.items()}


#: Made once: it takes a millisecond, and what is measured is the launch.
_PUBLIC_KEY = KeyPair.generate().public_key


def _order(number: int) -> LaunchSpec:
    return LaunchSpec(
        run_id="calibration", name=f"calibration-{number}", role=Role.BENCH, instance_type="m7i.large",
        key_name="", security_group_id="", market=Market.ON_DEMAND, user_data=UserData(ttl_s=3600),
        expires_at=datetime.now(UTC) + timedelta(hours=1), client_token=f"calibration-{number}",
        public_key=_PUBLIC_KEY,
    )  # fmt: skip


@dataclass
class Measured:
    """One launch and how late the loop was meanwhile, as harness.run.attempt has them."""

    launch: Launch
    lag: LagMeter = field(default_factory=LagMeter)
    trouble: str = ""

    @property
    def lag_ms(self) -> float:
        return max(self.lag.worst_ms, self.launch.probes.worst_late_ns / 1e6)


async def _one(launcher: Launcher, prepared: Prepared, key: KeyPair, number: int) -> Measured:
    technique, slot = Cold(), PoolSlot()
    measured = Measured(launcher.launch(technique, prepared, _order(number), slot))
    login = PrivateKeyLogin(prepared.username, key.for_asyncssh())
    async with measured.lag.measuring():
        await launcher.follow(measured.launch, login)
    if measured.launch.outcome is Outcome.OK:
        try:
            await login.report()
        except GuestReadError as error:  # a stand-in that does not answer what guests are asked
            measured.trouble = str(error)
        finally:
            login.close()
    else:
        measured.trouble = f"{measured.launch.outcome}: {measured.launch.error}"
    await launcher.end(technique, measured.launch.instance_id, slot)
    return measured


def calibrate(
    in_flight: int, attempts: int, *, boot_s: tuple[float, float] = (2.0, 4.0), seed: int = 1
) -> Calibration:
    """Run attempts, so many at a time, of machines that open their port ``boot_s`` after their launch."""
    if attempts > stand_ins.MOST:
        raise ValueError(f"at most {stand_ins.MOST} attempts: each has an address of its own")
    generator = random.Random(seed)  # noqa: S311 - the same instants each time
    result = Calibration(in_flight)
    boots = [generator.uniform(*boot_s) for _ in range(attempts)]
    with (
        tempfile.TemporaryDirectory() as directory,
        stand_ins.machines() as machines,
        stand_ins.cloud(Path(directory), machines.port) as cloud,
    ):
        prepared = Prepared(cloud.ec2.register_image(Name="stand-in")["ImageId"], "stand-in")
        cloud.ec2.describe_instances()  # loads what it takes, as the harness's own first calls do
        placement = stand_ins.Placement(machines, pending_s=0.5, boot_s=boots)
        placement.register(cloud.ec2)
        key = KeyPair.generate()

        async def work() -> list[Measured]:
            slots = asyncio.Semaphore(in_flight)

            async def limited(number: int, launcher: Launcher) -> Measured:
                async with slots:
                    return await _one(launcher, prepared, key, number)

            async with Launcher(cloud, timeout_s=60.0) as launcher:
                measurements = [limited(number, launcher) for number in range(attempts)]
                try:
                    return await asyncio.gather(*measurements)
                finally:
                    result.cpu_s += launcher.cpu_s

        began, cpu_s = time.monotonic(), time.process_time()
        with short_pauses():
            measurements = asyncio.run(work())
        result.took_s = time.monotonic() - began
        result.cpu_s += time.process_time() - cpu_s
        result.calls = dict(placement.calls)
        for measured in measurements:
            if measured.trouble:
                result.failures.append(measured.trouble)
                continue
            launch = measured.launch
            truth = machines.truths[placement.addresses[launch.instance_id]]
            marks, t0_ns = launch.timeline.marks, launch.timeline.t0_ns
            result.connect_ms.append(marks[MarkName.T3_TCP].ms - (truth.listening_ns - t0_ns) / 1e6)
            result.answer_ms.append(marks[MarkName.T3].ms - (truth.answered_ns - t0_ns) / 1e6)
            result.t3_ms.append(result.connect_ms[-1] + result.answer_ms[-1])
            result.t4_ms.append(marks[MarkName.T4].ms - (truth.authenticated_ns - t0_ns) / 1e6)
            result.lag_ms.append(measured.lag_ms)
            result.late_ms.append(launch.probes.worst_late_ns / 1e6)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--attempts", type=int, default=60)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 10, 20])
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    results = [calibrate(in_flight, arguments.attempts) for in_flight in arguments.in_flight]
    about = {
        "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "kernel": platform.release(), "python": platform.python_version(),
        "load_at_start": round(load, 2), "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "target_p99_ms": TARGET_MS,
    }  # fmt: skip
    print(json.dumps({**about, "calibration": [one.as_json() for one in results]}, indent=2))
    return 1 if any(one.failures for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What an admission costs in the service's store: limits, idempotency key, lease, claim and events in one
transaction that is on the disk when it returns.

    .venv/bin/python benchmarks/store.py [--claims 2000] [--threads 1 12] [--directory DIR]

Each client is a thread with an idempotency key for each request; one pool has a machine for each. `commit`
is the floor: one row in a transaction of its own, by the same connection settings. `processor_ms` is of the
whole process, for each claim. Prints one JSON object; the disk below --directory (default: the temporary one)
and other work on the machine decide the times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import insert

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.public_key import PublicKey
from instant_env.service.records import (
    Candidate,
    Idempotency,
    LeaseRequest,
    Machine,
    MachineState,
    Scope,
    Token,
    new_id,
)
from instant_env.service.store import schema
from instant_env.service.store.protocol import Limits
from instant_env.service.store.rows import values_of
from instant_env.service.store.sqlite import SqliteStore

NOW = datetime.now(UTC)
POOL, IMAGE, TYPE = "warm-running-custom-init", "ami-0123456789abcdef0", "m7i.large"
KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIJbIYrzPzeVZ8fAIdPY0aEPGYbR0YXdtV3P8qQ5mVYqN"


def waiting_machine() -> Machine:
    name = new_id("mc")
    return Machine(
        id=name, state=MachineState.READY, technique="warm-running", arch=Arch.X86_64, instance_type=TYPE,
        image_id=IMAGE, market=Market.ON_DEMAND, client_token=name, created_at=NOW,
        expires_at=NOW + timedelta(hours=12), pool=POOL, instance_id=f"i-{name[-17:]}", address="192.0.2.7",
        username="debian", host_keys=(f"ssh-ed25519 {KEY}",), ready_at=NOW, usd_per_hour=0.1,
    )  # fmt: skip


def figures(times_ms: list[float], seconds: float, processor_s: float) -> dict[str, float]:
    """Rate, median and 99th percentile (nearest rank)."""
    ordered = sorted(times_ms)
    p99 = ordered[min(len(ordered) - 1, -(-99 * len(ordered) // 100) - 1)]
    return {
        "n": len(ordered), "per_second": round(len(ordered) / seconds, 1),
        "p50_ms": round(statistics.median(ordered), 2), "p99_ms": round(p99, 2),
        "max_ms": round(ordered[-1], 2), "processor_ms": round(1000 * processor_s / len(ordered), 2),
    }  # fmt: skip


def measure(count: int, threads: int, call: Callable[[int], object]) -> dict[str, float]:
    """``call(number)`` for each number below ``count``, by this many threads."""
    times: list[float] = []

    def timed(number: int) -> None:
        began = time.perf_counter()
        call(number)
        times.append((time.perf_counter() - began) * 1000)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: None, range(threads)))  # the threads are there
        began, used = time.perf_counter(), time.process_time()
        list(pool.map(timed, range(count)))
        return figures(times, time.perf_counter() - began, time.process_time() - used)


def claims(directory: Path, count: int, threads: int) -> dict[str, float]:
    store = SqliteStore.open(directory / f"store-{threads}.db")
    with store.writing() as connection:
        connection.execute(insert(schema.machines), [values_of(waiting_machine()) for _ in range(count + 1)])
    token = Token("tk-1", "benchmark", "0" * 64, frozenset({Scope.LEASE}), NOW)
    request = LeaseRequest(
        PublicKey("ssh-ed25519", KEY), "auto", Arch.X86_64, TYPE, Market.ON_DEMAND, ttl_s=3600
    )
    candidate = Candidate("warm-running", pool=POOL, image_id=IMAGE, basis="service", usd_per_hour=0.1)
    limits = Limits(leases=10 * count, usd_per_hour=1e6, service_usd_per_hour=1e9)

    def admit(number: int) -> None:
        outcome = store.admit(
            token, request, (candidate,),
            limits=limits, idempotency=Idempotency(f"key-{number}", "fingerprint"), now=datetime.now(UTC),
        )  # fmt: skip
        if outcome.machine is None:
            raise RuntimeError("a claim came to nothing")

    admit(-1)
    try:
        return measure(count, threads, admit)
    finally:
        store.close()


def commits(directory: Path, count: int) -> dict[str, float]:
    connection = sqlite3.connect(directory / "floor.db", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE rows (number INTEGER)")
    try:
        return measure(count, 1, lambda number: connection.execute("INSERT INTO rows VALUES (?)", (number,)))
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--claims", type=int, default=2000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 12])
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        load = os.getloadavg()[0]
        result: dict[str, object] = {"commit": commits(directory, arguments.claims)}
        for threads in arguments.threads:
            result[f"claims, {threads} threads"] = claims(directory, arguments.claims, threads)
    result["machine"] = {
        "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version, "load": round(load, 1),
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

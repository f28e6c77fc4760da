"""Which technique is predicted to be the fastest, by what, and what an answer says of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.service.fleet import TYPE
from support.service.rig import rig

from instant_env.arch import Arch
from instant_env.launch import estimates
from instant_env.launch.estimates import Estimate
from instant_env.service.engine.selection import predict, quantile
from instant_env.service.records import LaunchSample, Source

AT = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


def sample(ms: float, technique: str = "custom-init", *, ok: bool = True, age_s: float = 0) -> LaunchSample:
    return LaunchSample(technique, Arch.X86_64, TYPE, Source.COLD, AT - timedelta(seconds=age_s), ms, ok)


def estimate(technique: str, p90_ms: float) -> Estimate:
    return Estimate(technique, Arch.X86_64, TYPE, p90_ms, 10, "local", "run.csv", "2026-11-30T00:00:00Z")


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [([1.0], 0.9, 1.0), ([1.0, 2.0], 0.5, 1.0), ([*range(1, 11)], 0.9, 9.0), ([3.0, 1.0], 1.0, 3.0)],
)  # fmt: skip
def test_quantiles_are_of_the_nearest_rank(values: list[float], q: float, expected: float) -> None:
    assert quantile(values, q) == expected


def test_own_launches_count_before_a_benchmark_and_a_benchmark_before_nothing() -> None:
    own = [sample(ms) for ms in (100, 200, 300, 400, 500)]
    guess = predict(own, estimate("custom-init", 9000))
    assert (guess.ms, guess.basis, guess.n) == (500, "service", 5)
    guess = predict(own[:4], estimate("custom-init", 9000))
    assert (guess.ms, guess.basis, guess.n) == (9000, "benchmark", 10)
    assert predict(own[:4], None).basis == "static"


def test_failures_count_as_slow_ones() -> None:
    fine = [sample(100) for _ in range(9)]
    assert predict(fine, None).ms == 100
    failed = [sample(5, ok=False), sample(5, ok=False), *fine[:8]]
    assert predict(failed, None).ms == 300


def test_a_slow_pool_loses_to_a_fast_cold_launch(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path / "s") as r:
            await r.fill()
            now = r.clock.now()
            for technique, ms in (
                ("warm-running", 5000),
                ("custom-init", 900),
                ("minimal-ami", 9000),
                ("cold", 40000),
            ):
                for _ in range(5):
                    r.store.add_sample(
                        LaunchSample(technique, Arch.X86_64, TYPE, Source.COLD, now, ms, ok=True)
                    )
            views = await r.engine.techniques(r.token, None, None)
            assert [(view.name, view.available) for view in views][:3] == [
                ("custom-init", True), ("warm-running", True), ("minimal-ami", True),
            ]  # fmt: skip
            lease = await r.ready(await r.take())
            assert lease.technique == "custom-init"
            assert lease.selection is not None
            assert (lease.selection.predicted_ms, lease.selection.basis) == (900, "service")
            assert [one["technique"] for one in lease.selection.alternatives] == [
                "warm-running", "minimal-ami", "cold",
            ]  # fmt: skip

    asyncio.run(scenario())


def test_without_measurements_of_all_the_order_is_fixed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path / "s") as r:
            await r.fill()
            for _ in range(5):
                r.store.add_sample(
                    LaunchSample("cold", Arch.X86_64, TYPE, Source.COLD, r.clock.now(), 1.0, ok=True)
                )
            lease = await r.ready(await r.take())
            assert lease.technique == "warm-running"
            assert lease.selection is not None
            assert lease.selection.basis == "static"

    asyncio.run(scenario())


def test_a_claim_is_a_sample_for_the_next_choice(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path / "s") as r:
            await r.fill()
            await r.ready(await r.take())
            await r.engine._measure()
            (found,) = r.store.samples("warm-running", Arch.X86_64, TYPE, since=AT - timedelta(days=1))
            assert (found.ms, found.ok, found.source) == (60.0, True, Source.POOL)
            assert [view.technique for view in await r.engine.percentiles(r.token)] == ["warm-running"]

    asyncio.run(scenario())


def test_estimates_are_kept_by_cloud_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    path = estimates.path_in(tmp_path)
    assert estimates.read(path) == []
    estimates.record(path, [estimate("cold", 40000), estimate("custom-init", 900)])
    estimates.record(path, [estimate("cold", 50000)])
    assert {e.technique: e.p90_ms for e in estimates.read(path, "local")} == {
        "cold": 50000,
        "custom-init": 900,
    }
    assert estimates.read(path, "aws") == []
    path.write_text('{"version": 1, "estimates": [{"technique": 1}]}', encoding="utf-8")
    assert estimates.read(path) == []

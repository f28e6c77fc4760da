"""Which technique serves a request, and why: by this service's own launches, else by a benchmark's, else in a
fixed order.

The predicted time of a technique is the 0.9 quantile of its launches; failures count as the time that they
took. One that was much slower than predicted, or failed, raises the prediction at once, because the newest
launch counts like all others and the quantile is a high one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.launch.estimates import Estimate
from instant_env.service.engine.context import Context
from instant_env.service.records import Candidate, LaunchSample, LeaseRequest, Source

#: Without measurements: what needs least comes first.
STATIC_ORDER = (
    "warm-running", "warm-hibernated", "warm-stopped", "custom-init", "minimal-ami", "cold",
)  # fmt: skip
#: Fewer launches than this say nothing about a quantile.
MIN_SAMPLES = 5
_SAMPLES = 50
_KEPT_S = 3600.0
_SAMPLES_AGE = timedelta(days=7)
#: A failure counts at least as much as this many times the slowest success.
_FAILURE_FACTOR = 3.0
_QUANTILE = 0.9


@dataclass(frozen=True)
class Prediction:
    """``ms`` None: nothing was measured."""

    ms: float | None
    basis: str
    n: int


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest-rank quantile of one value or more."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * q) - 1)]


def predict(samples: Sequence[LaunchSample], estimate: Estimate | None) -> Prediction:
    """From own launches (newest first) when there are enough, else from a benchmark."""
    if len(samples) >= MIN_SAMPLES:
        slowest = max((sample.ms for sample in samples if sample.ok), default=0.0)
        times = [sample.ms if sample.ok else max(sample.ms, _FAILURE_FACTOR * slowest) for sample in samples]
        return Prediction(round(quantile(times, _QUANTILE), 3), "service", len(samples))
    if estimate is not None:
        return Prediction(estimate.p90_ms, "benchmark", estimate.n)
    return Prediction(None, "static", 0)


@dataclass(frozen=True)
class PoolOffer:
    """What a pool would give a request now: see :class:`~instant_env.service.records.Candidate`."""

    name: str
    technique: str
    arch: Arch
    instance_type: str
    image_id: str
    born_after: datetime


class Selector:
    """Puts the ways to serve a request in order."""

    def __init__(self, context: Context, estimates: Sequence[Estimate]) -> None:
        self._context = context
        self._predictions: dict[tuple[str, Arch, str], tuple[float, Prediction]] = {}
        self._learned = 0
        self._new_samples: deque[LaunchSample] = deque(maxlen=_SAMPLES)
        self._estimates = {(e.technique, e.arch, e.instance_type): e for e in estimates}

    async def prediction(self, technique: str, arch: Arch, instance_type: str) -> Prediction:
        """Read from the store once, and again when there is a new sample or an hour has passed."""
        key = (technique, arch, instance_type)
        known = self._predictions.get(key)
        if known is None or self._context.monotonic() - known[0] > _KEPT_S:
            learned = self._learned
            known = self._context.monotonic(), await self._predict(technique, arch, instance_type)
            if learned == self._learned:  # else a sample has come while the others were read
                self._predictions[key] = known
        return known[1]

    def learn(self, sample: LaunchSample) -> None:
        """Note a launch; :meth:`keep` writes it. Of many within seconds the newest are enough."""
        self._new_samples.append(sample)

    async def keep(self) -> None:
        """Write what was noted: the next prediction counts it."""
        context = self._context
        while self._new_samples:
            sample = self._new_samples.popleft()
            await context.db(context.store.add_sample, sample)
            self._learned += 1
            self._predictions.pop((sample.technique, sample.arch, sample.instance_type), None)

    async def _predict(self, technique: str, arch: Arch, instance_type: str) -> Prediction:
        context = self._context
        since = context.now() - _SAMPLES_AGE
        samples = await context.db(
            context.store.samples, technique, arch, instance_type, since=since, limit=_SAMPLES
        )
        return predict(samples, self._estimates.get((technique, arch, instance_type)))

    async def candidates(
        self, request: LeaseRequest, pools: Sequence[PoolOffer], *, without: frozenset[str] = frozenset()
    ) -> list[Candidate]:
        """What may serve the request, best first. ``without``: techniques that have just failed cold.

        A technique that was named stands alone, or first where a fallback is allowed.
        """
        ways = [*self._of_pools(request, pools), *self._of_images(request, without)]
        ordered = await self._in_order(request, ways)
        if request.technique == "auto":
            return ordered
        named = [way for way in ordered if way.technique == request.technique]
        others = [way for way in ordered if way.technique != request.technique]
        return [*named, *others] if request.fallback else named

    def _of_pools(self, request: LeaseRequest, pools: Sequence[PoolOffer]) -> list[Candidate]:
        """A pool's machines are on demand: a one-time spot machine cannot wait."""
        if request.market is Market.SPOT:
            return []
        price = self._context.catalogue.usd_per_hour.get((request.instance_type, Market.ON_DEMAND), 0.0)
        return [
            Candidate(
                technique=pool.technique, pool=pool.name, image_id=pool.image_id,
                born_after=pool.born_after, usd_per_hour=price,
            )
            for pool in pools
            if (pool.arch, pool.instance_type) == (request.arch, request.instance_type)
        ]  # fmt: skip

    def _of_images(self, request: LeaseRequest, without: frozenset[str]) -> list[Candidate]:
        catalogue = self._context.catalogue
        price = catalogue.usd_per_hour.get((request.instance_type, request.market), 0.0)
        return [
            Candidate(technique=technique, image_id=offer.image_id, usd_per_hour=price)
            for technique in STATIC_ORDER
            if technique not in without
            and (offer := catalogue.offers.get((technique, request.arch, request.instance_type))) is not None
        ]

    async def _in_order(self, request: LeaseRequest, ways: Sequence[Candidate]) -> list[Candidate]:
        """By predicted time where each has one, else in the fixed order: times of some say nothing about the
        others. Within a technique, pools that are alike stay in the settings' order."""
        predicted = []
        for way in ways:
            guess = await self.prediction(way.technique, request.arch, request.instance_type)
            predicted.append(replace(way, predicted_ms=guess.ms, basis=guess.basis, n=guess.n))
        if all(way.predicted_ms is not None for way in predicted):
            return sorted(predicted, key=lambda way: way.predicted_ms or 0.0)
        return sorted(predicted, key=lambda way: STATIC_ORDER.index(way.technique))


def sample_of(
    request: LeaseRequest, technique: str, source: Source, at: datetime, ms: float, *, ok: bool
) -> LaunchSample:
    return LaunchSample(
        technique=technique, arch=request.arch, instance_type=request.instance_type, source=source, at=at,
        ms=round(ms, 3), ok=ok,
    )  # fmt: skip

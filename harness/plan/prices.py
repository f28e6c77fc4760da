"""What a run costs, from the prices of its machines.

An estimate: machines by the second and at least a minute (EC2 bills Linux so, at each start), and as long a
public address and a root volume of the usual size. Traffic and larger volumes are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.plan.experiment import Cell, Experiment
from instant_env.cloud import prices
from instant_env.cloud.instances import Market, default_market
from instant_env.cloud.prices import MIN_BILLED_S, Price
from instant_env.cloud.session import Cloud
from instant_env.launch.techniques import find_technique

#: For the estimate before the start: how long a machine lives, from its launch to its end, when all goes
#: well. Filling a place of a pool is a machine's life and a stop on top.
_USUAL_S = 120.0
_USUAL_FILL_S = 240.0
#: The root of AL2023's AMIs.
_ROOT_GIB = 8


@dataclass(frozen=True)
class Prices:
    """Prices of what an experiment launches, by type and market. ``unknown``: types that nobody knows."""

    per_hour: dict[tuple[str, Market], Price] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    beside_usd_per_hour: float = 0.0
    """What each machine has beside itself."""

    def cost_usd(self, instance_type: str, market: Market, *lives_s: float) -> float | None:
        """Of machines that lived so long, each start by itself; None when there is no price."""
        price = self.per_hour.get((instance_type, market))
        if price is None:
            return None
        billed_s = sum(max(MIN_BILLED_S, life_s) for life_s in lives_s)
        return billed_s * (price.usd_per_hour + self.beside_usd_per_hour) / 3600

    def usual_usd(self, cloud: Cloud, cell: Cell) -> float:
        """What an attempt is likely to cost; 0 without a price."""
        lives = (_USUAL_FILL_S, _USUAL_S) if find_technique(cell.technique).hands_over_key else (_USUAL_S,)
        return self.cost_usd(cell.instance_type, market_of(cloud, cell), *lives) or 0.0

    def worst_usd(self, cloud: Cloud, cell: Cell, timeout_s: float) -> float:
        """What an attempt costs that runs into its deadline, its filling too; 0 without a price."""
        lives = [timeout_s + MIN_BILLED_S] * (2 if find_technique(cell.technique).hands_over_key else 1)
        # Where spot has no capacity, it is on demand.
        markets = {market_of(cloud, cell), Market.ON_DEMAND}
        return max(self.cost_usd(cell.instance_type, market, *lives) or 0.0 for market in markets)

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {
                "instance_type": kind,
                "market": market.value,
                "usd_per_hour": price.usd_per_hour,
                "source": price.source,
            }
            for (kind, market), price in self.per_hour.items()
        ]


@dataclass(frozen=True)
class Estimate:
    """Of a whole run: ``likely_usd`` when all goes well, ``worst_usd`` when every attempt times out."""

    likely_usd: float
    worst_usd: float
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        if self.unknown:
            return f"no price known of {', '.join(self.unknown)}"
        if not self.worst_usd:
            return "costs nothing: these are machines of localec2"
        return f"about ${self.likely_usd:.2f}, at most ${self.worst_usd:.2f}"


def market_of(cloud: Cloud, cell: Cell) -> Market:
    """The market that a cell's machines are asked for in."""
    if find_technique(cell.technique).on_demand_only:
        return Market.ON_DEMAND
    return cell.market or cell.usual_market or default_market(cloud)


def estimate(cloud: Cloud, experiment: Experiment, price_list: Prices) -> Estimate:
    each = experiment.iterations + experiment.warm_up
    return Estimate(
        likely_usd=each * sum(price_list.usual_usd(cloud, cell) for cell in experiment.cells),
        worst_usd=each
        * sum(price_list.worst_usd(cloud, cell, experiment.timeout_s) for cell in experiment.cells),
        unknown=price_list.unknown,
    )


def find(cloud: Cloud, cells: Sequence[Cell]) -> Prices:
    """The prices for these cells. Never fails: what nobody can tell is in ``unknown``."""
    pairs = {(cell.instance_type, market_of(cloud, cell)) for cell in cells}
    price_of = prices.find(cloud, pairs)
    unknown = tuple(sorted({kind for kind, market in pairs if (kind, market) not in price_of}))
    return Prices(price_of, unknown, prices.beside_usd_per_hour(cloud, _ROOT_GIB))

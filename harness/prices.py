"""What machines cost: asked of AWS before the start, else from a dated table; in localec2 nothing.

An estimate: machines' time alone, by the second and at least a minute (EC2 bills Linux so, at each start).
Volumes, addresses and traffic of machines that live for minutes come to cents in a thousand attempts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from harness.experiment import Cell, Experiment
from instant_env.cloud.instances import Market, default_market
from instant_env.cloud.session import Cloud
from instant_env.launch.techniques import find_technique
from instant_env.settings import CloudName

#: EC2 bills a start for a minute at least.
MIN_BILLED_S = 60.0

#: For the estimate before the start: how long a machine lives, from its launch to its end, when all goes
#: well. Filling a place of a pool is a machine's life and a stop on top.
_USUAL_S = 120.0
_USUAL_FILL_S = 240.0

_TABLE = Path(__file__).parent / "prices.json"

#: The Pricing API is served from few regions; this one knows the prices of all.
_PRICING_REGION = "us-east-1"


@dataclass(frozen=True)
class Price:
    """USD per hour, and where that is from."""

    usd_per_hour: float
    source: str


@dataclass(frozen=True)
class Prices:
    """Prices of what an experiment launches, by type and market. ``unknown``: types that nobody knows."""

    known: dict[tuple[str, Market], Price] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def cost_usd(self, instance_type: str, market: Market, *lives_s: float) -> float | None:
        """Of machines that lived so long, each start by itself; None when there is no price."""
        price = self.known.get((instance_type, market))
        if price is None:
            return None
        return sum(max(MIN_BILLED_S, life_s) for life_s in lives_s) * price.usd_per_hour / 3600

    def usual_usd(self, cloud: Cloud, cell: Cell) -> float:
        """What an attempt is likely to cost; 0 without a price."""
        lives = (_USUAL_FILL_S, _USUAL_S) if find_technique(cell.technique).hands_over_key else (_USUAL_S,)
        return self.cost_usd(cell.instance_type, market_of(cloud, cell), *lives) or 0.0

    def worst_usd(self, cloud: Cloud, cell: Cell, timeout_s: float) -> float:
        """What an attempt costs that runs into its deadline, its filling too; 0 without a price."""
        lives = [timeout_s + MIN_BILLED_S] * (2 if find_technique(cell.technique).hands_over_key else 1)
        return self.cost_usd(cell.instance_type, market_of(cloud, cell), *lives) or 0.0

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {
                "instance_type": kind,
                "market": market.value,
                "usd_per_hour": price.usd_per_hour,
                "source": price.source,
            }
            for (kind, market), price in self.known.items()
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
    return cell.market or default_market(cloud)


def estimate(cloud: Cloud, experiment: Experiment, prices: Prices) -> Estimate:
    each = experiment.iterations + experiment.warm_up
    return Estimate(
        likely_usd=each * sum(prices.usual_usd(cloud, cell) for cell in experiment.cells),
        worst_usd=each
        * sum(prices.worst_usd(cloud, cell, experiment.timeout_s) for cell in experiment.cells),
        unknown=prices.unknown,
    )


def find(cloud: Cloud, cells: Sequence[Cell]) -> Prices:
    """The prices for these cells. Never fails: what nobody can tell is in ``unknown``.

    A spot launch may end on demand, so both prices of its type are asked for.
    """
    wanted = {(cell.instance_type, market_of(cloud, cell)) for cell in cells}
    wanted |= {(kind, Market.ON_DEMAND) for kind, _ in wanted}
    if cloud.name is CloudName.LOCAL:
        return Prices({one: Price(0.0, "localec2") for one in wanted})
    known: dict[tuple[str, Market], Price] = {}
    for kind in sorted({kind for kind, _ in wanted}):
        on_demand = _asked(cloud, kind) or _from_table(kind)
        if on_demand is None:
            continue
        known[kind, Market.ON_DEMAND] = on_demand
        if (kind, Market.SPOT) in wanted:  # never dearer than on demand
            known[kind, Market.SPOT] = _spot(cloud, kind) or on_demand
    return Prices(known, tuple(sorted({kind for kind, market in wanted if (kind, market) not in known})))


def _asked(cloud: Cloud, kind: str) -> Price | None:
    """The Pricing API's answer (API reference, GetProducts); None when it cannot be asked or says nothing."""
    filters = {
        "instanceType": kind,
        "regionCode": cloud.region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    try:
        session = boto3.Session(profile_name=cloud.settings.profile, region_name=_PRICING_REGION)
        answer = session.client("pricing").get_products(
            ServiceCode="AmazonEC2",
            Filters=[{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in filters.items()],
        )
        return _of_products(answer["PriceList"])
    except (BotoCoreError, ClientError):
        return None


def _of_products(price_list: Sequence[Any]) -> Price | None:
    """The lowest on-demand price per hour in GetProducts' answer, a list of JSON texts."""
    found = []
    for text in price_list:
        product = json.loads(text)
        for term in product.get("terms", {}).get("OnDemand", {}).values():
            for dimension in term.get("priceDimensions", {}).values():
                if dimension.get("unit") == "Hrs" and (usd := float(dimension["pricePerUnit"]["USD"])) > 0:
                    found.append(usd)
    return Price(min(found), f"Pricing API, {datetime.now(UTC):%Y-%m-%d}") if found else None


def _from_table(kind: str) -> Price | None:
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    usd = table["usd_per_hour"].get(kind)
    return Price(usd, f"table of {table['as_of']} for {table['region']}") if usd else None


def _spot(cloud: Cloud, kind: str) -> Price | None:
    """The highest of the zones' current spot prices: which zone it will be is not known yet."""
    try:
        history = cloud.ec2.describe_spot_price_history(
            InstanceTypes=[kind],  # type: ignore[list-item]
            ProductDescriptions=["Linux/UNIX"],
            StartTime=datetime.now(UTC),
        )["SpotPriceHistory"]
    except (BotoCoreError, ClientError):
        return None
    prices = [float(item["SpotPrice"]) for item in history]
    return Price(max(prices), f"DescribeSpotPriceHistory, {datetime.now(UTC):%Y-%m-%d}") if prices else None

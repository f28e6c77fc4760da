"""What machines and disks cost: by AWS's Pricing API, else a dated table; in localec2 nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.instances import Market
from instant_env.cloud.session import Cloud
from instant_env.settings import CloudName

#: EC2 bills a start of a Linux machine by the second, and for a minute at least.
MIN_BILLED_S = 60.0

_HOURS_PER_MONTH = 730.0
_TABLE = Path(__file__).parent / "prices.json"

#: The Pricing API is served from few regions; this one knows the prices of all.
_PRICING_REGION = "us-east-1"


@dataclass(frozen=True)
class Price:
    """USD per hour, and where that is from."""

    usd_per_hour: float
    source: str


def find(cloud: Cloud, cells: Iterable[tuple[str, Market]]) -> dict[tuple[str, Market], Price]:
    """Prices by type and market; unknown ones are missing. Never fails.

    A spot launch may end on demand, so both prices of its type are looked up.
    """
    pairs = set(cells)
    pairs |= {(kind, Market.ON_DEMAND) for kind, _ in pairs}
    if cloud.name is CloudName.LOCAL:
        return {pair: Price(0.0, "localec2") for pair in pairs}
    price_of: dict[tuple[str, Market], Price] = {}
    for kind in sorted({kind for kind, _ in pairs}):
        on_demand = _price_from_api(cloud, kind) or _from_table(kind)
        if on_demand is None:
            continue
        price_of[kind, Market.ON_DEMAND] = on_demand
        if (kind, Market.SPOT) in pairs:  # never dearer than on demand
            price_of[kind, Market.SPOT] = _spot(cloud, kind) or on_demand
    return price_of


def storage_usd_per_gib_month(cloud: Cloud, what: str) -> float:
    """Of ``gp3`` volumes or standard ``snapshot`` storage; from the table."""
    if cloud.name is CloudName.LOCAL:
        return 0.0
    return float(json.loads(_TABLE.read_text(encoding="utf-8"))["usd_per_gib_month"][what])


def beside_usd_per_hour(cloud: Cloud, size_gib: float) -> float:
    """What a machine has beside it: a public IPv4 address, and gp3 volumes of this size. From the table."""
    if cloud.name is CloudName.LOCAL:
        return 0.0
    address = float(json.loads(_TABLE.read_text(encoding="utf-8"))["usd_per_hour_of_public_ipv4"])
    return address + size_gib * storage_usd_per_gib_month(cloud, "gp3") / _HOURS_PER_MONTH


def _price_from_api(cloud: Cloud, kind: str) -> Price | None:
    """The Pricing API's answer (API reference, GetProducts); None when it does not answer or has none."""
    filters = {
        "instanceType": kind,
        "regionCode": cloud.region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    try:
        session = cloud.session or boto3.Session(profile_name=cloud.settings.profile)
        pricing = session.client("pricing", region_name=_PRICING_REGION, endpoint_url=cloud.endpoint_url)
        answer = pricing.get_products(
            ServiceCode="AmazonEC2",
            Filters=[{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in filters.items()],
        )
        return _of_products(answer["PriceList"])
    except (BotoCoreError, ClientError):
        return None


def _of_products(price_list: Sequence[Any]) -> Price | None:
    """The lowest on-demand price per hour in GetProducts' answer, a list of JSON texts."""
    prices: list[float] = []
    for text in price_list:
        product = json.loads(text)
        for term in product.get("terms", {}).get("OnDemand", {}).values():
            prices.extend(
                usd
                for dimension in term.get("priceDimensions", {}).values()
                if dimension.get("unit") == "Hrs" and (usd := float(dimension["pricePerUnit"]["USD"])) > 0
            )
    return Price(min(prices), f"Pricing API, {datetime.now(UTC):%Y-%m-%d}") if prices else None


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

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import NoCredentialsError
from support.harness_cloud import Ec2Faults, cloud_in_process

from harness.plan import prices
from harness.plan.experiment import Cell, Experiment
from harness.plan.prices import Prices
from instant_env.arch import Arch
from instant_env.cloud import prices as cloud_prices
from instant_env.cloud.instances import Market
from instant_env.cloud.prices import Price
from instant_env.settings import CloudName

COLD = Cell("cold", Arch.X86_64, "m7i.large")
POOL = Cell("warm-stopped", Arch.X86_64, "m7i.large")
TABLE = Prices(
    {("m7i.large", Market.ON_DEMAND): Price(3.6, "test"), ("m7i.large", Market.SPOT): Price(0.36, "test")}
)


def test_each_start_is_billed_for_a_minute_at_least() -> None:
    assert TABLE.cost_usd("m7i.large", Market.ON_DEMAND, 10.0) == pytest.approx(0.06)
    assert TABLE.cost_usd("m7i.large", Market.ON_DEMAND, 100.0, 10.0) == pytest.approx(0.16)
    assert TABLE.cost_usd("c7i.large", Market.ON_DEMAND, 10.0) is None


def test_a_machine_has_an_address_and_a_volume_beside_itself(tmp_path: Path) -> None:
    dear = dataclasses.replace(TABLE, beside_usd_per_hour=0.36)
    assert dear.cost_usd("m7i.large", Market.SPOT, 100.0) == pytest.approx(100 * (0.36 + 0.36) / 3600)
    with cloud_in_process(tmp_path, 22, Ec2Faults(), name=CloudName.AWS) as cloud:
        # $0.005 an hour (https://aws.amazon.com/vpc/pricing/), and 8 GiB of gp3 at $0.08 a month.
        assert prices.find(cloud, []).beside_usd_per_hour == pytest.approx(0.005 + 8 * 0.08 / 730)
    with cloud_in_process(tmp_path / "local", 22, Ec2Faults()) as cloud:
        assert prices.find(cloud, []).beside_usd_per_hour == 0


def test_a_pool_is_on_demand_and_pays_for_its_filling(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, 22, Ec2Faults(), name=CloudName.AWS) as cloud:
        cold = TABLE.worst_usd(cloud, COLD, 600.0)
        pool = TABLE.worst_usd(cloud, POOL, 600.0)
        assert cold == pytest.approx(660 * 3.6 / 3600), "where spot has no capacity, it is on demand"
        assert pool == pytest.approx(2 * 660 * 3.6 / 3600)
        experiment = Experiment((COLD, POOL), iterations=10, seed=1, timeout_s=600.0)
        told = prices.estimate(cloud, experiment, TABLE)
        assert told.worst_usd == pytest.approx(10 * (cold + pool))
        assert 0 < told.likely_usd < told.worst_usd


def test_without_the_pricing_api_there_is_a_dated_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_prices, "_price_from_api", lambda *_: None)
    strange = Cell("cold", Arch.X86_64, "x9z.large")
    with cloud_in_process(tmp_path, 22, Ec2Faults(), name=CloudName.AWS) as cloud:
        found = prices.find(cloud, [COLD, strange])
        told = prices.estimate(
            cloud, Experiment((COLD, strange), iterations=1, seed=1, timeout_s=60.0), found
        )
    price = found.per_hour["m7i.large", Market.ON_DEMAND]
    assert price.usd_per_hour > 0
    assert "table of 20" in price.source
    assert found.unknown == ("x9z.large",)
    assert str(told) == "no price known of x9z.large"


def test_the_pricing_apis_answer_is_read() -> None:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "0.1008000000"}}
    product = {"terms": {"OnDemand": {"a": {"priceDimensions": {"b": dimension}}}}}
    free = {
        "terms": {"OnDemand": {"a": {"priceDimensions": {"b": {**dimension, "pricePerUnit": {"USD": "0"}}}}}}
    }
    price = cloud_prices._of_products([json.dumps(free), json.dumps(product)])
    assert price is not None
    assert price.usd_per_hour == 0.1008
    assert cloud_prices._of_products([]) is None


def test_localec2_costs_nothing(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        found = prices.find(cloud, [COLD])
        experiment = Experiment((COLD,), iterations=1, seed=1, timeout_s=60.0)
        assert "costs nothing" in str(prices.estimate(cloud, experiment, found))


def test_the_pricing_api_is_where_all_services_are(tmp_path: Path) -> None:
    """With an endpoint of its own a cloud sends nothing to AWS, and nothing signed by its keys."""
    urls: list[str] = []
    with cloud_in_process(tmp_path, 22, Ec2Faults(), name=CloudName.AWS) as cloud:
        session = boto3.Session("key", "secret", region_name="eu-west-1")

        def record(request: Any, **_: Any) -> None:
            urls.append(request.url)
            raise NoCredentialsError  # nothing is sent, and nothing is tried again

        session.events.register("before-send.pricing", record)
        elsewhere = dataclasses.replace(cloud, session=session, endpoint_url="http://127.0.0.1:9/")
        cloud_prices.find(elsewhere, [("m7i.large", Market.ON_DEMAND)])
    assert urls == ["http://127.0.0.1:9/"]

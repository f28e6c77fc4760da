"""Spot and on demand: what a run asks for, what it gets, and that mixtures are said."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.harness_cloud import Ec2Faults, SshHost, cloud_in_process, register_image
from support.harness_rows import race, row, write_run

from harness.figures.compare import compare_runs
from harness.plan import planning
from harness.plan.arguments import Request, read
from harness.plan.prices import market_of
from harness.run.runner import BenchResult, carry_out
from instant_env.arch import Arch
from instant_env.cloud.images import parameter_name
from instant_env.cloud.instances import Market
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, tag_list
from instant_env.errors import UsageError
from instant_env.settings import CloudName

NO_ROLE = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"


def bench(cloud: Cloud, lines: list[str], **flags: object) -> BenchResult:
    about = {"recipe": "minimal", "base": "debian-12", "base-ami": "ami-1", "login-user": "admin"}
    ami = register_image(cloud, "minimal")
    cloud.ec2.create_tags(Resources=[ami], Tags=tag_list("b", Role.IMAGE, name="minimal", extra=about))
    name = parameter_name("minimal", Arch.X86_64)
    cloud.ssm.put_parameter(Name=name, Value=ami, Type="String", Overwrite=True)
    request = Request(techniques=("minimal-ami",), seed=7, timeout_s=60, **flags)  # type: ignore[arg-type]
    settings, planner = read(request, cloud.settings)
    return carry_out(settings, planner, progress=lines.append, open_cloud=lambda *_: cloud)


def asked_for(faults: Ec2Faults) -> list[str]:
    return ["spot" if "InstanceMarketOptions" in body else "on-demand" for body in faults.run_bodies]


@pytest.mark.parametrize("code", [NO_ROLE, "MaxSpotInstanceCountExceeded"])
def test_an_account_without_spot_machines_is_measured_on_demand_and_told_once(
    tmp_path: Path, code: str
) -> None:
    faults, lines = Ec2Faults(launch_errors=[code]), list[str]()
    with (
        SshHost().serving() as ssh,
        cloud_in_process(tmp_path, ssh.port, faults, name=CloudName.AWS) as cloud,
    ):
        result = bench(cloud, lines, iterations=3)
    assert [one.outcome for one in result.rows] == ["ok"] * 3
    assert [one.market for one in result.rows] == ["on-demand"] * 3
    assert asked_for(faults) == ["spot", "on-demand", "on-demand", "on-demand"], "spot is asked for once"
    (warning,) = [line for line in lines if "no spot machines" in line]
    assert code in warning
    assert ("--spot-role" in warning) == (code == NO_ROLE)
    first, second, third = (one.note or "" for one in result.rows)
    assert first == f"spot: {code}, on demand instead"
    assert second == third == f"on demand, because earlier in this run spot was refused: {code}"


def test_spot_that_is_short_for_a_moment_is_asked_for_again(tmp_path: Path) -> None:
    faults, lines = Ec2Faults(launch_errors=["InsufficientInstanceCapacity"]), list[str]()
    with (
        SshHost().serving() as ssh,
        cloud_in_process(tmp_path, ssh.port, faults, name=CloudName.AWS) as cloud,
    ):
        result = bench(cloud, lines, iterations=2)
    assert asked_for(faults) == ["spot", "on-demand", "spot"]
    assert [one.market for one in result.rows] == ["on-demand", "spot"]
    assert not [line for line in lines if "no spot machines" in line]
    assert any("differs in market: minimal-ami: on-demand, spot" in line for line in lines)


@pytest.mark.parametrize("market", Market)
def test_the_market_can_be_chosen_and_a_run_that_goes_on_keeps_it(tmp_path: Path, market: Market) -> None:
    faults = Ec2Faults()
    with (
        SshHost().serving() as ssh,
        cloud_in_process(tmp_path, ssh.port, faults, name=CloudName.AWS) as cloud,
    ):
        result = bench(cloud, [], iterations=1, market=market.value)
        before = planning.metadata_of(result.csv_path)
        resumed = planning.of_interrupted(cloud, before, result.csv_path)
        assert {market_of(cloud, cell) for cell in resumed.experiment.cells} == {market}
    assert asked_for(faults) == [market]
    assert [(one.market, one.variant) for one in result.rows] == [(market, None)]


def test_an_unknown_market_is_refused_and_an_experiment_has_its_own(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        with pytest.raises(UsageError, match="--market cheap: no such market") as error:
            read(Request(market="cheap"), cloud.settings)
        assert "spot, on-demand" in error.value.hint
        with pytest.raises(UsageError, match="--market"):
            read(Request(market="spot", experiment="experiments/spot.yml"), cloud.settings)


def test_two_runs_in_different_markets_are_compared_with_a_word_of_it(tmp_path: Path) -> None:
    for name, market in (("a", "spot"), ("b", "on-demand")):
        rows = [row(one.technique, one.t4_ms, block=one.block, market=market) for one in race(cold=40_000.0)]
        write_run(tmp_path / f"{name}.csv", rows)
    cautions = compare_runs(tmp_path, "a", "b").cautions
    assert any("differs in market: A cold: spot; B cold: on-demand" in one for one in cautions)

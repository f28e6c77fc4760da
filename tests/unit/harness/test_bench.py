"""Whole runs: moto for the API, real SSH servers for the machines, the CSV read back."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, IncompleteReadError
from support.harness_cloud import Ec2Faults, SshHost, cloud_in_process, free_port, register_image, states

from harness.plan.arguments import Request, read
from harness.results_file import read_rows
from harness.run.runner import BenchResult, BenchStopped, Watch, carry_out
from instant_env.arch import Arch
from instant_env.cloud.images import parameter_name
from instant_env.cloud.session import Cloud, CloudError
from instant_env.cloud.tags import Role, tag_list
from instant_env.errors import UsageError
from instant_env.launch.cloud_config import timer_config


def bake(cloud: Cloud, recipe: str, base_ami: str) -> str:
    """What a bake leaves: an AMI with our tags, and the parameter that names it."""
    about = {"recipe": recipe, "base": "debian-12", "base-ami": base_ami, "login-user": "admin"}
    ami = register_image(cloud, f"{recipe}-of-{base_ami}")
    cloud.ec2.create_tags(Resources=[ami], Tags=tag_list("bake-run", Role.IMAGE, name=recipe, extra=about))
    name = parameter_name(recipe, Arch.X86_64)
    cloud.ssm.put_parameter(Name=name, Value=ami, Type="String", Overwrite=True)
    return ami


def run(
    cloud: Cloud, lines: list[str] | None = None, *, max_usd: float | None = None, watch: Watch | None = None,
    **flags: Any,
) -> BenchResult:  # fmt: skip
    """What ``invoke bench`` does with these flags."""
    values: dict[str, Any] = {"iterations": 2, "arch": "x86_64", "seed": 7, "timeout_s": 60}
    progress = (lines if lines is not None else []).append
    settings, planner = read(Request(**(values | flags)), cloud.settings)
    return carry_out(
        settings, planner, max_usd=max_usd, progress=progress, watch=watch, open_cloud=lambda *_: cloud
    )


def kill_when_launched(faults: Ec2Faults, machines: int, number: signal.Signals) -> None:
    """Send ourselves the signal when so many machines were launched and followed for a moment."""

    def work() -> None:
        deadline = time.monotonic() + 60.0
        while len(faults.launched_ns) < machines and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    threading.Thread(target=work).start()


def assert_nothing_left(cloud: Cloud) -> None:
    assert set(states(cloud)) <= {"terminated"}
    assert cloud.ec2.describe_key_pairs()["KeyPairs"] == []
    groups = cloud.ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupName"] for group in groups} == {"default"}


def test_race_of_three(tmp_path: Path) -> None:
    faults, lines = Ec2Faults(), list[str]()
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, faults) as cloud:
        base = register_image(cloud)
        minimal, custom = bake(cloud, "minimal", base), bake(cloud, "custom-init", base)
        result = run(cloud, lines=lines, name="race")
        assert_nothing_left(cloud)
    rows = read_rows(result.csv_path)
    assert tuple(rows) == result.rows
    assert [row.outcome for row in rows] == ["ok"] * 6
    assert {row.technique: row.ami for row in rows} == {
        "cold": base, "minimal-ami": minimal, "custom-init": custom,
    }  # fmt: skip
    assert all(row.t1_ms < row.t2_ms and row.t3_ms < row.t4_ms for row in rows)  # type: ignore[operator]
    assert all(row.t2_t4_ms == pytest.approx(row.t4_ms - row.t2_ms) for row in rows)  # type: ignore[operator]
    assert len({row.instance_id for row in rows}) == 6
    assert ssh.usernames == ["admin"] * 6

    bodies = {body["ImageId"]: body for body in faults.run_bodies}
    colds = base64.b64decode(bodies[base]["UserData"]).decode()
    assert colds == timer_config(
        json.loads(base64.b64decode(bodies[custom]["UserData"]))["instant-env"]["ttl_s"]
    )
    assert json.loads(base64.b64decode(bodies[custom]["UserData"]))["instant-env"]["ttl_s"] >= 1800
    tags = {tag["Key"]: tag["Value"] for tag in bodies[custom]["TagSpecifications"][0]["Tags"]}
    assert tags["instant-env:role"] == "bench"
    assert tags["instant-env:expires-at"]

    about = json.loads(result.metadata_path.read_text())
    assert (about["status"], about["seed"], about["attempts_done"]) == ("finished", 7, 6)
    assert about["order"] == [row.technique for row in rows]
    assert about["techniques"]["custom-init"]["ami"] == custom
    assert [name for name in ("cold", "minimal-ami", "custom-init") if name in about["order"][:3]] == sorted(
        about["order"][:3], key=["cold", "minimal-ami", "custom-init"].index
    )
    assert [t.technique for t in result.summary.techniques] == ["cold", "minimal-ami", "custom-init"]
    assert len([line for line in lines if "t4" in line]) == 6
    assert result.failures == 0


def test_failures_are_rows_and_the_run_goes_on(tmp_path: Path) -> None:
    faults = Ec2Faults(launch_errors=["InsufficientInstanceCapacity", "VcpuLimitExceeded"])
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, faults) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        result = run(cloud)
        assert_nothing_left(cloud)
    assert [row.outcome for row in result.rows] == ["capacity", "launch_error", "ok", "ok"]
    assert result.rows[0].t1_ms is None
    assert result.rows[0].instance_id is None
    assert result.failures == 2


def test_a_cloud_that_does_not_answer_between_attempts_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look for leftovers fails for good, before the first attempt; the run's end looks again."""
    monkeypatch.setattr("instant_env.cloud.session._RETRY_PAUSES_S", (0.0, 0.0, 0.0))
    faults, lines = Ec2Faults(describe_errors=["InternalError"] * 4), list[str]()
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, faults) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        ended: list[Any] = []
        cloud.ec2.meta.events.register(
            "provide-client-params.ec2.TerminateInstances", lambda params, **_: ended.append(params)
        )
        result = run(cloud, lines=lines, iterations=1, techniques=("minimal-ami",))
        assert_nothing_left(cloud)
    assert [row.outcome for row in result.rows] == ["ok"]
    assert [line for line in lines if line.startswith("warning: whether a machine of the run is left")]
    # An attempt's machine has nothing to lose: EC2 need not wait for its shutdown.
    assert ended[0]["SkipOsShutdown"] is True


def test_copies_that_stay_are_warnings_and_cost_no_row(tmp_path: Path) -> None:
    """EC2 refuses to let go of what an attempt copied; its image expires, and `clean` takes it."""
    path = tmp_path / "first.yml"
    path.write_text(
        "{name: first, about: why, techniques: minimal-ami, options: {fresh_copy: true}, n: 2, seed: 7}"
    )

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "InvalidSnapshot.InUse", "Message": "used"}}, "DeleteSnapshot")

    lines: list[str] = []
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        cloud.ec2.meta.events.register("before-call.ec2.DeregisterImage", refuse)
        cloud.ec2.meta.events.register("before-call.ec2.DescribeSnapshots", refuse)  # at the run's end
        settings, planner = read(Request(experiment=str(path)), cloud.settings)
        result = carry_out(settings, planner, progress=lines.append, open_cloud=lambda *_: cloud)
        assert_nothing_left(cloud)
    assert [row.outcome for row in result.rows] == ["ok", "ok"]
    assert json.loads(result.metadata_path.read_text())["status"] == "finished"
    warnings = [line for line in lines if line.startswith("warning")]
    assert len([line for line in warnings if "is not gone yet" in line]) == 2
    assert len([line for line in warnings if "run: invoke clean" in line]) == 1


@pytest.mark.slow
def test_machine_that_never_answers_is_a_row_and_is_ended(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, free_port(), Ec2Faults()) as cloud:
        bake(cloud, "custom-init", register_image(cloud))
        result = run(cloud, techniques=("custom-init",), iterations=1, timeout_s=3)
        assert_nothing_left(cloud)
    assert [row.outcome for row in result.rows] == ["ssh_refused"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle(tmp_path: Path, number: signal.Signals) -> None:
    faults = Ec2Faults()
    with cloud_in_process(tmp_path, free_port(), faults) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        before = signal.getsignal(number)
        kill_when_launched(faults, 1, number)
        with pytest.raises(BenchStopped) as caught:
            run(cloud, timeout_s=60)
        assert signal.getsignal(number) == before
        assert_nothing_left(cloud)
    assert caught.value.exit_code == 128 + number
    (csv_path,) = (tmp_path / "results").glob("*.csv")
    assert str(csv_path) in caught.value.hint
    (row,) = read_rows(csv_path)
    assert row.outcome == "interrupted"
    assert number.name in (row.error or "")
    assert row.instance_id is not None
    assert json.loads(csv_path.with_suffix(".json").read_text())["status"] == "stopped"


def test_machine_whose_id_never_reached_us_is_ended_too(tmp_path: Path) -> None:
    """RunInstances launches, and of its answer half is lost on the way, for which nothing is repeated."""
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        events = cloud.ec2.meta.events

        def lose(**_: Any) -> None:
            events.unregister("after-call.ec2.RunInstances", lose)
            raise IncompleteReadError(actual_bytes=100, expected_bytes=200)

        events.register("after-call.ec2.RunInstances", lose)
        result = run(cloud, techniques=("minimal-ami",))
        assert len(states(cloud)) == 2
        assert_nothing_left(cloud)
    assert [row.outcome for row in result.rows] == ["launch_error", "ok"]
    assert "200" in (result.rows[0].error or "")


def test_cloud_that_goes_away_is_one_line_with_a_way_out(tmp_path: Path) -> None:
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))

        def gone(**_: Any) -> None:
            raise EndpointConnectionError(endpoint_url="https://ec2")

        cloud.ec2.meta.events.register("before-call.ec2.TerminateInstances", gone)
        with pytest.raises(CloudError, match="Could not connect") as caught:
            run(cloud)
    assert "invoke clean" in caught.value.hint
    (csv_path,) = (tmp_path / "results").glob("*.csv")
    assert [row.outcome for row in read_rows(csv_path)] == ["ok"]
    assert json.loads(csv_path.with_suffix(".json").read_text())["status"] == "failed"


def test_which_techniques_run(tmp_path: Path) -> None:
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        with pytest.raises(UsageError, match="no x86_64 AMI") as caught:
            run(cloud)
        assert "invoke bake --arch x86_64 --recipe" in caught.value.hint
        with pytest.raises(UsageError, match="unknown technique 'hot'"):
            run(cloud, techniques=("hot",))
        with pytest.raises(UsageError, match="no minimal AMI"):
            run(cloud, techniques=("minimal-ami",))
        with pytest.raises(UsageError, match="ami-0 is not an AMI for x86_64 baked by instant-env"):
            run(cloud, ami="ami-0")
        with pytest.raises(UsageError, match="cannot name a file"):
            run(cloud, name="../x")
        old = bake(cloud, "minimal", register_image(cloud))
        bake(cloud, "minimal", old)
        with pytest.raises(UsageError, match="not arm64"):
            run(cloud, instance_type="m7i.large", arch="arm64", ami="latest", techniques=("cold",))
        result = run(cloud, ami=old, iterations=1)
        assert {row.technique: row.ami for row in result.rows}["minimal-ami"] == old
        assert len(result.rows) == 2
        assert [path.name for path in (tmp_path / "results").glob("*.csv")] == [result.csv_path.name]


def test_base_that_is_gone_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        bake(cloud, "minimal", "ami-00000000000000000")
        with pytest.raises(UsageError, match="is gone") as caught:
            run(cloud)
    assert "invoke bake" in caught.value.hint


def test_amis_of_different_bases_are_pointed_out(tmp_path: Path) -> None:
    lines: list[str] = []
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        bake(cloud, "custom-init", register_image(cloud, "newer-stock"))
        run(cloud, techniques=("cold", "minimal-ami", "custom-init"), iterations=1, lines=lines)
    assert any("another base" in line for line in lines)


@pytest.mark.slow
def test_three_in_flight_and_all_of_them_are_ended(tmp_path: Path) -> None:
    faults = Ec2Faults(pending_s=3.0)  # longer than the launches are apart
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, faults) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        result = run(cloud, iterations=3, parallel=3)
        assert_nothing_left(cloud)
    assert [row.outcome for row in result.rows] == ["ok"] * 6
    assert sorted(row.attempt for row in result.rows) == [1, 2, 3, 4, 5, 6]
    assert max(row.in_flight for row in result.rows) == 3


@pytest.mark.slow
def test_stopped_with_three_in_flight(tmp_path: Path) -> None:
    faults = Ec2Faults()
    with cloud_in_process(tmp_path, free_port(), faults) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        kill_when_launched(faults, 3, signal.SIGINT)
        with pytest.raises(BenchStopped):
            run(cloud, iterations=3, parallel=3, timeout_s=60)
        assert_nothing_left(cloud)
    (csv_path,) = (tmp_path / "results").glob("*.csv")
    rows = read_rows(csv_path)
    assert [row.outcome for row in rows] == ["interrupted"] * 3
    assert len({row.instance_id for row in rows}) == 3


def test_a_place_that_cannot_be_filled_is_a_row_and_leaves_nothing(tmp_path: Path) -> None:
    faults = Ec2Faults(launch_errors=["InsufficientInstanceCapacity"])
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, faults) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        result = run(cloud, techniques=("warm-running",))
        assert_nothing_left(cloud)
    first, second = result.rows
    assert first.outcome == "launch_error"
    assert "filling its slot" in (first.error or "")
    assert "InsufficientInstanceCapacity" in (first.error or "")
    assert second.outcome == "ok"
    assert second.t2_ms == second.t1_ms
    assert result.fillings["warm-running"]["places"] == 1
    roles = [
        {tag["Key"]: tag["Value"] for tag in body["TagSpecifications"][0]["Tags"]}["instant-env:role"]
        for body in faults.run_bodies
    ]
    assert roles == ["pool", "pool"]


def test_a_key_is_new_to_a_machine_of_a_pool(tmp_path: Path) -> None:
    sent: list[str] = []
    faults = Ec2Faults()
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, faults) as cloud:
        bake(cloud, "minimal", register_image(cloud))

        def note(params: dict[str, Any], **_: Any) -> None:
            sent.append(params["SSHPublicKey"])

        events = cloud.instance_connect.meta.events  # type: ignore[attr-defined]
        events.register("before-parameter-build.ec2-instance-connect.SendSSHPublicKey", note)
        imported: list[bytes] = []
        cloud.ec2.meta.events.register(
            "before-parameter-build.ec2.ImportKeyPair",
            lambda params, **_: imported.append(params["PublicKeyMaterial"]),
        )
        result = run(cloud, techniques=("warm-running",))
    assert [row.outcome for row in result.rows] == ["ok", "ok"]
    # Two fills prove themselves by keys of their own, and each attempt gets another one.
    assert len({*sent, imported[0].decode()}) == 5
    assert [body.get("KeyName") for body in faults.run_bodies] == [None, None]

"""What goes out again by itself, what does not, and what is said of it: by the clients that AWS gets."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.localec2_served import inject_fault as fault

from instant_env.arch import Arch
from instant_env.cloud import handover, instances
from instant_env.cloud.instances import LaunchRequest, Market
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.launching import refusals, repeats
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, new_run_id
from instant_env.launch.techniques import LaunchSpec, PoolSlot, Prepared, find_technique
from instant_env.launch.techniques.base import run_instance
from instant_env.launch.techniques.warm_stopped import WarmStopped
from instant_env.user_data import UserData

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

FREE_PLAN = (
    "The specified instance type is not eligible for Free Tier. For a list of Free Tier instance types, run "
    "describe-instance-types with the filter free-tier-eligible=true."
)
CAPACITY = "InsufficientInstanceCapacity"
LATER = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def sent(as_aws: Cloud) -> Counter[str]:
    """How often each action went out, by all clients, repeats of botocore's included."""
    counts: Counter[str] = Counter()
    clients: list[Any] = [*as_aws.ec2_clients(), as_aws.instance_connect]
    for client in clients:
        client.meta.events.register(
            "before-send", lambda event_name, **_: counts.update([event_name.rpartition(".")[2]])
        )
    return counts


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses of the repeats, which are not slept through."""
    slept: list[float] = []
    stand_in = SimpleNamespace(sleep=slept.append, monotonic=time.monotonic)
    monkeypatch.setattr(repeats, "time", stand_in)
    return slept


def request(served: Served, **more: Any) -> LaunchRequest:
    values: dict[str, Any] = {
        "image_id": served.register(), "instance_type": "m7i.large", "run_id": "r1", "role": Role.BENCH,
        "name": "n", "expires_at": LATER, "client_token": new_run_id(),
    }  # fmt: skip
    return LaunchRequest(**values | more)


def spec(market: Market) -> LaunchSpec:
    return LaunchSpec(
        run_id="r1", name="n", role=Role.BENCH, instance_type="m7i.large", key_name="", security_group_id="",
        market=market, expires_at=LATER, user_data=UserData(ttl_s=1800), client_token=new_run_id(),
        public_key=KeyPair.generate().public_key,
    )  # fmt: skip


def test_a_launch_without_capacity_goes_out_once(
    served: Served, as_aws: Cloud, sent: Counter[str], pauses: list[float]
) -> None:
    """EC2 answers it with HTTP 500, which botocore by itself repeats."""
    fault(served, kind="error", action="RunInstances", code=CAPACITY, times=20)
    with pytest.raises(ClientError) as error:
        instances.launch(as_aws, request(served))
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
    assert sent["RunInstances"] == 1
    assert pauses == []


def test_spot_without_capacity_is_two_requests(
    served: Served, as_aws: Cloud, sent: Counter[str], pauses: list[float]
) -> None:
    fault(served, kind="error", action="RunInstances", code=CAPACITY, times=1)
    launched = run_instance(as_aws, Prepared(served.register(), "admin"), spec(Market.SPOT), user_data=None)
    assert launched.market is Market.ON_DEMAND
    assert sent["RunInstances"] == 2
    assert launched.note == f"spot: {CAPACITY}, on demand instead"
    assert pauses == []


def test_a_builder_that_looks_for_room_asks_once_in_each_place(
    served: Served, as_aws: Cloud, sent: Counter[str], pauses: list[float]
) -> None:
    fault(served, kind="error", action="RunInstances", code=CAPACITY, times=3)
    instances.launch_where_there_is_room(
        as_aws, request(served), instances.builder_types(as_aws, Arch.X86_64, ()), lambda _: None
    )
    assert sent["RunInstances"] == 4
    assert pauses == []


@pytest.mark.parametrize("code", ["RequestLimitExceeded", "InternalError", "Unavailable"])
def test_a_throttled_launch_is_repeated_and_the_attempt_says_so(
    served: Served, as_aws: Cloud, sent: Counter[str], pauses: list[float], code: str
) -> None:
    fault(served, kind="error", action="RunInstances", code=code, times=2)
    launched = run_instance(
        as_aws, Prepared(served.register(), "admin"), spec(Market.ON_DEMAND), user_data=None
    )
    assert sent["RunInstances"] == 3
    assert launched.note.startswith("RunInstances went out 3 times in ")
    assert launched.note.endswith(f" s: {code}")
    assert [round(pause) for pause in pauses] in ([0, 1], [1, 1], [0, 0])


def test_an_answer_that_was_lost_is_asked_for_again_and_is_of_the_same_machine(
    served: Served, as_aws: Cloud, pauses: list[float]
) -> None:
    fault(served, kind="drop", action="RunInstances", when="after")
    answer = instances.launch_and_tell(as_aws, request(served))
    assert "ConnectionClosedError" in answer.note
    machines = [i for r in served.ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    assert [machine["InstanceId"] for machine in machines] == [answer.value]
    assert len(pauses) == 1


def test_repeats_end_and_the_error_tells_of_them(
    served: Served, as_aws: Cloud, sent: Counter[str], pauses: list[float]
) -> None:
    fault(served, kind="error", action="RunInstances", code="RequestLimitExceeded", times=50)
    with pytest.raises(ClientError, match="RequestLimitExceeded") as error:
        instances.launch(as_aws, request(served))
    assert sent["RunInstances"] == 6
    assert sum(pauses) <= 15.5
    assert "RunInstances went out 6 times in " in repeats.words(error.value)


def test_another_refusal_is_not_repeated(
    served: Served, as_aws: Cloud, sent: Counter[str], pauses: list[float]
) -> None:
    fault(served, kind="error", action="RunInstances", code="VcpuLimitExceeded", times=5)
    with pytest.raises(ClientError) as error:
        instances.launch(as_aws, request(served))
    assert sent["RunInstances"] == 1
    assert repeats.words(error.value) == str(error.value)
    assert pauses == []


def test_the_calls_that_start_a_machine_that_sleeps_say_what_was_repeated(
    served: Served, as_aws: Cloud, sent: Counter[str], pauses: list[float]
) -> None:
    machine = instances.launch(as_aws, request(served))
    served.ec2.stop_instances(InstanceIds=[machine])
    served.ec2.get_waiter("instance_stopped").wait(
        InstanceIds=[machine], WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    technique = find_technique("minimal-ami+warm-stopped")
    assert isinstance(technique, WarmStopped)
    fault(served, kind="error", action="ModifyInstanceAttribute", code="RequestLimitExceeded", times=1)
    fault(served, kind="error", action="StartInstances", code="InternalError", times=2)
    launched = technique.launch(
        as_aws, Prepared("ami-1", "admin"), spec(Market.ON_DEMAND), PoolSlot(instance_id=machine)
    )
    first, second = launched.note.split("; ")
    assert first.startswith("ModifyInstanceAttribute went out 2 times")
    assert second.startswith("StartInstances went out 3 times")
    fault(served, kind="error", action="StartInstances", code=CAPACITY, times=20)
    sent.clear()
    with pytest.raises(ClientError, match=CAPACITY):
        instances.start(as_aws, machine)
    assert sent["StartInstances"] == 1


def test_a_key_that_instance_connect_throttles_is_sent_again(
    served: Served, as_aws: Cloud, sent: Counter[str], pauses: list[float]
) -> None:
    machine = instances.launch(as_aws, request(served))
    served.ec2.get_waiter("instance_running").wait(
        InstanceIds=[machine], WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    fault(served, kind="error", action="SendSSHPublicKey", code="ThrottlingException", times=1)
    note = handover.by_instance_connect(as_aws, machine, "admin", KeyPair.generate().public_key)
    assert note.startswith("SendSSHPublicKey went out 2 times")
    assert sent["SendSSHPublicKey"] == 2


def test_a_poll_that_is_throttled_slows_no_other_call(
    served: Served, as_aws: Cloud, sent: Counter[str], pauses: list[float]
) -> None:
    """The adaptive limiter of botocore would slow every later call of the same client."""
    machine = instances.launch(as_aws, request(served))
    fault(served, kind="error", action="DescribeInstances", code="RequestLimitExceeded", times=2)
    description = instances.describe(as_aws, machine)
    assert description is not None
    assert sent["DescribeInstances"] == 3
    modes: dict[str, Any] = {
        name: client.meta.config.retries  # type: ignore[attr-defined]
        for name, client in (
            ("launches", as_aws.ec2_once),
            ("polls", as_aws.ec2_polls),
            ("others", as_aws.ec2),
        )
    }
    once = {"mode": "standard", "total_max_attempts": 1}
    assert (modes["launches"], modes["polls"]) == (once, once)
    assert modes["others"]["mode"] == "adaptive"


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        ("InvalidParameterCombination", FREE_PLAN, "m7i-flex.large"),
        ("PendingVerification", "", "verifying"),
        ("OptInRequired", "", "enable the region"),
        ("Blocked", "", "AWS Support"),
        ("VcpuLimitExceeded", "", "L-1216C47A"),
        ("InsufficientFreeAddressesInSubnet", "", "the subnet is full"),
        ("MissingInput", "No subnets found for the default VPC", "create-default-subnet"),
        ("InvalidParameterCombination", "another one", ""),
    ],
)
def test_a_refusal_says_what_to_do(code: str, message: str, words: str) -> None:
    error = ClientError({"Error": {"Code": code, "Message": message}}, "RunInstances")
    assert words in refusals.hint(error)
    assert bool(refusals.hint(error)) == bool(words)


def test_a_type_that_the_free_plan_refuses_is_looked_for_elsewhere(
    served: Served, as_aws: Cloud, sent: Counter[str]
) -> None:
    """Of the types that a builder may have, m7i-flex.large is one that the plan has."""
    types = instances.builder_types(as_aws, Arch.X86_64, ())
    fault(served, kind="error", action="RunInstances", code="InvalidParameterCombination", message=FREE_PLAN)
    machine = instances.launch_where_there_is_room(as_aws, request(served), types, lambda _: None)
    description = instances.describe(as_aws, machine)
    assert description is not None
    assert description["InstanceType"] == "m7i-flex.large"
    assert sent["RunInstances"] == 2, "no other zone is asked for a type that the plan does not have"

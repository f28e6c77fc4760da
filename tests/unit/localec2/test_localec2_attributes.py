"""What can be changed of an instance, its status checks, and how it is ended."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from support.localec2_served import launch, refused, state_of, volume_of
from support.patience import until

from instant_env.localec2.qemu import machine as qemu_machine

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


def stop(served: Served, instance_id: str) -> None:
    served.ec2.stop_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "stopped")


def test_user_data_changes_while_stopped_and_the_next_start_sees_it(served: Served) -> None:
    instance_id = launch(served, UserData="first")
    with refused("IncorrectInstanceState"):
        served.ec2.modify_instance_attribute(InstanceId=instance_id, UserData={"Value": b"second"})
    stop(served, instance_id)
    served.ec2.modify_instance_attribute(InstanceId=instance_id, UserData={"Value": b"second"})
    answer = served.ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="userData")
    assert base64.b64decode(answer["UserData"]["Value"]) == b"second"
    served.ec2.start_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "running")
    content = json.loads((served.state.layout.instances / instance_id / "metadata.json").read_text())
    assert base64.b64decode(content["user_data_base64"]) == b"second"


def test_the_type_changes_while_stopped(served: Served) -> None:
    instance_id = launch(served)
    stop(served, instance_id)
    with refused("InvalidParameterValue"):
        served.ec2.modify_instance_attribute(InstanceId=instance_id, InstanceType={"Value": "t4g.small"})
    served.ec2.modify_instance_attribute(InstanceId=instance_id, InstanceType={"Value": "m7i.large"})
    served.restart()
    found = served.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
    assert found["InstanceType"] == "m7i.large"


def test_a_volume_that_is_to_outlive_its_instance(served: Served) -> None:
    instance_id = launch(served)
    mapping: Any = {"DeviceName": "/dev/xvda", "Ebs": {"DeleteOnTermination": False}}
    with refused("InvalidInstanceAttributeValue"):
        served.ec2.modify_instance_attribute(
            InstanceId=instance_id, BlockDeviceMappings=[mapping | {"DeviceName": "/dev/sdz"}]
        )
    served.ec2.modify_instance_attribute(InstanceId=instance_id, BlockDeviceMappings=[mapping])
    described = served.ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="blockDeviceMapping")
    assert described["BlockDeviceMappings"][0]["Ebs"]["DeleteOnTermination"] is False
    volume_id = volume_of(served, instance_id)
    served.ec2.terminate_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "terminated")
    assert served.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]["State"] == "available"


def test_an_instance_that_is_protected(served: Served) -> None:
    instance_id = launch(served, DisableApiTermination=True, DisableApiStop=True)
    with refused("OperationNotPermitted"):
        served.ec2.terminate_instances(InstanceIds=[instance_id])
    with refused("OperationNotPermitted"):
        served.ec2.stop_instances(InstanceIds=[instance_id])
    served.restart()
    with refused("OperationNotPermitted"):
        served.ec2.terminate_instances(InstanceIds=[instance_id])
    served.ec2.modify_instance_attribute(InstanceId=instance_id, DisableApiTermination={"Value": False})
    served.ec2.terminate_instances(InstanceIds=[instance_id])


def test_one_attribute_at_a_time(served: Served) -> None:
    instance_id = launch(served)
    with refused("InvalidParameterCombination"):
        served.ec2.modify_instance_attribute(
            InstanceId=instance_id, DisableApiStop={"Value": True},
            InstanceInitiatedShutdownBehavior={"Value": "terminate"},
        )  # fmt: skip
    with refused("MissingParameter"):
        served.ec2.modify_instance_attribute(InstanceId=instance_id)


def test_status_checks_say_what_is_known(served: Served) -> None:
    lifecycle = served.services.lifecycle

    def statuses(**more: Any) -> dict[str, tuple[str, str, str]]:
        answer = served.ec2.describe_instance_status(**more)["InstanceStatuses"]
        return {
            item["InstanceId"]: (
                item["InstanceState"]["Name"], item["SystemStatus"]["Status"],
                item["InstanceStatus"]["Status"],
            )
            for item in answer
        }  # fmt: skip

    first, second = launch(served), launch(served)
    assert statuses() == dict.fromkeys((first, second), ("running", "ok", "insufficient-data"))
    lifecycle.hears_guests = True
    lifecycle.guest_spoke(first)
    assert statuses() == {first: ("running", "ok", "ok"), second: ("running", "ok", "initializing")}
    served.machine(first).standing_still = True
    assert statuses(InstanceIds=[first]) == {first: ("running", "ok", "impaired")}
    filters: Any = [{"Name": "instance-status.status", "Values": ["impaired"]}]
    assert list(statuses(Filters=filters)) == [first]
    stop(served, first)
    assert list(statuses()) == [second]
    assert statuses(IncludeAllInstances=True)[first] == ("stopped", "not-applicable", "not-applicable")
    served.ec2.start_instances(InstanceIds=[first])
    until(lambda: state_of(served, first) == "running")
    assert statuses(InstanceIds=[first]) == {first: ("running", "ok", "initializing")}
    with refused("InvalidInstanceID.NotFound"):
        statuses(InstanceIds=["i-00000000000000000"])


@pytest.mark.parametrize(
    ("call", "pressed"),
    [
        (lambda ec2, ids: ec2.stop_instances(InstanceIds=ids), True),
        (lambda ec2, ids: ec2.stop_instances(InstanceIds=ids, Force=True), False),
        (lambda ec2, ids: ec2.stop_instances(InstanceIds=ids, SkipOsShutdown=True), False),
        (lambda ec2, ids: ec2.terminate_instances(InstanceIds=ids), False),
        (lambda ec2, ids: ec2.terminate_instances(InstanceIds=ids, SkipOsShutdown=True), False),
        (lambda ec2, ids: ec2.terminate_instances(InstanceIds=ids, SkipOsShutdown=False), True),
    ],
)
def test_who_is_asked_before_the_plug_is_pulled(served: Served, call: Any, pressed: bool) -> None:
    instance_id = launch(served)
    machine = served.machine(instance_id)
    call(served.ec2, [instance_id])
    until(lambda: state_of(served, instance_id) in ("stopped", "terminated"))
    assert machine.guest_shutdown is pressed


def test_a_stop_that_the_guest_ignores_is_cut_short_by_force(served: Served) -> None:
    instance_id = launch(served)
    machine = served.machine(instance_id)
    machine.press_power_button = lambda: None  # type: ignore[method-assign]
    served.services.lifecycle.stop_timeout_s = 600.0
    served.ec2.stop_instances(InstanceIds=[instance_id])
    began = time.monotonic()
    served.ec2.stop_instances(InstanceIds=[instance_id], Force=True)
    until(lambda: state_of(served, instance_id) == "stopped")
    assert time.monotonic() - began < served.services.lifecycle.stop_timeout_s


def test_a_press_that_the_guest_misses_is_repeated(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that was logged in to a moment ago does not watch its power button yet."""
    monkeypatch.setattr(qemu_machine, "PRESS_AGAIN_S", 0.05)
    instance_id = launch(served)
    machine = served.machine(instance_id)
    presses: list[str] = []

    def press() -> None:
        presses.append("")
        if len(presses) == 3:
            machine.power_off(guest=True)

    machine.press_power_button = press  # type: ignore[method-assign]
    served.services.lifecycle.stop_timeout_s = 600.0
    served.ec2.stop_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "stopped")
    assert machine.guest_shutdown


def test_a_token_stands_for_the_whole_request(served: Served) -> None:
    arguments: Any = {"MinCount": 2, "MaxCount": 2, "ClientToken": "one"}
    image_id = served.register()
    run = served.ec2.run_instances
    first = run(ImageId=image_id, InstanceType="t3.micro", **arguments)
    served.restart()
    again = run(ImageId=image_id, InstanceType="t3.micro", **arguments)
    assert [i["InstanceId"] for i in again["Instances"]] == [i["InstanceId"] for i in first["Instances"]]
    assert again["ReservationId"] == first["ReservationId"]
    for change in (
        {"MaxCount": 3}, {"DisableApiTermination": True}, {"UserData": "x"},
        {"MetadataOptions": {"HttpTokens": "optional"}},
    ):  # fmt: skip
        with refused("IdempotentParameterMismatch"):
            run(ImageId=image_id, InstanceType="t3.micro", **(arguments | change))
    assert len(served.ec2.describe_instances()["Reservations"]) == 1
    with refused("InvalidParameterValue"):
        run(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1, ClientToken="x" * 65)


def test_a_launch_says_how_many(served: Served) -> None:
    careless = served.client("ec2", config=Config(parameter_validation=False, retries={"max_attempts": 0}))
    with refused("MissingParameter"):
        careless.run_instances(ImageId=served.register(), InstanceType="t3.micro", MinCount=1)

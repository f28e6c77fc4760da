"""Spot requests and interruptions, hibernation of machines that pretend."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from support.localec2_served import launch, refused, state_of
from support.patience import until

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

ENCRYPTED: Any = [{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True}}]
ROOT_GIB = 4
LARGE: Any = [{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True, "VolumeSize": ROOT_GIB}}]


def market(kind: str = "one-time", behavior: str | None = None, **more: Any) -> dict[str, Any]:
    options = (
        {"SpotInstanceType": kind} | ({"InstanceInterruptionBehavior": behavior} if behavior else {}) | more
    )
    return {"MarketType": "spot", "SpotOptions": options}


def described(served: Served, instance_id: str) -> Any:
    return served.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]


def request(served: Served, request_id: str) -> tuple[str, str]:
    """(state, status code) of a spot request."""
    found = served.ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[request_id])
    (answer,) = found["SpotInstanceRequests"]
    assert answer["Status"]["Message"]
    return answer["State"], answer["Status"]["Code"]


def order(served: Served, route: str, **body: Any) -> dict[str, Any]:
    call = urllib.request.Request(  # noqa: S310 - loopback
        f"{served.server.url}/_localec2/{route}", data=json.dumps(body).encode(),
        headers={"X-Localec2-Token": served.state.server.admin_token},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(call, timeout=60) as answer:  # noqa: S310 - loopback
            result: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        return {"status": error.code, "error": json.load(error)["error"]}
    return result


def imds(served: Served, instance_id: str) -> dict[str, Any]:
    content = json.loads((served.state.layout.instances / instance_id / "metadata.json").read_text())
    tree: dict[str, Any] = content["tree"]
    return tree


def test_a_one_time_request_from_launch_to_end(served: Served) -> None:
    tags: Any = [{"ResourceType": "spot-instances-request", "Tags": [{"Key": "Project", "Value": "p"}]}]
    instance_id = launch(served, InstanceMarketOptions=market(MaxPrice="0.02"), TagSpecifications=tags)
    instance = described(served, instance_id)
    assert instance["InstanceLifecycle"] == "spot"
    filters: Any = [
        {"Name": "instance-id", "Values": [instance_id]},
        {"Name": "tag:Project", "Values": ["p"]},
    ]
    (found,) = served.ec2.describe_spot_instance_requests(Filters=filters)["SpotInstanceRequests"]
    assert found["SpotInstanceRequestId"] == instance["SpotInstanceRequestId"]
    assert (found["State"], found["Type"], found["SpotPrice"]) == ("active", "one-time", "0.02")
    assert found["LaunchSpecification"]["InstanceType"] == "t3.micro"
    with refused("UnsupportedOperation"):
        served.ec2.stop_instances(InstanceIds=[instance_id])
    served.ec2.terminate_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "terminated")
    closed = ("closed", "instance-terminated-by-user")
    assert request(served, found["SpotInstanceRequestId"]) == closed
    served.restart()
    assert request(served, found["SpotInstanceRequestId"]) == closed


def test_a_one_time_guest_that_powers_off_is_terminated(served: Served) -> None:
    instance_id = launch(served, InstanceMarketOptions=market(), InstanceInitiatedShutdownBehavior="stop")
    served.machine(instance_id).power_off(guest=True)
    until(lambda: state_of(served, instance_id) == "terminated")


def test_an_interruption_gives_notice_and_terminates(served: Served) -> None:
    instance_id = launch(served, InstanceMarketOptions=market())
    request_id = described(served, instance_id)["SpotInstanceRequestId"]
    assert "spot" not in imds(served, instance_id)
    notice = order(served, "interrupt", instance_id=instance_id, notice_s=1.2)
    assert notice["action"] == "terminate"
    spot = imds(served, instance_id)["spot"]
    action = json.loads(spot["instance-action"])
    assert action == {"action": "terminate", "time": spot["termination-time"]}
    assert datetime.fromisoformat(action["time"]) <= datetime.now(UTC).replace(microsecond=0).__add__(
        datetime.fromisoformat(notice["time"]) - datetime.fromisoformat(notice["noticed"])
    )
    assert "noticeTime" in imds(served, instance_id)["events"]["recommendations"]["rebalance"]
    assert request(served, request_id) == ("active", "marked-for-termination")
    assert state_of(served, instance_id) == "running"
    assert order(served, "interrupt", instance_id=instance_id)["status"] == 409
    until(lambda: state_of(served, instance_id) == "terminated")
    ended = described(served, instance_id)
    assert ended["StateReason"]["Code"] == "Server.SpotInstanceTermination"
    assert ended["StateTransitionReason"].startswith("Server.SpotInstanceTermination")
    assert request(served, request_id) == ("closed", "instance-terminated-no-capacity")


def test_a_persistent_instance_is_stopped_and_comes_back(served: Served) -> None:
    instance_id = launch(served, InstanceMarketOptions=market("persistent", "stop"))
    request_id = described(served, instance_id)["SpotInstanceRequestId"]
    order(served, "interrupt", instance_id=instance_id, notice_s=0)
    until(lambda: state_of(served, instance_id) == "stopped")
    assert described(served, instance_id)["StateReason"]["Code"] == "Server.SpotInstanceShutdown"
    assert request(served, request_id) == ("disabled", "instance-stopped-no-capacity")
    order(served, "spot-capacity", spot_instance_request_id=request_id)
    until(lambda: state_of(served, instance_id) == "running")
    assert request(served, request_id) == ("active", "fulfilled")
    assert "spot" not in imds(served, instance_id)
    served.ec2.stop_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "stopped")
    assert request(served, request_id) == ("disabled", "instance-stopped-by-user")
    assert order(served, "spot-capacity", spot_instance_request_id=request_id)["status"] == 409
    served.ec2.start_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "running")
    assert request(served, request_id) == ("active", "fulfilled")


def test_a_persistent_request_launches_another(served: Served) -> None:
    tags: Any = [
        {"ResourceType": kind, "Tags": [{"Key": "Name", "Value": "x"}]} for kind in ("instance", "volume")
    ]
    instance_id = launch(
        served, InstanceMarketOptions=market("persistent"), UserData="mine", TagSpecifications=tags
    )
    request_id = described(served, instance_id)["SpotInstanceRequestId"]

    def current() -> str | None:
        found = served.ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[request_id])
        return found["SpotInstanceRequests"][0].get("InstanceId")

    served.ec2.terminate_instances(InstanceIds=[instance_id])
    until(lambda: current() not in (None, instance_id))
    second = current()
    assert second is not None
    until(lambda: state_of(served, second) == "running")
    instance = described(served, second)
    assert instance["Tags"] == [{"Key": "Name", "Value": "x"}]
    assert instance["SpotInstanceRequestId"] == request_id
    assert instance["PrivateIpAddress"] != described(served, instance_id)["PrivateIpAddress"]
    data = served.ec2.describe_instance_attribute(InstanceId=second, Attribute="userData")
    assert data["UserData"]["Value"] == "bWluZQ=="
    order(served, "interrupt", instance_id=second, notice_s=0)
    until(lambda: state_of(served, second) == "terminated")
    assert request(served, request_id) == ("open", "instance-terminated-no-capacity")
    time.sleep(0.2)
    assert current() is None, "no capacity until somebody says so"
    order(served, "spot-capacity", spot_instance_request_id=request_id)
    until(lambda: current() is not None)
    third = current()
    assert third is not None
    until(lambda: state_of(served, third) == "running")
    cancelled = served.ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request_id])
    assert cancelled["CancelledSpotInstanceRequests"][0]["State"] == "cancelled"
    assert request(served, request_id) == ("cancelled", "request-canceled-and-instance-running")
    with refused("UnsupportedOperation"):
        served.ec2.stop_instances(InstanceIds=[third])
    served.ec2.terminate_instances(InstanceIds=[third])
    until(lambda: state_of(served, third) == "terminated")
    assert request(served, request_id) == ("cancelled", "instance-terminated-by-user")


def test_cancelling_ends_what_is_stopped_and_what_waits(served: Served) -> None:
    ids = [launch(served, InstanceMarketOptions=market("persistent", b)) for b in ("stop", "terminate")]
    requests = [described(served, i)["SpotInstanceRequestId"] for i in ids]
    for instance_id in ids:
        order(served, "interrupt", instance_id=instance_id, notice_s=0)
    until(lambda: [request(served, r)[0] for r in requests] == ["disabled", "open"])
    served.ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=requests)
    until(lambda: state_of(served, ids[0]) == "terminated")
    assert request(served, requests[1]) == ("cancelled", "canceled-before-fulfillment")


def test_a_persistent_launch_that_cannot_start_is_not_tried_for_ever(served: Served) -> None:
    launched = served.ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.nano", MinCount=1, MaxCount=1,
        InstanceMarketOptions=market("persistent"),  # type: ignore[arg-type]
    )["Instances"][0]  # fmt: skip
    until(lambda: state_of(served, launched["InstanceId"]) == "terminated")
    assert request(served, launched["SpotInstanceRequestId"]) == ("closed", "system-error")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (market("one-time", "stop"), "InvalidParameterCombination"),
        (market("one-time", MaxPrice="much"), "InvalidParameterValue"),
        (market("persistent", "hibernate"), "InvalidParameterCombination"),
        (market("persistent", BlockDurationMinutes=60), "UnsupportedOperation"),
    ],
)
def test_spot_terms_that_make_no_sense(served: Served, options: dict[str, Any], code: str) -> None:
    with refused(code):
        launch(served, InstanceMarketOptions=options)
    assert served.ec2.describe_spot_instance_requests()["SpotInstanceRequests"] == []


def test_only_spot_instances_are_interrupted(served: Served) -> None:
    assert order(served, "interrupt", instance_id=launch(served))["status"] == 409
    assert order(served, "interrupt", instance_id="i-00000000000000000")["status"] == 409
    assert order(served, "interrupt", nonsense=1)["status"] == 400
    with refused("InvalidSpotInstanceRequestID.NotFound"):
        served.ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=["sir-00000000"])


def test_hibernation(served: Served) -> None:
    instance_id = launch(served, HibernationOptions={"Configured": True}, BlockDeviceMappings=ENCRYPTED)
    assert described(served, instance_id)["HibernationOptions"] == {"Configured": True}
    with refused("UnsupportedOperation"):
        served.ec2.create_image(InstanceId=instance_id, Name="asleep")
    served.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
    until(lambda: state_of(served, instance_id) == "stopped")
    assert described(served, instance_id)["StateReason"]["Code"] == "Client.UserInitiatedHibernate"
    with refused("UnsupportedOperation"):
        served.ec2.modify_instance_attribute(InstanceId=instance_id, InstanceType={"Value": "t3.small"})
    with refused("IncorrectInstanceState"):
        served.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
    served.ec2.start_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "running")


def test_a_guest_that_does_not_hibernate_is_stopped_and_it_is_said(served: Served) -> None:
    """With a switch: EC2 keeps the reason that it gave first."""
    served.state.strictness.change({"hibernation_reason_kept": False})
    instance_id = launch(served, HibernationOptions={"Configured": True}, BlockDeviceMappings=ENCRYPTED)
    served.machine(instance_id).sleeps = False
    served.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
    until(lambda: state_of(served, instance_id) == "stopped")
    reason = described(served, instance_id)["StateReason"]
    assert reason["Code"] == "Client.UserInitiatedShutdown"
    assert "did not hibernate" in reason["Message"]


def test_hibernation_wants_a_fitting_launch(served: Served) -> None:
    configured: Any = {"Configured": True}
    with refused("UnsupportedHibernationConfiguration"):
        launch(served, HibernationOptions=configured)
    with refused("UnsupportedHibernationConfiguration"):
        launch(
            served, HibernationOptions=configured, BlockDeviceMappings=ENCRYPTED, InstanceType="m5.24xlarge"
        )
    instance_id = launch(served)
    with refused("UnsupportedHibernationConfiguration"):
        served.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)


def test_a_machine_that_hibernates_keeps_its_memory(served: Served) -> None:
    """Its swap was made for it, and what was saved does not fit another size."""
    configured: Any = {"Configured": True}
    served.state.strictness.change({"guest_memory_mib": 1536})
    kept = launch(served, HibernationOptions=configured, BlockDeviceMappings=LARGE, InstanceType="m5.large")
    other = launch(served, InstanceType="m5.large")
    assert served.machine(kept).spec.memory_mib == served.machine(other).spec.memory_mib == 1536
    served.state.strictness.change({"guest_memory_mib": 2560})
    served.ec2.stop_instances(InstanceIds=[kept], Hibernate=True)
    served.ec2.stop_instances(InstanceIds=[other])
    until(lambda: {state_of(served, instance_id) for instance_id in (kept, other)} == {"stopped"})
    served.ec2.start_instances(InstanceIds=[kept, other])
    until(lambda: {state_of(served, instance_id) for instance_id in (kept, other)} == {"running"})
    assert [served.machine(one).spec.memory_mib for one in (kept, other)] == [1536, 2560]


def test_the_root_has_room_for_the_memory_that_the_guest_gets(served: Served) -> None:
    configured: Any = {"Configured": True}
    served.state.strictness.change({"guest_memory_mib": ROOT_GIB * 1024})
    with refused("UnsupportedHibernationConfiguration"):
        launch(served, HibernationOptions=configured, BlockDeviceMappings=LARGE, InstanceType="m5.large")
    served.state.strictness.change({"guest_memory_mib": ROOT_GIB * 1024 - 1})
    launch(served, HibernationOptions=configured, BlockDeviceMappings=LARGE, InstanceType="m5.large")


def test_a_spot_instance_hibernates(served: Served) -> None:
    instance_id = launch(
        served, InstanceMarketOptions=market("persistent"), HibernationOptions={"Configured": True},
        BlockDeviceMappings=ENCRYPTED,
    )  # fmt: skip
    order(served, "interrupt", instance_id=instance_id, notice_s=60)
    until(lambda: state_of(served, instance_id) == "stopped")
    assert json.loads(imds(served, instance_id)["spot"]["instance-action"])["action"] == "hibernate"
    assert described(served, instance_id)["StateReason"]["Code"] == "Server.SpotInstanceShutdown"

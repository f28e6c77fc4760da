"""Instances as an API client sees them, their machines only pretended."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


def run(served: Served, image_id: str, **more: Any) -> list[InstanceTypeDef]:
    arguments: dict[str, Any] = {
        "ImageId": image_id,
        "InstanceType": "t3.micro",
        "MinCount": 1,
        "MaxCount": 1,
    } | more
    return served.ec2.run_instances(**arguments)["Instances"]


def describe(served: Served, instance_id: str) -> InstanceTypeDef:
    return served.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]


def wait(served: Served, instance_id: str, state: str) -> InstanceTypeDef:
    deadline = time.monotonic() + 60
    while (instance := describe(served, instance_id))["State"]["Name"] != state:
        assert time.monotonic() < deadline, f"{instance['State']} instead of {state}"
        time.sleep(0.01)
    return instance


def code_of(error: pytest.ExceptionInfo[ClientError]) -> str:
    return error.value.response["Error"]["Code"]


def test_an_instance_from_pending_to_terminated(served: Served) -> None:
    (launched,) = run(served, served.register())
    assert launched["State"]["Name"] == "pending"
    instance = wait(served, launched["InstanceId"], "running")
    assert instance["PublicIpAddress"].startswith("127.")
    assert instance["PrivateIpAddress"].startswith("172.31.")
    assert instance["Architecture"] == "x86_64"
    assert instance["RootDeviceName"] == "/dev/xvda"
    assert "StateReason" not in instance
    (volume,) = served.ec2.describe_volumes()["Volumes"]
    assert volume["State"] == "in-use"
    assert volume["Attachments"][0]["DeleteOnTermination"] is True
    answer = served.ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])
    assert answer["TerminatingInstances"][0]["CurrentState"]["Name"] == "shutting-down"
    gone = wait(served, instance["InstanceId"], "terminated")
    assert gone["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert "PublicIpAddress" not in gone
    assert served.ec2.describe_volumes()["Volumes"] == []


def test_stop_and_start_keep_the_instance_and_change_its_public_address(served: Served) -> None:
    (launched,) = run(served, served.register())
    instance_id = launched["InstanceId"]
    first = wait(served, instance_id, "running")
    served.ec2.stop_instances(InstanceIds=[instance_id])
    stopped = wait(served, instance_id, "stopped")
    assert "PublicIpAddress" not in stopped
    assert "User initiated" in stopped["StateTransitionReason"]
    served.ec2.start_instances(InstanceIds=[instance_id])
    second = wait(served, instance_id, "running")
    assert second["PrivateIpAddress"] == first["PrivateIpAddress"]
    assert second["PublicIpAddress"] != first["PublicIpAddress"]


@pytest.mark.parametrize(("behavior", "state"), [("stop", "stopped"), ("terminate", "terminated")])
def test_a_guest_that_powers_off_ends_as_it_was_asked_to(served: Served, behavior: str, state: str) -> None:
    (launched,) = run(served, served.register(), InstanceInitiatedShutdownBehavior=behavior)
    wait(served, launched["InstanceId"], "running")
    served.machine(launched["InstanceId"]).power_off(guest=True)
    ended = wait(served, launched["InstanceId"], state)
    assert ended["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


def test_a_machine_that_dies_leaves_a_stopped_instance_that_says_so(served: Served) -> None:
    (launched,) = run(served, served.register(), InstanceInitiatedShutdownBehavior="terminate")
    wait(served, launched["InstanceId"], "running")
    served.machine(launched["InstanceId"]).power_off(guest=False)
    ended = wait(served, launched["InstanceId"], "stopped")
    assert ended["StateReason"]["Code"] == "Server.InternalError"


def test_the_same_client_token_is_the_same_instance(served: Served) -> None:
    image_id = served.register()
    (first,) = run(served, image_id, ClientToken="once")
    (again,) = run(served, image_id, ClientToken="once")
    assert again["InstanceId"] == first["InstanceId"]
    with pytest.raises(ClientError) as error:
        run(served, image_id, ClientToken="once", InstanceType="t3.small")
    assert code_of(error) == "IdempotentParameterMismatch"
    found = served.ec2.describe_instances(Filters=[{"Name": "client-token", "Values": ["once"]}])
    assert len(found["Reservations"]) == 1


def test_several_at_once_share_a_reservation(served: Served) -> None:
    launched = run(served, served.register(), MinCount=2, MaxCount=3)
    assert len({item["InstanceId"] for item in launched}) == 3
    assert sorted(item["AmiLaunchIndex"] for item in launched) == [0, 1, 2]
    assert len(served.ec2.describe_instances()["Reservations"]) == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ImageId": "ami-00000000000000000"}, "InvalidAMIID.NotFound"),
        ({"ImageId": "nonsense"}, "InvalidAMIID.Malformed"),
        ({"InstanceType": "t3.gigantic"}, "InvalidParameterValue"),
        ({"InstanceType": "t4g.small"}, "InvalidParameterValue"),
        ({"KeyName": "nobody"}, "InvalidKeyPair.NotFound"),
        ({"SecurityGroupIds": ["sg-00000000000000000"]}, "InvalidGroup.NotFound"),
        ({"SubnetId": "subnet-00000000000000000"}, "InvalidSubnetID.NotFound"),
        ({"UserData": "x" * 16385}, "InvalidParameterValue"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 1}}]},
         "InvalidBlockDeviceMapping"),
        ({"IamInstanceProfile": {"Name": "x"}}, "InvalidParameterValue"),
        ({"HibernationOptions": {"Configured": True}}, "UnsupportedHibernationConfiguration"),
        ({"CpuOptions": {"CoreCount": 2}}, "UnsupportedOperation"),
        ({"DryRun": True}, "DryRunOperation"),
    ],
)  # fmt: skip
def test_what_cannot_be_launched_is_refused(served: Served, change: dict[str, Any], code: str) -> None:
    image_id = served.register()
    with pytest.raises(ClientError) as error:
        run(
            served,
            **(
                {"image_id": image_id} | {("image_id" if k == "ImageId" else k): v for k, v in change.items()}
            ),
        )
    assert code_of(error) == code
    assert served.ec2.describe_instances()["Reservations"] == []


def test_imds_gets_what_the_launch_said(served: Served) -> None:
    key = served.ec2.create_key_pair(KeyName="laptop", KeyType="ed25519")
    assert "PRIVATE KEY" in key["KeyMaterial"]
    (launched,) = run(
        served, served.register(), KeyName="laptop", UserData="#!/bin/sh\n",
        MetadataOptions={"HttpTokens": "optional", "InstanceMetadataTags": "enabled"},
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "one"}]}],
    )  # fmt: skip
    wait(served, launched["InstanceId"], "running")
    path = served.state.layout.instances / launched["InstanceId"] / "metadata.json"
    content = json.loads(path.read_text())
    assert base64.b64decode(content["user_data_base64"]) == b"#!/bin/sh\n"
    assert content["http_tokens"] == "optional"
    assert content["tags"] == {"Name": "one"}
    assert content["tree"]["instance-id"] == launched["InstanceId"]
    assert content["tree"]["public-keys"]["0"]["openssh-key"].endswith(" laptop\n")
    served.ec2.create_tags(Resources=[launched["InstanceId"]], Tags=[{"Key": "Name", "Value": "two"}])
    served.ec2.modify_instance_metadata_options(InstanceId=launched["InstanceId"], HttpTokens="required")
    content = json.loads(path.read_text())
    assert content["tags"] == {"Name": "two"}
    assert content["http_tokens"] == "required"
    assert content["instance_tags"] is True


def test_tags_filters_and_states_select(served: Served) -> None:
    image_id = served.register()
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Project", "Value": "p"}]}]
    (tagged,) = run(served, image_id, TagSpecifications=tags)
    run(served, image_id)
    wait(served, tagged["InstanceId"], "running")
    found = served.ec2.describe_instances(
        Filters=[
            {"Name": "tag:Project", "Values": ["p"]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
    )
    ids = [item["InstanceId"] for part in found["Reservations"] for item in part["Instances"]]
    assert ids == [tagged["InstanceId"]]


def test_a_filter_that_is_not_known_is_not_ignored(served: Served) -> None:
    with pytest.raises(ClientError) as error:
        served.ec2.describe_instances(Filters=[{"Name": "affinity", "Values": ["host"]}])
    assert code_of(error) == "UnsupportedOperation"


def test_a_spot_instance_says_so_and_cannot_be_stopped(served: Served) -> None:
    (launched,) = run(served, served.register(), InstanceMarketOptions={"MarketType": "spot"})
    assert wait(served, launched["InstanceId"], "running")["InstanceLifecycle"] == "spot"
    with pytest.raises(ClientError) as error:
        served.ec2.stop_instances(InstanceIds=[launched["InstanceId"]])
    assert code_of(error) == "UnsupportedOperation"


def test_one_unknown_id_fails_the_whole_request(served: Served) -> None:
    (launched,) = run(served, served.register())
    wait(served, launched["InstanceId"], "running")
    with pytest.raises(ClientError) as error:
        served.ec2.terminate_instances(InstanceIds=[launched["InstanceId"], "i-00000000000000000"])
    assert code_of(error) == "InvalidInstanceID.NotFound"
    assert describe(served, launched["InstanceId"])["State"]["Name"] == "running"


def test_going_down_stops_instances_and_says_why(served: Served) -> None:
    (launched,) = run(served, served.register(), InstanceInitiatedShutdownBehavior="terminate")
    wait(served, launched["InstanceId"], "running")
    served.services.lifecycle.close(timeout_s=60.0)
    served.restart()
    stopped = describe(served, launched["InstanceId"])
    assert stopped["State"]["Name"] == "stopped"
    assert stopped["StateReason"]["Code"] == "Server.ScheduledStop"


def test_a_machine_that_does_not_start_terminates_its_instance_and_says_why(served: Served) -> None:
    tags: Any = [{"ResourceType": "network-interface", "Tags": [{"Key": "Project", "Value": "p"}]}]
    (launched,) = run(served, served.register(), InstanceType="t3.nano", TagSpecifications=tags)
    ended = wait(served, launched["InstanceId"], "terminated")
    assert "no such luck" in ended["StateReason"]["Message"]
    assert served.ec2.describe_volumes()["Volumes"] == []
    assert served.ec2.describe_tags()["Tags"] == []

"""Keys, groups, tags, parameters, credentials, and what is still there after a restart."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

PUBLIC_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA5saFnYGnUwNL9UPyc929LGOTXJo5uhKHDcTOqznQmn somebody"


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\)")


def launch(served: Served, **more: Any) -> str:
    arguments: dict[str, Any] = {"InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
    return str(served.ec2.run_instances(ImageId=served.register(), **arguments)["Instances"][0]["InstanceId"])


def test_key_pairs(served: Served) -> None:
    served.ec2.import_key_pair(KeyName="a", PublicKeyMaterial=PUBLIC_KEY)
    with refused("InvalidKeyPair.Duplicate"):
        served.ec2.import_key_pair(KeyName="a", PublicKeyMaterial=PUBLIC_KEY)
    with refused("InvalidKey.Format"):
        served.ec2.import_key_pair(KeyName="b", PublicKeyMaterial=b"not a key")
    (pair,) = served.ec2.describe_key_pairs()["KeyPairs"]
    assert served.ec2.describe_key_pairs(KeyPairIds=[pair["KeyPairId"]])["KeyPairs"][0]["KeyName"] == "a"
    served.ec2.delete_key_pair(KeyPairId=pair["KeyPairId"])
    served.ec2.delete_key_pair(KeyName="a")  # deleting what is not there is no error on EC2
    with refused("InvalidKeyPair.NotFound"):
        served.ec2.describe_key_pairs(KeyNames=["a"])


def test_a_security_group_in_use_stays(served: Served) -> None:
    group_id = served.ec2.create_security_group(GroupName="g", Description="d")["GroupId"]
    with refused("InvalidGroup.Duplicate"):
        served.ec2.create_security_group(GroupName="g", Description="d")
    instance_id = launch(served, SecurityGroupIds=[group_id])
    with refused("DependencyViolation"):
        served.ec2.delete_security_group(GroupId=group_id)
    served.ec2.get_waiter("instance_running").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 0})
    served.ec2.terminate_instances(InstanceIds=[instance_id])
    served.ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 0})
    served.ec2.delete_security_group(GroupId=group_id)
    with refused("InvalidGroup.NotFound"):
        served.ec2.describe_security_groups(GroupIds=[group_id])


def test_only_what_is_done_is_accepted(served: Served) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: served.ec2.create_nat_gateway(SubnetId="subnet-00000000000000000"),
        lambda: served.ec2.create_vpn_gateway(Type="ipsec.1"),
        served.ec2.create_transit_gateway,
        lambda: served.ec2.delete_network_acl(NetworkAclId="acl-00000000000000000"),
    ]
    for call in calls:
        with refused("UnsupportedOperation"):
            call()
    with refused("UnsupportedOperationException"):
        served.ssm.send_command(DocumentName="AWS-RunShellScript", InstanceIds=["i-00000000000000000"])


def test_reading_is_passed_through(served: Served) -> None:
    (kind,) = served.ec2.describe_instance_types(InstanceTypes=["t4g.small"])["InstanceTypes"]
    assert kind["ProcessorInfo"]["SupportedArchitectures"] == ["arm64"]
    zones = {zone["ZoneName"] for zone in served.ec2.describe_availability_zones()["AvailabilityZones"]}
    assert "us-east-1a" in zones
    assert len(served.ec2.describe_subnets()["Subnets"]) == len(zones)
    assert served.client("sts").get_caller_identity()["Account"] == "123456789012"


def test_every_answer_has_an_id_of_its_own(served: Served) -> None:
    answers = [served.ec2.describe_instances()["ResponseMetadata"] for _ in range(2)]
    with refused("InvalidInstanceID.NotFound") as error:
        served.ec2.describe_instances(InstanceIds=["i-0123456789abcdef0"])
    answers.append(error.value.response["ResponseMetadata"])
    assert len({answer["RequestId"] for answer in answers}) == 3
    for answer in answers:
        assert answer["HTTPHeaders"]["x-amzn-requestid"] == answer["RequestId"]


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"aws_access_key_id": "LOCLAAAAAAAAAAAAAAAA"}, "AuthFailure"),
        ({"aws_secret_access_key": "wrong"}, "SignatureDoesNotMatch"),
        ({"region_name": "eu-west-1"}, "UnsupportedOperation"),
    ],
)
def test_strangers_are_refused(served: Served, overrides: dict[str, str], code: str) -> None:
    with refused(code):
        served.client("ec2", **overrides).describe_instances()


def test_web_pages_and_the_admin_route_are_kept_apart(served: Served) -> None:
    def status(path: str, **headers: str) -> int:
        request = urllib.request.Request(served.server.url + path, headers=headers)  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status("/_localec2/caller-ip") == 200
    assert status("/_localec2/health") == 403
    assert status("/_localec2/health", **{"X-Localec2-Token": served.state.server.admin_token}) == 200
    assert status("/_localec2/caller-ip", Host="evil.example") == 403


def test_everything_is_there_after_a_restart(served: Served) -> None:
    image_id = served.register()
    group_id = served.ec2.create_security_group(
        GroupName="g", Description="d",
        TagSpecifications=[{"ResourceType": "security-group", "Tags": [{"Key": "k", "Value": "v"}]}],
    )["GroupId"]  # fmt: skip
    served.ec2.authorize_security_group_ingress(
        GroupId=group_id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="10.0.0.0/8"
    )
    served.ec2.import_key_pair(KeyName="a", PublicKeyMaterial=PUBLIC_KEY)
    served.ssm.put_parameter(Name="/instant-env/minimal/x86_64/latest", Value="ami-1", Type="String")
    served.ssm.put_parameter(Name="/instant-env/minimal/x86_64/latest", Value="ami-2", Overwrite=True)
    volume_id = served.ec2.create_volume(Size=1, AvailabilityZone="us-east-1b")["VolumeId"]
    running, stopped, ended = (launch(served, SecurityGroupIds=[group_id], KeyName="a") for _ in range(3))
    served.ec2.get_waiter("instance_running").wait(
        InstanceIds=[running, stopped, ended], WaiterConfig={"Delay": 0}
    )
    served.ec2.stop_instances(InstanceIds=[stopped])
    served.ec2.terminate_instances(InstanceIds=[ended])
    served.ec2.get_waiter("instance_stopped").wait(InstanceIds=[stopped], WaiterConfig={"Delay": 0})
    served.ec2.get_waiter("instance_terminated").wait(InstanceIds=[ended], WaiterConfig={"Delay": 0})
    served.ec2.create_tags(Resources=[stopped, volume_id], Tags=[{"Key": "Project", "Value": "p"}])
    subnets = served.ec2.describe_subnets()["Subnets"]
    served.ec2.create_tags(Resources=[subnets[0]["SubnetId"]], Tags=[{"Key": "Name", "Value": "first"}])

    def picture() -> dict[str, Any]:
        instances = {
            item["InstanceId"]: (
                item["State"]["Name"],
                item["PrivateIpAddress"],
                item.get("Tags"),
                item["SubnetId"],
            )
            for part in served.ec2.describe_instances()["Reservations"]
            for item in part["Instances"]
        }
        return {
            "images": served.ec2.describe_images()["Images"],
            "snapshots": served.ec2.describe_snapshots()["Snapshots"],
            "volumes": {v["VolumeId"]: v for v in served.ec2.describe_volumes()["Volumes"]},
            "instances": instances,
            "keys": served.ec2.describe_key_pairs(IncludePublicKey=True)["KeyPairs"],
            "groups": served.ec2.describe_security_groups()["SecurityGroups"],
            "subnets": served.ec2.describe_subnets()["Subnets"],
            "vpcs": served.ec2.describe_vpcs()["Vpcs"],
            "parameter": served.ssm.get_parameter(Name="/instant-env/minimal/x86_64/latest")["Parameter"],
        }

    before = picture()
    served.restart()
    after = picture()
    state, *rest = before["instances"][running]
    assert state == "running"
    before["instances"][running] = ("stopped", *rest)
    assert after == before
    lost = served.ec2.describe_instances(InstanceIds=[running])["Reservations"][0]["Instances"][0]
    assert lost["StateReason"]["Code"] == "Server.InternalError"
    assert after["images"][0]["ImageId"] == image_id
    served.ec2.start_instances(InstanceIds=[running])
    served.ec2.get_waiter("instance_running").wait(InstanceIds=[running], WaiterConfig={"Delay": 0})


def test_nothing_is_readable_for_others(served: Served) -> None:
    served.ssm.put_parameter(Name="/secret", Value="x", Type="SecureString")
    state_dir: Path = served.state.layout.state_dir
    assert state_dir.stat().st_mode & 0o077 == 0
    for record in state_dir.rglob("*.json"):
        assert record.stat().st_mode & 0o077 == 0, record
    served.restart()
    parameter = served.ssm.get_parameter(Name="/secret", WithDecryption=True)["Parameter"]
    assert (parameter["Name"], parameter["Value"]) == ("/secret", "x")


def test_two_servers_in_one_process_share_nothing(served: Served, tmp_path: Path) -> None:
    """The classes that moto instantiates for a request are the server's own."""
    first_image = served.register()
    served.ec2.create_key_pair(KeyName="first")
    served.ssm.put_parameter(Name="/first", Value="1", Type="String")
    second = type(served)(tmp_path / "second")
    try:
        assert second.ec2.describe_images()["Images"] == second.ec2.describe_key_pairs()["KeyPairs"] == []
        second.ec2.create_key_pair(KeyName="second")
        assert [image["ImageId"] for image in served.ec2.describe_images()["Images"]] == [first_image]
        assert [pair["KeyName"] for pair in served.ec2.describe_key_pairs()["KeyPairs"]] == ["first"]
        assert served.ssm.get_parameter(Name="/first")["Parameter"]["Value"] == "1"
        with pytest.raises(ClientError, match="ParameterNotFound"):
            second.ssm.get_parameter(Name="/first")
    finally:
        second.stop()


@pytest.mark.parametrize(
    ("service", "action", "minutes", "code"),
    [
        ("ec2", "describe_instances", -6, "RequestExpired"),
        ("ec2", "describe_instances", 6, "RequestExpired"),
        ("ssm", "describe_parameters", -6, "InvalidSignatureException"),
        ("sts", "get_caller_identity", -16, "SignatureDoesNotMatch"),
        ("iam", "list_roles", 6, "SignatureDoesNotMatch"),
        ("ec2", "describe_instances", -4, ""),
        ("ec2", "describe_instances", 4, ""),
        ("sts", "get_caller_identity", -14, ""),
    ],
)
def test_a_signature_has_an_age(
    served: Served, monkeypatch: pytest.MonkeyPatch, service: str, action: str, minutes: int, code: str
) -> None:
    """A request that was recorded is not served later; a client whose clock is a little off is."""
    client = served.client(service)
    signed_at = datetime.now(UTC) + timedelta(minutes=minutes)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda **_: signed_at.replace(tzinfo=None))
    call = getattr(client, action)
    if code:
        with refused(code):
            call()
    else:
        call()

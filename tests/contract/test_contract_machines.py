"""Machines: what a launch answers, what is described, how they start, stop and end."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from support.contract_cloud import differs, document, refused

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)


@pytest.fixture(scope="module")
def pair(contract: ContractCloud) -> Iterator[list[str]]:
    """Two machines of one launch, which nobody waits for."""
    ids = [
        instance["InstanceId"]
        for instance in contract.run_instances(
            MinCount=2, MaxCount=2, ClientToken=contract.name("pair"), UserData="pair"
        )
    ]
    yield ids
    contract.ec2.terminate_instances(InstanceIds=ids)


def test_a_launch_of_two(contract: ContractCloud, pair: list[str]) -> None:
    (reservation,) = contract.ec2.describe_instances(InstanceIds=pair)["Reservations"]
    assert sorted(instance["AmiLaunchIndex"] for instance in reservation["Instances"]) == [0, 1]
    assert len({instance["PrivateIpAddress"] for instance in reservation["Instances"]}) == 2
    for instance in reservation["Instances"]:
        assert instance["State"]["Name"] in ("pending", "running")
        assert instance["ClientToken"] == contract.name("pair")
        assert datetime.now(UTC) - instance["LaunchTime"] < timedelta(minutes=5)


def test_the_same_token_gives_the_same_machines(contract: ContractCloud, pair: list[str]) -> None:
    again = contract.run_instances(MinCount=2, MaxCount=2, ClientToken=contract.name("pair"), UserData="pair")
    assert {instance["InstanceId"] for instance in again} == set(pair)
    with refused("IdempotentParameterMismatch"):
        contract.run_instances(MinCount=2, MaxCount=2, ClientToken=contract.name("pair"), UserData="other")


def test_termination(contract: ContractCloud, pair: list[str]) -> None:
    volumes = [
        mapping["Ebs"]["VolumeId"]
        for instance_id in pair
        for mapping in contract.wait(instance_id, "running")["BlockDeviceMappings"]
    ]
    assert len(volumes) == 2
    changes = contract.ec2.terminate_instances(InstanceIds=pair)["TerminatingInstances"]
    assert {change["InstanceId"] for change in changes} == set(pair)
    assert {change["PreviousState"]["Name"] for change in changes} == {"running"}
    assert {change["CurrentState"]["Code"] for change in changes} <= {32, 48}
    for instance_id in pair:
        ended = contract.wait(instance_id, "terminated")
        assert ended["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
        assert ended["StateTransitionReason"].startswith("User initiated")
        assert "PublicIpAddress" not in ended
    left = contract.eventually(
        lambda: contract.ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": volumes}])["Volumes"],
        lambda found: not found,
    )
    assert left == [], "root volumes go with their machines"
    with refused("IncorrectInstanceState"):
        contract.ec2.start_instances(InstanceIds=pair)
    # Ending what has ended is no error.
    (change, _) = contract.ec2.terminate_instances(InstanceIds=pair)["TerminatingInstances"]
    assert change["CurrentState"]["Name"] == "terminated"


def test_what_is_described_of_a_machine(contract: ContractCloud, first: str) -> None:
    contract.wait(first, "running")
    # Its public address may come later.
    machine = contract.eventually(lambda: contract.describe(first), lambda one: "PublicIpAddress" in one)
    image = contract.ec2.describe_images(ImageIds=[contract.image_id])["Images"][0]
    assert machine["ImageId"] == contract.image_id
    assert machine["InstanceType"] == contract.instance_type
    assert machine["KeyName"] == contract.key_name
    assert machine["Architecture"] == image["Architecture"] == contract.arch
    assert machine["Hypervisor"] == "xen", "what EC2 says of Nitro, too"
    assert machine["VirtualizationType"] == "hvm"
    assert machine["RootDeviceType"] == "ebs"
    assert machine["RootDeviceName"] == image["RootDeviceName"]
    assert machine["Placement"]["AvailabilityZone"].startswith(contract.cloud.region)
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert [group["GroupId"] for group in machine["SecurityGroups"]] == [contract.group_id]
    (root,) = machine["BlockDeviceMappings"]
    assert root["DeviceName"] == machine["RootDeviceName"]
    assert root["Ebs"]["DeleteOnTermination"] is True
    (nic,) = machine["NetworkInterfaces"]
    assert nic["PrivateIpAddress"] == machine["PrivateIpAddress"]
    assert nic["Association"]["PublicIp"] == machine["PublicIpAddress"]
    if contract.is_local:
        differs("public-address")
        assert machine["PublicIpAddress"].startswith("127.")
    else:
        assert machine["PublicDnsName"].startswith("ec2-")


@pytest.mark.slow
def test_status_checks(contract: ContractCloud, first: str) -> None:
    differs("status-checks")
    contract.login(first)

    def ask() -> tuple[str, str]:
        (status,) = contract.ec2.describe_instance_status(InstanceIds=[first])["InstanceStatuses"]
        return status["SystemStatus"]["Status"], status["InstanceStatus"]["Status"]

    assert contract.eventually(ask, lambda status: status == ("ok", "ok"), timeout_s=400) == ("ok", "ok")


@pytest.mark.slow
def test_the_console(contract: ContractCloud, first: str) -> None:
    contract.login(first).run("echo contract-was-here >/dev/console || echo contract-was-here >/dev/ttyS0")
    output = contract.eventually(
        lambda: contract.ec2.get_console_output(InstanceId=first, Latest=True).get("Output", ""),
        lambda text: "contract-was-here" in text,
    )
    assert "contract-was-here" in output


@pytest.mark.slow
def test_security_groups_of_a_running_machine(contract: ContractCloud, first: str) -> None:
    """A port is reached from when a rule allows it until it does not any more."""
    ec2, guest = contract.ec2, contract.login(first)
    guest.run(
        "if command -v python3; then setsid python3 -m http.server 8080; else httpd -p 8080 -h /; fi "
        ">/dev/null 2>&1 </dev/null & sleep 1"
    )
    differs("security-groups")  # before and after: silence on EC2
    assert not contract.accepts(first, 8080)
    rule = {"IpProtocol": "tcp", "FromPort": 8080, "ToPort": 8080, "IpRanges": [{"CidrIp": contract.caller}]}
    ec2.authorize_security_group_ingress(GroupId=contract.group_id, IpPermissions=[rule])  # type: ignore[list-item]
    assert contract.eventually(lambda: contract.accepts(first, 8080), bool)
    ec2.revoke_security_group_ingress(GroupId=contract.group_id, IpPermissions=[rule])  # type: ignore[list-item]
    assert not contract.eventually(lambda: contract.accepts(first, 8080), lambda open_: not open_)


@pytest.mark.slow
def test_metadata_of_a_guest(contract: ContractCloud, first: str) -> None:
    guest, machine = contract.login(first), contract.wait(first, "running")

    def meta(path: str) -> str:
        return guest.imds(f"meta-data/{path}")

    assert meta("instance-id") == first
    assert meta("ami-id") == contract.image_id
    assert meta("instance-type") == contract.instance_type
    assert meta("local-ipv4") == machine["PrivateIpAddress"]
    assert meta("public-ipv4") == machine["PublicIpAddress"]
    assert meta("placement/availability-zone") == machine["Placement"]["AvailabilityZone"]
    assert meta("placement/region") == contract.cloud.region
    mac = meta("mac")
    assert mac == machine["NetworkInterfaces"][0]["MacAddress"]
    assert meta(f"network/interfaces/macs/{mac}/subnet-id") == machine["SubnetId"]
    assert contract.key.public_key.body in meta("public-keys/0/openssh-key")
    assert "instance-id" in meta("").splitlines()
    assert guest.imds("user-data") == "first"
    identity = document(guest.imds("dynamic/instance-identity/document"))
    assert identity["instanceId"] == first
    assert identity["architecture"] == contract.arch
    assert identity["privateIp"] == machine["PrivateIpAddress"]


@pytest.mark.slow
def test_metadata_wants_a_token(contract: ContractCloud, first: str) -> None:
    guest = contract.login(first)
    assert guest.run("imds -n -s meta-data/instance-id || true") == "401"
    assert guest.run("imds -t nonsense -s meta-data/instance-id || true") == "401"
    assert guest.run("imds -s meta-data/nothing-of-that-name || true") == "404"
    assert guest.run(
        "t=$(imds -T 1); imds -t $t -s meta-data/; sleep 2; imds -t $t -s meta-data/ || true"
    ) == ("200\n401")


@pytest.mark.slow
def test_tags_in_metadata(contract: ContractCloud, first: str) -> None:
    guest = contract.login(first)
    assert guest.run("imds -s meta-data/tags/instance/Project || true") == "404"
    contract.ec2.modify_instance_metadata_options(InstanceId=first, InstanceMetadataTags="enabled")
    found = contract.eventually(
        lambda: guest.run("imds meta-data/tags/instance/Project || true"), lambda text: text == "instant-env"
    )
    assert found == "instant-env"


@pytest.mark.slow
def test_reboot(contract: ContractCloud, second: str) -> None:
    before, address = contract.login(second).boot_id, contract.describe(second)["PublicIpAddress"]
    contract.ec2.reboot_instances(InstanceIds=[second])
    assert contract.describe(second)["State"]["Name"] == "running"

    def boot_id() -> str:
        contract.log_out(second)
        try:
            return contract.login(second).boot_id
        except Exception:  # noqa: BLE001 - the machine goes away while we look; the caller asks again
            return before

    assert contract.eventually(boot_id, lambda now: now != before) != before
    assert contract.describe(second)["PublicIpAddress"] == address


#: In the guest: a process that notes whether it was asked to end, as everything is in an orderly shutdown.
WITNESS = (
    'rm -f /var/asked; setsid sh -c \'trap "echo yes >/var/asked; sync" TERM HUP; touch /run/witness; '
    "while sleep 1; do :; done' </dev/null >/dev/null 2>&1 & "
    "while ! [ -e /run/witness ]; do sleep 1; done; sync"
)


@pytest.mark.slow
def test_stop_and_start_with_other_user_data(contract: ContractCloud, second: str) -> None:
    ec2, guest = contract.ec2, contract.login(second)
    before = contract.describe(second)
    boot_id = guest.boot_id
    guest.run("echo kept >/var/kept && sync")
    guest.run(WITNESS)
    with refused("IncorrectInstanceState"):
        ec2.modify_instance_attribute(InstanceId=second, UserData={"Value": b"too early"})
    contract.log_out(second)
    (change,) = ec2.stop_instances(InstanceIds=[second])["StoppingInstances"]
    assert change["CurrentState"]["Name"] in ("stopping", "stopped")
    stopped = contract.wait(second, "stopped")
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert stopped["PrivateIpAddress"] == before["PrivateIpAddress"]
    assert "PublicIpAddress" not in stopped
    ec2.modify_instance_attribute(InstanceId=second, UserData={"Value": b"changed while stopped"})
    data = ec2.describe_instance_attribute(InstanceId=second, Attribute="userData")["UserData"]["Value"]
    assert base64.b64decode(data) == b"changed while stopped"
    (change,) = ec2.start_instances(InstanceIds=[second])["StartingInstances"]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("stopped", "pending")
    guest = contract.login(second)
    assert guest.boot_id != boot_id
    assert guest.run("cat /var/kept") == "kept"
    assert guest.run("cat /var/asked") == "yes", "the system was shut down in order"
    assert guest.imds("user-data") == "changed while stopped"
    assert contract.describe(second)["LaunchTime"] > before["LaunchTime"]


@pytest.mark.slow
def test_guests_that_end_by_themselves_and_guests_that_nobody_asks(contract: ContractCloud) -> None:
    """A guest's power-off stops or terminates, as the attribute says; SkipOsShutdown and Force ask nobody."""
    ec2 = contract.ec2
    instance_id = contract.launch(InstanceInitiatedShutdownBehavior="stop")
    power_off = "(sleep 1; poweroff -f) </dev/null >/dev/null 2>&1 &"
    contract.login(instance_id).run(power_off)
    contract.log_out(instance_id)
    stopped = contract.wait(instance_id, "stopped")
    assert stopped["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    (root,) = stopped["BlockDeviceMappings"]

    how: list[dict[str, bool]] = [{"SkipOsShutdown": True}, {"Force": True}]
    ec2.start_instances(InstanceIds=[instance_id])
    guest = contract.login(instance_id)
    for options in how:
        guest.run(WITNESS)
        contract.log_out(instance_id)
        ec2.stop_instances(InstanceIds=[instance_id], **options)
        assert contract.wait(instance_id, "stopped")["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
        ec2.start_instances(InstanceIds=[instance_id])
        guest = contract.login(instance_id)
        assert guest.status("test -e /var/asked") == 1, "the plug was pulled"
    ec2.modify_instance_attribute(
        InstanceId=instance_id, InstanceInitiatedShutdownBehavior={"Value": "terminate"}
    )
    guest.run(power_off)
    contract.log_out(instance_id)
    ended = contract.wait(instance_id, "terminated")
    assert ended["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    gone = [{"Name": "volume-id", "Values": [root["Ebs"]["VolumeId"]]}]
    left = contract.eventually(
        lambda: ec2.describe_volumes(Filters=gone)["Volumes"],  # type: ignore[arg-type]
        lambda volumes: not volumes,
    )
    assert left == []

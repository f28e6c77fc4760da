"""What a machine learns of itself while it runs, seen from inside, and what it can do with it."""

from __future__ import annotations

import json
import re
import shlex
import socket
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.utils import InstanceMetadataFetcher

from instant_env.cloud.keys import KeyPair
from instant_env.ssh.connection import wait_for_login

if TYPE_CHECKING:
    from support.tiny_cloud import Guest, TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}
READ = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "ec2:DescribeInstances", "Resource": "*"}],
}
#: EC2 says seconds; the key's last second may have begun when it is asked for.
KEY_LIFETIME_S = 60


def client(cloud: TinyCloud, service: str, **credentials: str) -> Any:
    endpoint = cloud.endpoint
    own = {
        "aws_access_key_id": endpoint.access_key_id, "aws_secret_access_key": endpoint.secret_access_key
    }  # fmt: skip
    return boto3.client(  # type: ignore[call-overload]
        service, endpoint_url=endpoint.url, region_name=endpoint.region, **(credentials or own)
    )


def eventually(guest: Guest, command: str, wanted: str, timeout_s: float = 10) -> None:
    """EC2 says that a change reaches IMDS, not when."""
    deadline = time.monotonic() + timeout_s
    while (seen := guest.run(f"{command} || true")) != wanted:
        assert time.monotonic() < deadline, f"{command}: {seen!r}, not {wanted!r}"
        time.sleep(0.2)


def test_what_a_running_machine_is_told(tiny_cloud: TinyCloud) -> None:
    cloud, ec2 = tiny_cloud, tiny_cloud.ec2
    iam = client(cloud, "iam")
    iam.create_role(RoleName="web", AssumeRolePolicyDocument=json.dumps(TRUST))
    iam.put_role_policy(RoleName="web", PolicyName="read", PolicyDocument=json.dumps(READ))
    iam.create_instance_profile(InstanceProfileName="web")
    iam.add_role_to_instance_profile(InstanceProfileName="web", RoleName="web")
    instance_id = cloud.launch_tiny(
        MetadataOptions={"InstanceMetadataTags": "enabled"},
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "one"}]}],
        IamInstanceProfile={"Name": "web"},
    )
    guest = cloud.login(instance_id)

    # The shape of what EC2 serves.
    listed = guest.run("imds meta-data/").splitlines()
    assert listed == sorted(listed)
    assert {"ami-id", "iam/", "instance-id", "network/", "public-keys/", "services/", "tags/"} <= set(listed)
    assert guest.run("imds meta-data/public-keys/") == "0=tests"
    assert guest.run("imds -s meta-data/spot/instance-action || true") == "404"
    assert guest.run("imds -s user-data || true") == "404"
    mac = guest.run("cat /sys/class/net/eth0/address")
    interface = f"meta-data/network/interfaces/macs/{mac}"
    assert guest.run(f"imds {interface}/device-number; echo; imds {interface}/local-ipv4s").split() == [
        "0",
        cloud.describe(instance_id)["PrivateIpAddress"],
    ]
    document = guest.run("imds dynamic/instance-identity/document")
    assert json.loads(document)["instanceId"] == instance_id
    assert f'\n  "instanceId" : "{instance_id}",\n' in document

    # Changes, while it runs.
    assert guest.run("imds meta-data/tags/instance/Name") == "one"
    ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "Name", "Value": "two"}])
    eventually(guest, "imds meta-data/tags/instance/Name", "two")
    ec2.delete_tags(Resources=[instance_id], Tags=[{"Key": "Name"}])
    eventually(guest, "imds -s meta-data/tags/instance", "404")
    ec2.modify_instance_metadata_options(InstanceId=instance_id, HttpTokens="optional")
    eventually(guest, "imds -n meta-data/instance-id", instance_id)
    ec2.modify_instance_metadata_options(InstanceId=instance_id, HttpTokens="required")
    eventually(guest, "imds -n -s meta-data/instance-id", "401")

    # The role's credentials, by a client elsewhere.
    assert guest.run("imds meta-data/iam/security-credentials/") == "web"
    found = json.loads(guest.run("imds meta-data/iam/security-credentials/web"))
    keys = {
        "aws_access_key_id": found["AccessKeyId"], "aws_secret_access_key": found["SecretAccessKey"],
        "aws_session_token": found["Token"],
    }  # fmt: skip
    arn = client(cloud, "sts", **keys).get_caller_identity()["Arn"]
    assert re.fullmatch(rf"arn:aws:sts::\d{{12}}:assumed-role/web/{instance_id}", arn)
    assert client(cloud, "ec2", **keys).describe_instances(InstanceIds=[instance_id])["Reservations"]
    with pytest.raises(Exception, match="UnauthorizedOperation"):
        client(cloud, "ec2", **keys).terminate_instances(InstanceIds=[instance_id])
    assert found_by_botocore(guest)["access_key"] == found["AccessKeyId"]

    # Instance Connect: a key that the machine has never seen logs in, for a minute.
    push_and_log_in(cloud, instance_id, guest)

    ec2.modify_instance_metadata_options(InstanceId=instance_id, HttpEndpoint="disabled")
    eventually(guest, "imds -n -s meta-data/instance-id", "403")


def found_by_botocore(guest: Guest) -> dict[str, str]:
    """What botocore's own provider makes of the service, which it reaches through the machine's sshd."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with guest.connection.forward_local(port, remote_port=80, remote_host="169.254.169.254"):
        fetcher = InstanceMetadataFetcher(timeout=10, base_url=f"http://127.0.0.1:{port}/")
        # Fabric begins to listen in a thread of its own, and botocore gives up at the first refusal.
        found: dict[str, str] = {}
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            found = fetcher.retrieve_iam_role_credentials()
        return found


def push_and_log_in(cloud: TinyCloud, instance_id: str, guest: Guest) -> None:
    pushed = KeyPair.generate()
    public = pushed.public_openssh.split()[:2]
    path = "meta-data/managed-ssh-keys/active-keys/root"
    assert guest.run(f"imds -s {path}/ || true") == "404"
    started = time.monotonic()
    client(cloud, "ec2-instance-connect").send_ssh_public_key(
        InstanceId=instance_id, InstanceOSUser="root", SSHPublicKey=pushed.public_openssh
    )
    text = guest.run(f"imds {path}")
    assert f"#Instance={instance_id}\n" in text
    assert " ".join(public) in text.splitlines()
    address = cloud.describe(instance_id)["PublicIpAddress"]
    with wait_for_login(address, cloud.endpoint.ssh_port, "root", pushed, timeout_s=30) as connection:
        assert str(connection.run("echo in", hide=True).stdout) == "in\n"
    guest.run(f"grep -q {shlex.quote(public[1])} /root/.ssh/authorized_keys && exit 1 || true")
    eventually(guest, f"imds -s {path}/", "404", timeout_s=KEY_LIFETIME_S + 10)
    assert time.monotonic() - started >= KEY_LIFETIME_S - 1

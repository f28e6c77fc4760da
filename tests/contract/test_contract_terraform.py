"""Terraform with the AWS provider, unmodified: made, changed in place, replaced, and destroyed to nothing.

The provider comes from the folder that INSTANT_ENV_TERRAFORM_PLUGINS names (a mirror, as `terraform providers
mirror` makes it), else from where Terraform looks by itself: its usual folders (~/.terraform.d/plugins or
/usr/local/share/terraform/plugins) and its registry.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)

#: https://developer.hashicorp.com/terraform/cli/commands/init#plugin-installation
MIRROR = os.environ.get("INSTANT_ENV_TERRAFORM_PLUGINS", "")


@dataclass
class Configuration:
    """A copy of a file beside this one in a directory of its own, with its state."""

    directory: Path
    environment: dict[str, str]

    def run(self, *arguments: str, code: int | None = 0) -> str:
        result = subprocess.run(
            ["terraform", *arguments, "-no-color"], cwd=self.directory, env=self.environment,
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert code is None or result.returncode == code, result.stdout[-4000:] + result.stderr[-4000:]
        return result.stdout

    def apply(self, **changes: Any) -> dict[str, str]:
        """Apply with these variables from now on, see that a second plan is empty; the outputs."""
        self.environment |= {f"TF_VAR_{name}": str(value) for name, value in changes.items()}
        self.run("apply", "-input=false", "-auto-approve")
        self.run("plan", "-input=false", "-detailed-exitcode")  # 2 when something is to be changed
        outputs = json.loads(self.run("output", "-json"))
        return {name: item["value"] for name, item in outputs.items()}


@pytest.fixture
def configuration(
    request: pytest.FixtureRequest, contract: ContractCloud, tmp_path: Path
) -> Iterator[Configuration]:
    """The configuration that the test is parametrized with, initialized; destroyed afterwards."""
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    shutil.copy(Path(__file__).with_name(request.param), tmp_path / "main.tf")
    others = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}
    tags = {tag["Key"]: tag["Value"] for tag in contract.tags("instance", name="terraform")[0]["Tags"]}
    tags.pop("Name")
    variables = {
        "prefix": contract.name("tf"), "ami": contract.image_id, "instance_type": contract.instance_type,
        "key_name": contract.key_name, "tags": json.dumps(tags),
    }  # fmt: skip
    environment = {
        **others, **contract.environment(), "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1",
        **{f"TF_VAR_{name}": value for name, value in variables.items()},
    }  # fmt: skip
    configuration = Configuration(tmp_path, environment)
    if MIRROR:
        configuration.run("init", "-input=false", f"-plugin-dir={MIRROR}")
    elif "successfully initialized" not in configuration.run("init", "-input=false", code=None):
        pytest.skip("the AWS provider of Terraform is not there and cannot be fetched")
    yield configuration
    configuration.run("destroy", "-input=false", "-auto-approve", code=None)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["main.tf"], indirect=True)
def test_terraform(contract: ContractCloud, configuration: Configuration) -> None:
    if not contract.is_local:
        pytest.skip("it would make IAM roles in a real account")
    ec2: Any = contract.ec2

    def instance(instance_id: str) -> Any:
        return contract.describe(instance_id)

    def others() -> set[str]:
        """Volumes and addresses, which other tests of the suite may have, too."""
        volumes = ec2.describe_volumes(Filters=contract.ours)["Volumes"]
        addresses = ec2.describe_addresses()["Addresses"]
        return {item["VolumeId"] for item in volumes} | {item["AllocationId"] for item in addresses}

    before = others()
    first = configuration.apply()
    new = instance(first["instance_id"])
    assert (new["State"]["Name"], new["PublicIpAddress"]) == ("running", first["address"])
    assert new["Monitoring"]["State"] == "enabled"
    rules: Any = [{"Name": "group-id", "Values": [first["group_id"]]}]
    (rule,) = ec2.describe_security_group_rules(Filters=rules)["SecurityGroupRules"]
    # The description of a rule, a tag, monitoring, and the size of a volume that is attached.
    second = configuration.apply(note="second", data_gib=2)
    assert second == first, "nothing was replaced"
    changed = instance(first["instance_id"])
    assert {tag["Key"]: tag["Value"] for tag in changed["Tags"]}["Note"] == "second"
    assert changed["Monitoring"]["State"] == "disabled"
    (after,) = ec2.describe_security_group_rules(Filters=rules)["SecurityGroupRules"]
    assert after["SecurityGroupRuleId"] == rule["SecurityGroupRuleId"]
    assert after["Description"] == "second"
    assert ec2.describe_volumes(VolumeIds=[first["volume_id"]])["Volumes"][0]["Size"] == 2
    # Replaced before the old one goes: the address and the volume move.
    third = configuration.apply(user_data="second")
    assert third["instance_id"] != first["instance_id"]
    assert (third["address"], third["volume_id"]) == (first["address"], first["volume_id"])
    new = instance(third["instance_id"])
    assert (new["State"]["Name"], new["PublicIpAddress"]) == ("running", first["address"])
    assert first["volume_id"] in {item["Ebs"]["VolumeId"] for item in new["BlockDeviceMappings"]}
    assert instance(first["instance_id"])["State"]["Name"] == "terminated"
    configuration.run("destroy", "-input=false", "-auto-approve")
    assert instance(third["instance_id"])["State"]["Name"] == "terminated"
    assert others() == before
    groups = ec2.describe_security_groups(
        Filters=[{"Name": "group-name", "Values": [f"{contract.name('tf')}*"]}]
    )
    assert not groups["SecurityGroups"]


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["network.tf"], indirect=True)
def test_a_network_of_ones_own(contract: ContractCloud, configuration: Configuration) -> None:
    """VPC, subnets, gateway, routes and groups, an instance that is logged in to, and a spot request."""
    if not contract.is_local:
        pytest.skip("it would cost more than the suite may")
    ec2: Any = contract.ec2
    prefixed: Any = [{"Name": "tag:Name", "Values": [f"{contract.name('tf')}-*"]}]

    def networks() -> dict[str, list[Any]]:
        return {
            "vpcs": ec2.describe_vpcs(Filters=prefixed)["Vpcs"],
            "subnets": ec2.describe_subnets(Filters=prefixed)["Subnets"],
            "gateways": ec2.describe_internet_gateways(Filters=prefixed)["InternetGateways"],
            "tables": ec2.describe_route_tables(Filters=prefixed)["RouteTables"],
        }

    first = configuration.apply()
    instance = contract.describe(first["instance_id"])
    assert (instance["VpcId"], instance["SubnetId"]) == (first["vpc_id"], first["subnet_id"])
    assert instance["PrivateIpAddress"] == first["private_ip"]
    assert first["private_ip"].startswith("10.42.1.")
    guest = contract.login(first["instance_id"])
    assert f"{first['private_ip']}/24" in guest.run("ip -4 address show")
    assert guest.imds("meta-data/local-ipv4").strip() == first["private_ip"]
    build = contract.describe(first["spot_instance_id"])
    assert (build["InstanceLifecycle"], build["SpotInstanceRequestId"]) == ("spot", first["spot_request_id"])
    assert "PublicIpAddress" not in build, "its subnet does not give any"
    # Tags, the public addresses of a subnet, and the description of an interface.
    second = configuration.apply(note="second", public="false")
    assert second == first, "nothing was replaced"
    (subnet,) = ec2.describe_subnets(SubnetIds=[first["subnet_id"]])["Subnets"]
    assert not subnet["MapPublicIpOnLaunch"]
    contract.log_out(first["instance_id"])
    configuration.run("destroy", "-input=false", "-auto-approve")
    for name in ("instance_id", "spot_instance_id"):
        assert contract.describe(first[name])["State"]["Name"] == "terminated"
    assert not any(networks().values())
    of_vpc: Any = [{"Name": "vpc-id", "Values": [first["vpc_id"]]}]
    assert not ec2.describe_security_groups(Filters=of_vpc)["SecurityGroups"]
    assert not ec2.describe_network_interfaces(Filters=of_vpc)["NetworkInterfaces"]
    (request,) = ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[first["spot_request_id"]])[
        "SpotInstanceRequests"
    ]
    assert request["State"] == "cancelled"

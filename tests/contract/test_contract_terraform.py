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
    """A copy of main.tf in a directory of its own, with its state."""

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
def configuration(contract: ContractCloud, tmp_path: Path) -> Iterator[Configuration]:
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    shutil.copy(Path(__file__).with_name("main.tf"), tmp_path / "main.tf")
    others = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}
    tags = {tag["Key"]: tag["Value"] for tag in contract.tags("instance", name="terraform")[0]["Tags"]}
    tags.pop("Name")
    variables = {
        "prefix": contract.name("tf"), "ami": contract.image_id, "instance_type": contract.instance_type,
        "tags": json.dumps(tags),
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

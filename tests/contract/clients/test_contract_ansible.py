"""Ansible's amazon.aws, unmodified: a playbook that is run twice, its inventory, and its undoing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import clients

from instant_env.cloud.keys import KeyPair

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)

FOLDER = clients.CLIENTS / "ansible"
#: Has amazon.aws 10.1.2, which is on no registry of Python's by itself.
WHEEL = "ansible==12.3.0"
_COLLECTION = "ansible_collections/amazon/aws/"


def add_collection(home: Path) -> None:
    pip = home / "venv" / "bin" / "pip"
    clients.step([pip, "download", "--quiet", "--no-deps", "--dest", home / "wheel", WHEEL], home)
    (wheel,) = (home / "wheel").glob("ansible-*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = [name for name in content.namelist() if name.startswith(_COLLECTION)]
        content.extractall(home / "collections", names)
    shutil.rmtree(home / "wheel")


def changes(output: str) -> int:
    (line,) = re.findall(r"^localhost .*", output, re.MULTILINE)
    (count,) = re.findall(r"changed=(\d+)", line)
    return int(count)


@pytest.mark.slow
def test_ansible(contract: ContractCloud, tmp_path: Path) -> None:
    if not contract.is_local:
        pytest.skip("it would make IAM roles in a real account")
    home = clients.python_client("ansible", add_collection)
    prefix, key = contract.name("ansible"), KeyPair.generate()
    tags = {tag["Key"]: tag["Value"] for tag in contract.tags("instance")[0]["Tags"]}
    report = tmp_path / "report.json"
    variables: dict[str, Any] = {
        "prefix": prefix, "role": "instant-env-contract-ansible", "image": contract.image_id,
        "type": contract.instance_type, "public_key": key.public_openssh.strip(), "more_tags": tags,
        "report": str(report), "to_port": 8080,
    }  # fmt: skip
    env = clients.environment(
        contract, tmp_path, ANSIBLE_HOME=str(tmp_path / "ansible"), ANSIBLE_LOCALHOST_WARNING="false",
        ANSIBLE_COLLECTIONS_PATH=str(home / "collections"), LC_ALL="C.UTF-8",
    )  # fmt: skip
    # Ansible does not quote its interpreter's path, and homes may have blanks.
    (tmp_path / "client").symlink_to(home / "venv")
    ansible = _Ansible(tmp_path / "client" / "bin", tmp_path, env, variables)
    assert changes(ansible.play("site.yml")) == 4
    made = json.loads(report.read_text())
    ids = sorted(instance["instance_id"] for instance in made)
    assert len(ids) == 2
    for instance in made:
        data = base64.b64decode(instance["attributes"]["user_data"]["value"]).decode()
        assert data == f"#!/bin/sh\necho '{prefix}'\n"
        assert instance["tags"]["Team"] == "platform: ünïcode"
        assert instance["metadata_options"]["http_put_response_hop_limit"] == 2
        assert instance["iam_instance_profile"]["arn"].endswith("/instant-env-contract-ansible")
        assert [item["device_name"] for item in instance["block_device_mappings"]] == [
            "/dev/xvda",
            "/dev/sdf",
        ]
    assert changes(ansible.play("site.yml")) == 0
    assert sorted(item["instance_id"] for item in json.loads(report.read_text())) == ids
    # In place: the rule goes, another comes, and nothing else changes.
    variables["to_port"] = 8081
    assert changes(ansible.play("site.yml")) == 1
    (group,) = contract.ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [prefix]}])[
        "SecurityGroups"
    ]
    assert {rule.get("ToPort") for rule in group["IpPermissions"]} == {22, 8081, -1, None}
    inventory = ansible.inventory(prefix)
    assert sorted(inventory["aws_ec2"]["hosts"]) == ids
    assert sorted(inventory[f"zone_{contract.zone.replace('-', '_')}"]["hosts"]) == ids
    addresses = {item["instance_id"]: item["public_ip_address"] for item in made}
    hosts = inventory["_meta"]["hostvars"]
    # Text from a cloud is marked, so that Ansible makes no template of it.
    assert {name: hosts[name]["ansible_host"] for name in ids} == {
        name: {"__ansible_unsafe": address} for name, address in addresses.items()
    }
    assert changes(ansible.play("gone.yml")) == 4
    assert changes(ansible.play("gone.yml")) == 0
    assert {contract.describe(instance_id)["State"]["Name"] for instance_id in ids} == {"terminated"}


class _Ansible:
    """One person's Ansible: where it is installed, where it runs, and the variables of the playbooks."""

    def __init__(self, programs: Path, folder: Path, env: dict[str, str], variables: dict[str, Any]) -> None:
        self.programs, self.folder, self.env, self.variables = programs, folder, env, variables

    def play(self, playbook: str) -> str:
        shutil.copy(FOLDER / playbook, self.folder)
        (self.folder / "variables.json").write_text(json.dumps(self.variables))
        own_python = f"ansible_python_interpreter={self.programs / 'python'}"
        command = ["ansible-playbook", playbook, "-e", "@variables.json", "-e", own_python]
        return clients.output([self.programs / command[0], *command[1:]], self.folder, self.env)

    def inventory(self, name: str) -> Any:
        source = self.folder / "hosts.aws_ec2.yml"
        source.write_text((FOLDER / source.name).read_text().replace("NAME", name))
        command = [self.programs / "ansible-inventory", "-i", source, "--list"]
        return json.loads(clients.output(command, self.folder, self.env))

"""Another client: the AWS CLI, unmodified, with what `invoke local.env` prints."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support import awscli

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)


def aws(contract: ContractCloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*awscli.command(), "ec2", *arguments, "--output", "json"],
        env={**os.environ, **contract.environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def answer(contract: ContractCloud, *arguments: str) -> Any:
    result = aws(contract, *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_the_aws_cli(contract: ContractCloud, first: str) -> None:
    query = ["--filters", f"Name=tag:instant-env:run,Values={contract.run_id}", "Name=image-id,Values=ami-*"]
    ids = answer(contract, "describe-instances", *query, "--query", "Reservations[].Instances[].InstanceId")
    assert first in ids
    assert aws(contract, "wait", "instance-running", "--instance-ids", first).returncode == 0
    described = answer(contract, "describe-instances", "--instance-ids", first)["Reservations"][0][
        "Instances"
    ][0]
    assert described["State"] == {"Code": 16, "Name": "running"}
    result = aws(contract, "describe-instances", "--instance-ids", "i-0123456789abcdef0")
    assert result.returncode == 255  # version 1, which is the one on PyPI
    assert (
        "An error occurred (InvalidInstanceID.NotFound) when calling the DescribeInstances" in result.stderr
    )

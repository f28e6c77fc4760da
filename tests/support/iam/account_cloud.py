"""moto as an AWS account that was just opened: for setup, its checklist and the reaper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from instant_env.cloud.session import Cloud
from instant_env.settings import CloudName, Settings

#: What moto does not answer, and what AWS would by its service model.
NOT_IN_MOTO: dict[str, Any] = {
    "service-quotas.GetAWSDefaultServiceQuota": {"Quota": {"Value": 5.0}},
    "freetier.GetAccountPlanState": {"accountId": "123456789012", "accountPlanType": "PAID"},
}


def answered(answer: Any) -> Callable[..., Any]:
    return lambda **_: (SimpleNamespace(status_code=200), {**answer, "ResponseMetadata": {}})


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    monkeypatch.setattr("instant_env.cloud.account.group.caller_cidr", lambda _: "203.0.113.7/32")
    with mock_aws():
        session = boto3.Session(region_name="us-east-1")
        for call, answer in NOT_IN_MOTO.items():
            session.events.register(f"before-call.{call}", answered(answer))
        yield Cloud(
            name=CloudName.AWS, settings=Settings(state_dir=tmp_path), ec2=session.client("ec2"),
            ssm=session.client("ssm"), instance_connect=session.client("ec2-instance-connect"),
            region="us-east-1", ssh_port=22, caller_ip_url="http://127.0.0.1:9/", accelerator="ec2",
            session=session,
        )  # fmt: skip

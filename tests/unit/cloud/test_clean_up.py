"""Interrupts and lost answers: what was asked for, and what is being cleaned up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from support.harness_cloud import Ec2Faults, cloud_in_process

from instant_env.cloud.keys import KeyPair, imported_key_pair
from instant_env.cloud.network import temporary_security_group
from instant_env.cloud.session import Cloud, CloudError, connect, finish_despite_interrupt, retry_cleanup
from instant_env.cloud.tags import Role, new_run_id
from instant_env.settings import CloudName, Settings

LATER = datetime.now(UTC) + timedelta(hours=1)


def test_an_interrupt_does_not_cut_a_clean_up_short() -> None:
    done: list[str] = []

    def clean_up() -> None:
        done.append("first")
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append("second")

    with pytest.raises(KeyboardInterrupt):
        finish_despite_interrupt(clean_up)
    assert done == ["first", "first", "second"]
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        retry_cleanup(clean_up)
    assert done[-1] == "second"


@pytest.mark.parametrize("lost", [KeyboardInterrupt(), ReadTimeoutError(endpoint_url="http://ec2")])
def test_what_was_made_without_an_answer_is_removed(tmp_path: Path, lost: BaseException) -> None:
    def lose(**_: Any) -> None:
        raise lost

    run_id = new_run_id()
    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        for action in ("ImportKeyPair", "CreateSecurityGroup"):
            cloud.ec2.meta.events.register(f"after-call.ec2.{action}", lose)
        before = what_is_there(cloud)
        with (
            pytest.raises(type(lost)),
            imported_key_pair(cloud, KeyPair.generate(), run_id=run_id, role=Role.BENCH, expires_at=LATER),
        ):
            pytest.fail("not made")
        with (
            pytest.raises(type(lost)),
            temporary_security_group(
                cloud, run_id=run_id, role=Role.BENCH, expires_at=LATER, cidr="192.0.2.1/32"
            ),
        ):
            pytest.fail("not made")
        assert what_is_there(cloud) == before


def what_is_there(cloud: Cloud) -> tuple[list[str], list[str]]:
    return (
        [pair["KeyName"] for pair in cloud.ec2.describe_key_pairs()["KeyPairs"]],
        [group["GroupId"] for group in cloud.ec2.describe_security_groups()["SecurityGroups"]],
    )


def test_an_error_while_a_group_is_in_use_is_passed_on_as_it_is(tmp_path: Path) -> None:
    expired = ClientError({"Error": {"Code": "RequestExpired", "Message": "too late"}}, "DescribeInstances")
    with (
        cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud,
        pytest.raises(ClientError, match="RequestExpired"),
        temporary_security_group(
            cloud, run_id=new_run_id(), role=Role.BENCH, expires_at=LATER, cidr="192.0.2.1/32"
        ),
    ):
        raise expired


def test_an_environment_that_leads_to_loopback_is_not_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``eval "$(invoke local.env)"``."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(CloudError, match=r"leads to http://127\.0\.0\.1:9") as caught:
        connect(Settings(cloud=CloudName.AWS, state_dir=tmp_path), lambda _: None)
    assert "AWS_ENDPOINT_URL" in caught.value.hint

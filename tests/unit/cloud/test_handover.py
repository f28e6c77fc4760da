"""Keys given to machines that exist: as a type up to the call, and alone in what they replace."""

from __future__ import annotations

import json
from typing import Any

import asyncssh
import pytest
from support.moto_cloud import launch

from instant_env.cloud import handover
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError
from instant_env.public_key import PublicKey
from instant_env.user_data import Mount, UserData

pytest_plugins = ("support.moto_cloud",)

COMMENT = "me@host \u00fc" + " and more" * 30


def key_with_comment() -> PublicKey:
    return PublicKey.parse(f"{KeyPair.generate().public_key.bare} {COMMENT}")


def test_user_data_has_the_given_key_alone_and_keeps_all_else(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []  # moto 5.2 decodes this call's base64 twice
    monkeypatch.setattr(cloud.ec2, "modify_instance_attribute", lambda **call: calls.append(call))
    filler, receiver = KeyPair.generate().public_key, key_with_comment()
    filled = UserData(ttl_s=60, ssh_keys=(filler,), mounts=(Mount("/dev/sdf", "/data"),), services=("web",))
    handover.in_user_data(cloud, "i-1", receiver, filled)
    assert [call["InstanceId"] for call in calls] == ["i-1"]
    document = json.loads(calls[0]["UserData"]["Value"])["instant-env"]
    assert document == filled.document()["instant-env"] | {"ssh_keys": [str(receiver)]}


def test_a_tag_and_instance_connect_get_the_key_without_its_comment(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comment is free text of any length: a tag would not hold it."""
    machine, key = launch(cloud), key_with_comment()
    handover.by_tag(cloud, machine, key)
    filters: Any = [{"Name": "resource-id", "Values": [machine]}]
    tags = {tag["Key"]: tag["Value"] for tag in cloud.ec2.describe_tags(Filters=filters)["Tags"]}
    assert tags["instant-env:ssh-key"] == key.bare
    calls: list[dict[str, str]] = []
    monkeypatch.setattr(cloud.instance_connect, "send_ssh_public_key", lambda **call: calls.append(call))
    handover.by_instance_connect(cloud, machine, "admin", key)
    assert calls == [{"InstanceId": machine, "InstanceOSUser": "admin", "SSHPublicKey": key.bare}]


def test_a_key_that_a_tag_cannot_hold_is_refused_before_the_call(cloud: Cloud) -> None:
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_public_key().decode()
    with pytest.raises(UsageError, match="a tag holds 256 characters, this ssh-rsa key has 3") as caught:
        handover.by_tag(cloud, launch(cloud), PublicKey.parse(rsa))
    assert "ed25519" in caught.value.hint

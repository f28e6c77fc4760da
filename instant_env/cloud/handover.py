"""Give a public key to a machine that a launch's own key pair does not reach: one that was there before.

Three ways, each read by instant-init or the key agent of our images, and each has its needs:

- ``in_user_data``: the machine is stopped; it reads its user data at the next start.
- ``by_instance_connect``: the machine runs; its sshd asks IMDS for the key at the login, for 60 s.
- ``by_tag``: the machine runs, with tags in its metadata, and its sshd asks for the tag at the login.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from instant_env.cloud.launching.repeats import repeated
from instant_env.cloud.session import Cloud, error_code
from instant_env.cloud.tags import PREFIX
from instant_env.errors import UsageError
from instant_env.public_key import PublicKey
from instant_env.user_data import UserData

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import SecureBlobAttributeValueTypeDef

#: The tag that a machine's key agent reads.
KEY_TAG = f"{PREFIX}ssh-key"
#: EC2's limit for a tag's value (EC2 User Guide, "Tag restrictions").
_TAG_CHARACTERS = 256

#: A machine that DescribeInstances calls running may be unknown to Instance Connect for a moment.
_NOT_YET = frozenset(
    {
        "EC2InstanceStateInvalidException", "EC2InstanceNotFoundException",
        "EC2InstanceUnavailableException",  # EC2 Instance Connect API Reference, SendSSHPublicKey, "Errors"
    }
)  # fmt: skip
_RETRY_S = 0.1


class HandOver(StrEnum):
    """How a machine that runs gets a key; a stopped one always gets it in its user data."""

    CONNECT = "connect"
    TAG = "tag"


def in_user_data(cloud: Cloud, instance_id: str, public_key: PublicKey, user_data: UserData) -> str:
    """Replace the user data of a stopped machine: ``user_data`` with ``public_key`` as its only key.

    Returns how often the call was repeated, in words. botocore's errors are passed on.
    """
    value: SecureBlobAttributeValueTypeDef = {
        "Value": replace(user_data, ssh_keys=(public_key,)).as_json().encode()
    }
    return repeated(
        lambda: cloud.ec2_once.modify_instance_attribute(InstanceId=instance_id, UserData=value),
        "ModifyInstanceAttribute",
    ).note


def by_instance_connect(
    cloud: Cloud,
    instance_id: str,
    username: str,
    public_key: PublicKey,
    *,
    patience_s: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """SendSSHPublicKey; repeated for ``patience_s`` while Instance Connect does not know the machine runs.

    Returns how often it was repeated for other reasons, in words.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return repeated(
                lambda: cloud.instance_connect.send_ssh_public_key(
                    InstanceId=instance_id, InstanceOSUser=username, SSHPublicKey=public_key.bare
                ),
                "SendSSHPublicKey",
            ).note
        except ClientError as error:
            if error_code(error) not in _NOT_YET or time.monotonic() > deadline:
                raise
        sleep(_RETRY_S)


def by_tag(cloud: Cloud, instance_id: str, public_key: PublicKey) -> str:
    """Tag a machine with a key; returns how often the call was repeated, in words.

    Raises UsageError for a key that a tag's value cannot hold, as RSA's.
    """
    if len(public_key.bare) > _TAG_CHARACTERS:
        raise UsageError(
            f"a tag holds {_TAG_CHARACTERS} characters, this {public_key.type} key has "
            f"{len(public_key.bare)}",
            hint="use an ed25519 key, or hand it over by Instance Connect",
        )
    return repeated(
        lambda: cloud.ec2_once.create_tags(
            Resources=[instance_id], Tags=[{"Key": KEY_TAG, "Value": public_key.bare}]
        ),
        "CreateTags",
    ).note

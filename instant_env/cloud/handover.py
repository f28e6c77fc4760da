"""Give a key to a machine that is there already: the three ways that EC2 has for it.

Each is a control-plane call; the machine finds the key by itself, in IMDS. What a way costs and needs:

- ``in_user_data``: the machine is stopped; it reads its user data at the next start.
- ``by_instance_connect``: the machine runs; its sshd asks IMDS for the key at the login, for 60 s.
- ``by_tag``: the machine runs, with tags in its metadata, and looks out for the tag.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from botocore.exceptions import ClientError

from instant_env.cloud.session import Cloud, error_code
from instant_env.cloud.tags import PREFIX

#: The tag a machine's key agent looks out for.
KEY_TAG = f"{PREFIX}ssh-key"

#: A machine that DescribeInstances calls running may be unknown to Instance Connect for a moment.
_NOT_YET = frozenset({"EC2InstanceStateInvalidException", "EC2InstanceNotFoundException"})
_RETRY_S = 0.1


def key_user_data(ttl_s: int, public_keys: list[str]) -> str:
    """User data with a time limit and SSH keys, as instant-init reads it."""
    return json.dumps({"instant-env": {"ttl_s": ttl_s, "ssh_keys": public_keys}})


def in_user_data(cloud: Cloud, instance_id: str, public_key: str, ttl_s: int) -> None:
    """Put a key into the user data of a stopped machine. botocore's ClientError is passed on."""
    document = key_user_data(ttl_s, [public_key])
    cloud.ec2.modify_instance_attribute(InstanceId=instance_id, UserData={"Value": document.encode()})


def by_instance_connect(
    cloud: Cloud,
    instance_id: str,
    username: str,
    public_key: str,
    *,
    patience_s: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """SendSSHPublicKey; repeated for ``patience_s`` while Instance Connect does not know the machine runs."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            cloud.instance_connect.send_ssh_public_key(
                InstanceId=instance_id, InstanceOSUser=username, SSHPublicKey=public_key
            )
            return
        except ClientError as error:
            if error_code(error) not in _NOT_YET or time.monotonic() > deadline:
                raise
        sleep(_RETRY_S)


def by_tag(cloud: Cloud, instance_id: str, public_key: str) -> None:
    """Tag a machine with a key: an ed25519 one, since a tag's value has at most 256 characters."""
    cloud.ec2.create_tags(Resources=[instance_id], Tags=[{"Key": KEY_TAG, "Value": public_key}])

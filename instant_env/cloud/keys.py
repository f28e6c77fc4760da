"""SSH key pairs that live as long as one run.

The private half exists in this process's memory alone: never in a file, a log, a tag or a command line.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import asyncssh
import paramiko
from botocore.exceptions import ClientError

from instant_env.cloud.rules import consistency
from instant_env.cloud.session import Cloud, cloud_error, retry_cleanup, undo_on_error
from instant_env.cloud.tags import Role, read_tags, tag_list
from instant_env.public_key import PublicKey

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import TagTypeDef


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key pair."""

    public_key: PublicKey
    private_openssh: str = field(repr=False)

    @classmethod
    def generate(cls, comment: str = "instant-env") -> KeyPair:
        key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
        return cls(
            public_key=PublicKey.parse(key.export_public_key().decode()),
            private_openssh=key.export_private_key().decode(),
        )

    @property
    def public_openssh(self) -> str:
        """The line for authorized_keys, without a newline."""
        return str(self.public_key)

    def for_asyncssh(self) -> asyncssh.SSHKey:
        return asyncssh.import_private_key(self.private_openssh)

    def for_paramiko(self) -> paramiko.Ed25519Key:
        return paramiko.Ed25519Key.from_private_key(io.StringIO(self.private_openssh))


def _of_name(cloud: Cloud, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    for pair in cloud.ec2.describe_key_pairs(KeyNames=[name])["KeyPairs"]:
        yield pair["KeyName"], read_tags(pair.get("Tags"))


def _import(cloud: Cloud, key: KeyPair, name: str, tags: list[TagTypeDef]) -> None:
    """Raises CloudError; then there is no key pair of ours."""

    def delete_unanswered() -> None:
        there = consistency.described(lambda: _of_name(cloud, name))
        if all(read_tags(tags).items() <= its_tags.items() for _, its_tags in there):
            cloud.ec2.delete_key_pair(KeyName=name)  # which does not mind whether it is there

    with undo_on_error(delete_unanswered, f"importing key pair {name}"):
        consistency.made_once(
            lambda: cloud.ec2.import_key_pair(
                KeyName=name, PublicKeyMaterial=str(key.public_key).encode(),
                TagSpecifications=[{"ResourceType": "key-pair", "Tags": tags}],
            )["KeyName"],
            lambda: _of_name(cloud, name), code="InvalidKeyPair.Duplicate", tags=read_tags(tags),
        )  # fmt: skip


@contextmanager
def imported_key_pair(
    cloud: Cloud, key: KeyPair, *, run_id: str, role: Role, expires_at: datetime,
    keep: Callable[[], bool] = lambda: False,
) -> Iterator[str]:  # fmt: skip
    """Import the public half under the run's name; yield the name once EC2 knows it; delete it on the way
    out, unless ``keep()`` is true by then."""
    name = f"instant-env-{role.value}-{run_id}"
    _import(cloud, key, name, tag_list(run_id, role, name=name, expires_at=expires_at))
    try:
        try:
            consistency.wait_until_known(
                lambda: cloud.ec2.describe_key_pairs(KeyNames=[name])["KeyPairs"], f"key pair {name}"
            )
        except ClientError as error:
            raise cloud_error(error, f"waiting for key pair {name}") from error
        yield name
    finally:
        if not keep():
            retry_cleanup(
                lambda: cloud.ec2.delete_key_pair(KeyName=name), missing_code="InvalidKeyPair.NotFound"
            )

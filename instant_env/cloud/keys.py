"""SSH key pairs that live as long as one run.

The private half exists in this process's memory alone: never in a file, a log, a tag or a command line.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import asyncssh
import paramiko
from botocore.exceptions import ClientError

from instant_env.cloud.rules.consistency import wait_until_known
from instant_env.cloud.session import Cloud, cloud_error, retry_cleanup, undo_on_error
from instant_env.cloud.tags import Role, tag_specifications
from instant_env.public_key import PublicKey


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


@contextmanager
def imported_key_pair(
    cloud: Cloud, key: KeyPair, *, run_id: str, role: Role, expires_at: datetime,
    keep: Callable[[], bool] = lambda: False,
) -> Iterator[str]:  # fmt: skip
    """Import the public half under the run's name; yield the name once EC2 knows it; delete it on the way
    out, unless ``keep()`` is true by then."""
    name = f"instant-env-{role.value}-{run_id}"
    with undo_on_error(lambda: cloud.ec2.delete_key_pair(KeyName=name), f"importing key pair {name}"):
        cloud.ec2.import_key_pair(
            KeyName=name,
            PublicKeyMaterial=str(key.public_key).encode(),
            TagSpecifications=tag_specifications(
                "key-pair", run_id=run_id, role=role, name=name, expires_at=expires_at
            ),
        )
    try:
        try:
            wait_until_known(
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

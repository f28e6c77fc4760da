"""Machines a bake launches: the builder, and the one that verifies.

Each has its own key pair, security group and expiry, and goes whatever happens. A machine whose launch was
cut short (Ctrl-C between the request and its answer) is found again by its tags.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime

import fabric
from botocore.exceptions import ClientError

from instant_env.bake.ssh import LoginError, wait_for_login
from instant_env.cloud import instances
from instant_env.cloud.instances import LaunchRequest
from instant_env.cloud.keys import KeyPair, imported_key_pair
from instant_env.cloud.network import temporary_security_group
from instant_env.cloud.session import Cloud, CloudError, Progress, cloud_error
from instant_env.cloud.tags import Role

#: From request to `running`. EC2 publishes no bound; minutes mean that something is wrong.
RUNNING_TIMEOUT_S = 300.0
#: From `running` to a login. A stock image under software emulation takes a minute or two, as arm64 on x86_64
#: twice that, and beside other guests on the same two cores several times as long.
LOGIN_TIMEOUT_S = 1200.0


@dataclass(frozen=True)
class Machine:
    """A launched machine that we are logged in to."""

    instance_id: str
    address: str
    availability_zone: str
    key: KeyPair
    connection: fabric.Connection


@contextmanager
def machine(
    cloud: Cloud,
    *,
    image_id: str,
    instance_type: str,
    run_id: str,
    role: Role,
    login_user: str,
    expires_at: datetime,
    progress: Progress,
    user_data: str | None = None,
) -> Iterator[Machine]:
    """Launch on demand, wait for a login, yield; terminate and remove key and group on every path."""
    key = KeyPair.generate()
    name = f"instant-env-{role.value}-{run_id}"
    with ExitStack() as stack:
        key_name = stack.enter_context(
            imported_key_pair(cloud, key, run_id=run_id, role=role, expires_at=expires_at)
        )
        group_id = stack.enter_context(
            temporary_security_group(cloud, run_id=run_id, role=role, expires_at=expires_at)
        )
        # Before the launch, so that an interrupt inside it cannot leave a machine behind.
        launched: set[str] = set()
        stack.callback(
            lambda: instances.terminate(
                cloud, sorted(launched | {*instances.live_of_run(cloud, run_id, role)})
            )
        )
        request = LaunchRequest(
            image_id=image_id,
            instance_type=instance_type,
            run_id=run_id,
            role=role,
            name=name,
            expires_at=expires_at,
            client_token=f"{role.value}-{run_id}",
            key_name=key_name,
            security_group_id=group_id,
            user_data=user_data,
        )
        try:
            instance_id = instances.launch(cloud, request)
        except ClientError as error:
            raise cloud_error(error, f"launching {image_id} on {instance_type}") from error
        launched.add(instance_id)
        progress(f"{role.value} {instance_id} launched")
        description = instances.wait_for_state(cloud, instance_id, {"running"}, timeout_s=RUNNING_TIMEOUT_S)
        address = description.get("PublicIpAddress") or description.get("PrivateIpAddress")
        if not address:
            raise CloudError(f"{instance_id} has no address", hint="is the subnet public? set subnet")
        try:
            connection = wait_for_login(address, cloud.ssh_port, login_user, key, timeout_s=LOGIN_TIMEOUT_S)
        except LoginError as error:
            tail = instances.console_tail(cloud, instance_id, 3).replace("\n", " / ")
            raise LoginError(error.message, hint=f"the console ends with: {tail or 'nothing'}") from error
        stack.callback(connection.close)
        progress(f"logged in to {instance_id} as {login_user}")
        yield Machine(instance_id, address, description["Placement"]["AvailabilityZone"], key, connection)

"""Machines a bake launches: the builder, and the one that verifies.

Each has its own key pair, security group and expiry, and is ended whatever happens. A machine whose launch
was cut short (Ctrl-C between the request and its answer) is found again by its tags.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import fabric
from botocore.exceptions import ClientError

from instant_env.bake.execute import StepError, StepLog, run_as_root
from instant_env.cloud import instances
from instant_env.cloud.instances import LaunchOptions, LaunchRequest
from instant_env.cloud.keys import KeyPair, imported_key_pair
from instant_env.cloud.launching.refusals import hint
from instant_env.cloud.network import own_cidr, temporary_security_group
from instant_env.cloud.session import Cloud, cloud_error, finish_despite_interrupt
from instant_env.cloud.tags import Role
from instant_env.errors import InstantEnvError
from instant_env.launch.cloud_config import timer_config
from instant_env.launch.host_keys import confirm_by_console
from instant_env.progress import Doing, Progress
from instant_env.ssh.connection import LoginError, host_key, wait_for_login

#: From request to `running`. EC2 publishes no bound; minutes mean that something is wrong.
RUNNING_TIMEOUT_S = 300.0
#: From `running` to a login. A stock image under software emulation takes a minute or two, as arm64 on x86_64
#: twice that, and beside other guests on the same two cores several times as long.
LOGIN_TIMEOUT_S = 1200.0
#: From the login to the end of cloud-init. EC2 takes seconds; a base under emulation, beside others, minutes.
FIRST_BOOT_TIMEOUT_S = 600
#: From the login to the host keys on the console. cloud-init prints them in its last stage, which under
#: emulation is minutes after sshd serves. EC2 publishes no bound for the console of a Nitro machine, either.
HOST_KEY_TIMEOUT_S = 900.0
_HOST_KEY_POLL_S = 2.0


@dataclass(frozen=True)
class Order:
    """One machine to have. ``instance_types`` are tried in this order where there is no capacity.

    ``private``: reach it by its private address. ``check_host_key``: its host key has to be on its console,
    which somebody on the way to it cannot write to. ``ports``: what its security group admits from the caller
    besides SSH. ``keep_key_in``: where the key goes when something fails
    and the machine is to stay for a look; None ends it in any case.
    """

    image_id: str
    instance_types: tuple[str, ...]
    run_id: str
    role: Role
    login_user: str
    expires_at: datetime
    user_data: str | None = None
    options: LaunchOptions = field(default_factory=LaunchOptions)
    root_device: str = ""
    private: bool = False
    check_host_key: bool = True
    ports: tuple[int, ...] = ()
    keep_key_in: Path | None = None


@dataclass(frozen=True)
class Machine:
    """A launched machine that we are logged in to."""

    instance_id: str
    address: str
    availability_zone: str
    key: KeyPair
    connection: fabric.Connection


@contextmanager
def machine(cloud: Cloud, order: Order, progress: Progress) -> Iterator[Machine]:
    """Launch on demand, wait for a login, yield; terminate and remove key and group on every path.

    Only an InstantEnvError (not an interrupt) leaves them, and only if the order says where to keep the key.
    """
    key, run_id, role = KeyPair.generate(), order.run_id, order.role
    keep_resources = False

    def keep() -> bool:
        return keep_resources

    def terminate() -> None:
        if not keep_resources:
            instances.end_run(cloud, run_id, role)

    with ExitStack() as stack:
        key_name = stack.enter_context(
            imported_key_pair(cloud, key, run_id=run_id, role=role, expires_at=order.expires_at, keep=keep)
        )
        cidr = own_cidr(cloud, private=order.private)
        group_id = stack.enter_context(
            temporary_security_group(
                cloud,
                run_id=run_id,
                role=role,
                expires_at=order.expires_at,
                cidr=cidr,
                ports=order.ports,
                keep=keep,
            )
        )
        # Before the launch, so that an interrupt inside it cannot leave a machine behind.
        stack.callback(finish_despite_interrupt, terminate)
        request = LaunchRequest(
            image_id=order.image_id,
            instance_type=order.instance_types[0],
            run_id=run_id,
            role=role,
            name=f"instant-env-{role.value}-{run_id}",
            expires_at=order.expires_at,
            client_token=f"{role.value}-{run_id}",
            key_name=key_name,
            security_group_id=group_id,
            user_data=order.user_data,
            options=order.options,
            root_device=order.root_device,
        )
        try:
            instance_id = instances.launch_where_there_is_room(cloud, request, order.instance_types, progress)
        except ClientError as error:
            raise cloud_error(error, f"launching {order.image_id}", hint=hint(error)) from error
        progress(f"{role.value} {instance_id} launched")
        progress(Doing(f"waiting for a login to {instance_id}"))
        address = None
        try:
            description = instances.wait_for_state(
                cloud, instance_id, {"running"}, timeout_s=RUNNING_TIMEOUT_S
            )
            address = instances.wait_for_address(cloud, description, private=order.private)
            try:
                connection = wait_for_login(
                    address, cloud.ssh_port, order.login_user, key, timeout_s=LOGIN_TIMEOUT_S
                )
            except LoginError as error:
                tail = instances.console_tail(cloud, instance_id, 3).replace("\n", " / ")
                raise LoginError(error.message, hint=f"the console ends with: {tail or 'nothing'}") from error
            stack.callback(connection.close)
            if order.check_host_key:
                _check_host_key(cloud, instance_id, connection, progress)
            progress(f"logged in to {instance_id} as {order.login_user}")
            zone = description["Placement"]["AvailabilityZone"]
            yield Machine(instance_id, address, zone, key, connection)
        except InstantEnvError:
            if order.keep_key_in is not None:
                keep_resources = True
                path = _write_key(key, order.keep_key_in / f"{key_name}.pem")
                progress(
                    f"{instance_id} is kept until {order.expires_at:%H:%M} UTC or the next `invoke clean`: "
                    f"ssh -i {path} -p {cloud.ssh_port} {order.login_user}@{address or instance_id}"
                )
            raise


def user_data(ttl_s: int) -> str:
    """User data of a stock base: cloud-init ends the machine after ``ttl_s``, even if nobody ever logs in,
    and does not restart it at the end of the first boot.

    AL2023's own configuration has a power_state that reboots where /run/cloud-init-selinux-reboot exists: in
    the middle of a bake. User data come after the image's files, and what they say of a key of it holds
    (cloud-init's documentation, "Power State Change" and "Merging User-Data Sections").
    """
    return timer_config(ttl_s, power_state={"mode": "reboot", "condition": False})


def wait_for_first_boot(connection: fabric.Connection, log: StepLog, progress: Progress) -> None:
    """Return when cloud-init is done with the first boot, at once where there is none: sshd answers long
    before, and strip would remove it while it runs.

    Raises StepError where it does not end (within FIRST_BOOT_TIMEOUT_S).
    """
    progress(Doing("waiting for the end of the first boot"))
    # Its exit status is 1 or 2 after errors of the base's own modules, which are no matter of ours.
    command = (
        "command -v cloud-init >/dev/null || exit 0; "
        f"timeout {FIRST_BOOT_TIMEOUT_S} cloud-init status --wait >/dev/null || [ $? -ne 124 ]"
    )
    try:
        run_as_root(connection, ["sh", "-c", command], log, timeout_s=FIRST_BOOT_TIMEOUT_S + 60)
    except StepError as error:
        raise StepError(
            f"the first boot did not end within {FIRST_BOOT_TIMEOUT_S} s: {error.message}",
            hint=f"`cloud-init status --long` on the machine says what runs; see {log.path}",
        ) from error


#: Exits with 1 and a reason unless the root's partition reaches the end of the disk (less GPT's copy and an
#: alignment of 1 MiB) and its file system the end of the partition (less its tables: ext4 shows 95 %).
_ROOT_IS_GROWN = """
cd "/sys/class/block/$(basename "$(readlink -f "$(findmnt -no SOURCE /)")")"
if [ -e partition ]; then
    end=$(($(cat start) + $(cat size)))
    disk="$(cat ../size)"
    [ $((disk - end)) -le 4096 ] || { echo "its partition ends at sector $end of $disk" >&2; exit 1; }
fi
usable="$(df --output=size -B512 / | tail -n 1 | tr -d ' ')"
sectors="$(cat size)"
if [ $((usable * 10 / 9)) -lt "$sectors" ]; then
    echo "it has $usable of its partition's $sectors sectors" >&2
    exit 1
fi
"""


def check_root_is_grown(connection: fabric.Connection, size_gib: int, log: StepLog) -> None:
    """Return when the root file system fills its volume. Bases grow it by cloud-init (growpart, resizefs),
    images of ours by instant-init, both before a login, or before the end of the first boot.

    Raises StepError where it does not: the steps would run out of space that was asked for.
    """
    try:
        run_as_root(connection, ["sh", "-euc", _ROOT_IS_GROWN], log)
    except StepError as error:
        raise StepError(
            f"the root file system does not fill its volume of {size_gib} GiB: {error.message}",
            hint=f"the base has to grow it at its first boot, or leave root_gib out; see {log.path}",
        ) from error


def _check_host_key(
    cloud: Cloud, instance_id: str, connection: fabric.Connection, progress: Progress
) -> None:
    """Nothing is done on the connection before the machine itself has said whose it is. Raises CloudError and
    HostKeyMismatch."""
    progress(Doing(f"comparing the host key with the console of {instance_id}"))
    try:
        confirm_by_console(
            cloud, instance_id, host_key(connection), timeout_s=HOST_KEY_TIMEOUT_S, poll_s=_HOST_KEY_POLL_S
        )
    except ClientError as error:
        raise cloud_error(error, f"reading the console of {instance_id}") from error


def _write_key(key: KeyPair, path: Path) -> Path:
    """Write the private half, readable by this user only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key.private_openssh)
    return path

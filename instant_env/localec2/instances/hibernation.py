"""Hibernation: what a launch must have for it, and how a machine is put to sleep.

As on EC2 the guest does it: the sleep key is pressed, the guest writes its memory to a swap of its own on the
root volume and powers off; the next start finds it there and goes on. The guest has to be prepared for it (on
EC2 by ec2-hibinit-agent): swap as large as its memory, `resume=` for its kernel, and somebody who answers the
key (systemd-logind does).
"""

from __future__ import annotations

from instant_env.localec2.instances.guest_size import memory_mib_of
from instant_env.localec2.records.records import ImageMapping, ImageRecord, InstanceRecord
from instant_env.localec2.state.moto_api import INSTANCE_TYPES, EC2ClientError

#: The guest writes up to its whole memory; on a slow disk under emulation that took 4 to 30 s.
SLEEP_TIMEOUT_S = 120.0


def check_configuration(
    image: ImageRecord, instance_type: str, root: ImageMapping, chosen_memory_mib: int
) -> None:
    """Refuse a launch whose machine could not hibernate, as EC2 does.

    ``chosen_memory_mib`` is guest_memory_mib of the settings.
    """
    problem = ""
    if not INSTANCE_TYPES[instance_type].get("HibernationSupported"):
        problem = f"Hibernation is not supported for the instance type '{instance_type}'."
    elif image.architecture != "x86_64":
        problem = "localec2 hibernates x86_64 machines only: its arm64 machines have no sleep key."
    elif not root.encrypted:
        problem = "The root volume must be encrypted for hibernation."
    elif root.size_gib * 1024 <= memory_mib_of(instance_type, chosen_memory_mib):
        problem = f"The root volume of {root.size_gib} GiB has no room for the memory."
    if problem:
        raise EC2ClientError("UnsupportedHibernationConfiguration", problem)


def check_copy(instance: InstanceRecord | None) -> None:
    """Refuse snapshots and images of an instance that is launched for hibernation, as EC2 does."""
    if instance is not None and instance.hibernation:
        raise EC2ClientError(
            "UnsupportedOperation",
            f"The instance '{instance.id}' is enabled for hibernation: its volumes cannot be copied.",
        )


def check_stop(instance: InstanceRecord, ready_in_s: float) -> None:
    """Refuse StopInstances(Hibernate) of an instance that was not launched for it, or just now.

    EC2 User Guide, "Troubleshoot EC2 instance hibernation": it takes up to two minutes after a launch.
    """
    if not instance.hibernation:
        raise EC2ClientError(
            "UnsupportedHibernationConfiguration",
            f"The instance '{instance.id}' was not configured for hibernation when it was launched.",
        )
    if instance.state != "running":
        raise EC2ClientError(
            "IncorrectInstanceState",
            f"The instance '{instance.id}' is not in a state from which it can be hibernated "
            f"({instance.state}).",
        )
    if ready_in_s > 0:
        raise EC2ClientError(
            "UnsupportedOperation",
            f"Instance {instance.id} is not ready to hibernate yet; retry in a few minutes.",
        )

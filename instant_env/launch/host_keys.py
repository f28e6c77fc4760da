"""Read a machine's SSH host keys from its serial console, by EC2's API and not by the machine's network.

Our init and key agent print their public halves there, between the lines that cloud-init uses, and stock
images' cloud-init does so as well (cc_keys_to_console).
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING

from instant_env.cloud.instances import console
from instant_env.cloud.session import Cloud
from instant_env.errors import InstantEnvError
from instant_env.public_key import PublicKey
from instant_env.ssh.host_keys import HostKeys
from instant_env.waiting import wait_until

if TYPE_CHECKING:  # that package imports this module
    from instant_env.launch.techniques.base import PoolSlot

_BEGIN = "-----BEGIN SSH HOST KEY KEYS-----"
_END = "-----END SSH HOST KEY KEYS-----"
#: Our init prints them ten seconds after sshd serves, or two after the first login. GetConsoleOutput is
#: throttled like other Describe calls (EC2 API Reference, "Request throttling").
POLL_S = 1.0


class NoHostKeys(InstantEnvError):
    """A machine's console does not have its host keys."""


def in_console(output: str) -> HostKeys | None:
    """The keys of the newest whole block: a machine prints one at each start."""
    before, begin, after = output.rpartition(_BEGIN)
    while begin:
        block, end, _ = after.partition(_END)
        if end and (keys := HostKeys.parse(_without_prefixes(block))) is not None:
            return keys
        before, begin, after = before.rpartition(_BEGIN)
    return None


def _without_prefixes(block: str) -> str:
    """cloud-init's lines are as we write them; systemd's journal on the console puts words before them."""
    lines = []
    for line in block.splitlines():
        for kind in ("ssh-", "ecdsa-"):
            if (start := line.find(kind)) >= 0:
                lines.append(line[start:])
                break
    return "\n".join(lines)


def read_console(cloud: Cloud, instance_id: str) -> HostKeys | None:
    """One look at the console. None while the keys are not there. botocore's errors are passed on."""
    text, _ = console(cloud, instance_id)
    return in_console(text)


async def wait_for_host_keys(
    cloud: Cloud, instance_id: str, *, timeout_s: float, poll_s: float = POLL_S
) -> HostKeys:
    """Look until they are there. Raises NoHostKeys after ``timeout_s``, and botocore's errors."""
    deadline = time.monotonic() + timeout_s
    while True:
        keys = await asyncio.to_thread(read_console, cloud, instance_id)
        if keys is not None:
            return keys
        if time.monotonic() + poll_s > deadline:
            raise NoHostKeys(
                f"{instance_id} has no host keys on its console after {timeout_s:.0f} s",
                hint="use an AMI of a recipe of this version; see: aws ec2 get-console-output",
            )
        await asyncio.sleep(poll_s)


def confirm_by_console(
    cloud: Cloud, instance_id: str, shown: PublicKey, *, timeout_s: float, poll_s: float = POLL_S
) -> None:
    """Look until the console has the machine's host keys; return when ``shown``, which the server showed, is
    one of them. Raises HostKeyMismatch, NoHostKeys after ``timeout_s``, and botocore's errors."""
    keys = wait_until(lambda: read_console(cloud, instance_id), timeout_s, poll_s)
    if keys is None:
        raise NoHostKeys(
            f"{instance_id} has no host keys on its console after {timeout_s:.0f} s, and its server showed "
            f"{shown.fingerprint}",
            hint="see: aws ec2 get-console-output; a base that does not print them needs --no-check-host-key",
        )
    keys.check(shown)


async def with_host_keys(cloud: Cloud, slot: PoolSlot, *, timeout_s: float = 10.0) -> PoolSlot:
    """A slot that was found again (:func:`instant_env.launch.slots.adopt`) with its machine's host keys.

    Raises as :func:`wait_for_host_keys`.
    """
    keys = await wait_for_host_keys(cloud, slot.instance_id, timeout_s=timeout_s)
    return dataclasses.replace(slot, host_keys=keys)

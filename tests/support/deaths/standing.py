"""What a client that was killed leaves in a cloud, and what ends each of it, in words for a table."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from instant_env.cloud import janitor
from instant_env.cloud.janitor import Policy
from instant_env.cloud.removal import remove
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import PREFIX, PROJECT_FILTER, expiry, read_tags

#: Machines that run must end by themselves within this.
LONGEST_TIMER_S = 2 * 3600
#: systemd-run as our bakes and cold's user data have it.
_ARMED = re.compile(r"systemd-run .*--on-active=(\d+)s")
_UNIT = re.compile(r"--unit=(\S+)")
_DISARMED = re.compile(r"systemctl stop ([\w-]+)\.timer")


#: What the verb is for.
_RESULT = "the finished AMI"


@dataclass(frozen=True)
class Row:
    """One line of the table: after ``call``, ``stands`` is there."""

    verb: str
    call: str
    stands: str
    timer: str
    rest: str

    def as_markdown(self) -> str:
        return f"| {self.verb} | {self.call} | {self.stands} | {self.timer} | {self.rest} |"


def timers_of(user_data: str, commands: Sequence[str]) -> dict[str, int]:
    """Seconds by the timer's name: what the machine's user data arms, and what was told to it by SSH."""
    timers: dict[str, int] = {}
    if user_data.startswith("#cloud-config"):
        for command in yaml.safe_load(user_data).get("bootcmd", []):
            _arm(timers, " ".join(command))
    elif user_data:
        seconds = json.loads(user_data).get("instant-env", {}).get("ttl_s")
        if seconds:
            timers["init"] = seconds
    for command in commands:
        _arm(timers, command)
        for unit in _DISARMED.findall(command):
            timers.pop(unit, None)
    return timers


def _arm(timers: dict[str, int], command: str) -> None:
    if (seconds := _ARMED.search(command)) and (unit := _UNIT.search(command)):
        timers[unit[1]] = int(seconds[1])


def machines(cloud: Cloud) -> list[Any]:
    """Ours that have not ended."""
    answer = cloud.ec2.describe_instances(Filters=PROJECT_FILTER)
    found = [machine for reservation in answer["Reservations"] for machine in reservation["Instances"]]
    return [machine for machine in found if machine["State"]["Name"] != "terminated"]


def look(cloud: Cloud, verb: str, call: str, commands: Sequence[str]) -> Row:
    """The row of what stands now. Fails where a machine runs without a timer, or with one too long, and where
    something else would never be found by `invoke clean`."""
    now = datetime.now(UTC)
    names, timers, latest = [], [], now
    for machine in machines(cloud):
        role, state = read_tags(machine["Tags"])[f"{PREFIX}role"], machine["State"]["Name"]
        names.append(f"{role} machine, {'stopped' if state in ('stopped', 'stopping') else 'runs'}")
        if state in ("stopped", "stopping"):
            timers.append("does not run")
            continue
        timers.append(_timer_of(cloud, machine, commands))
    for name, _, tags in _others(cloud):
        end = expiry(tags)
        assert end is not None or tags.get(f"{PREFIX}role") == "image", f"{name} has no expiry"
        latest = max(latest, end or now)
        names.append(name)
    for machine in machines(cloud):
        end = expiry(read_tags(machine["Tags"]))
        assert end is not None, machine["InstanceId"]
        latest = max(latest, end)
    hours = (latest - now) / timedelta(hours=1)
    rest = f"`clean`, at once here and after {-int(-hours // 1)} h from elsewhere" if latest > now else "–"
    return Row(verb, call, ", ".join(sorted(names)) or "–", "; ".join(sorted(set(timers))) or "–", rest)


def _timer_of(cloud: Cloud, machine: Any, commands: Sequence[str]) -> str:
    instance_id = machine["InstanceId"]

    def attribute(name: Any, key: str) -> str:
        answer: Any = cloud.ec2.describe_instance_attribute(InstanceId=instance_id, Attribute=name)
        return str(answer[key].get("Value", ""))

    user_data = _decoded(attribute("userData", "UserData"))
    is_builder = read_tags(machine["Tags"])[f"{PREFIX}role"] == "builder"
    timers = timers_of(user_data, commands if is_builder else ())
    assert timers, f"{instance_id} would run for ever: {user_data!r}"
    soonest_s = min(timers.values())
    assert soonest_s <= LONGEST_TIMER_S, timers
    behaviour = attribute("instanceInitiatedShutdownBehavior", "InstanceInitiatedShutdownBehavior")
    return f"{behaviour}s itself after {soonest_s // 60} min"


def _decoded(text: str) -> str:
    """DescribeInstanceAttribute answers base64."""
    return base64.b64decode(text).decode() if text else ""


def _others(cloud: Cloud) -> list[tuple[str, str, dict[str, str]]]:
    """Name, id and tags of what is no machine, nor goes with one."""
    ec2 = cloud.ec2
    cards = ec2.describe_network_interfaces(Filters=PROJECT_FILTER)["NetworkInterfaces"]
    images = ec2.describe_images(Owners=["self"], Filters=PROJECT_FILTER)["Images"]
    used = {m["Ebs"]["SnapshotId"] for image in images for m in image["BlockDeviceMappings"] if "Ebs" in m}
    found: list[tuple[str, str, Any]] = [
        *(
            ("key pair", one["KeyPairId"], one.get("Tags"))
            for one in ec2.describe_key_pairs(Filters=PROJECT_FILTER)["KeyPairs"]
        ),
        *(
            ("security group", one["GroupId"], one.get("Tags"))
            for one in ec2.describe_security_groups(Filters=PROJECT_FILTER)["SecurityGroups"]
        ),
        *(
            ("volume", one["VolumeId"], one.get("Tags"))
            for one in ec2.describe_volumes(Filters=PROJECT_FILTER)["Volumes"]
            if not any(attachment["DeleteOnTermination"] for attachment in one["Attachments"])
        ),
        *(
            ("elastic IP", one["AllocationId"], one.get("Tags"))
            for one in ec2.describe_addresses(Filters=PROJECT_FILTER)["Addresses"]
        ),
        *(
            ("interface", one["NetworkInterfaceId"], one.get("TagSet"))
            for one in cards
            if not one.get("Attachment", {}).get("DeleteOnTermination")
        ),
        *(
            ("AMI" if expiry(read_tags(one["Tags"])) else _RESULT, one["ImageId"], one["Tags"])
            for one in images
        ),
        *(
            ("snapshot", one["SnapshotId"], one.get("Tags"))
            for one in ec2.describe_snapshots(OwnerIds=["self"], Filters=PROJECT_FILTER)["Snapshots"]
            if one["SnapshotId"] not in used
        ),
    ]
    return [(name, resource_id, read_tags(tags)) for name, resource_id, tags in found]


def clean(cloud: Cloud) -> list[str]:
    """`invoke clean` here, where the run is known to be dead; AMIs that are results go too. Returns what is
    left."""
    removals = janitor.survey(cloud, Policy(keep=99)).removals
    failures = remove(cloud, removals, lambda _: None).failures
    assert failures == [], failures
    for image in cloud.ec2.describe_images(Owners=["self"], Filters=PROJECT_FILTER)["Images"]:
        cloud.ec2.deregister_image(ImageId=image["ImageId"], DeleteAssociatedSnapshots=True)
    left = [f"{name} {resource_id}" for name, resource_id, _ in _others(cloud)]
    return left + [machine["InstanceId"] for machine in machines(cloud)]


def elsewhere_would_clean(cloud: Cloud) -> None:
    """On another computer, which knows nothing of the run, everything is removable once it has expired."""
    directory = cloud.settings.state_dir / "another"
    other = dataclasses.replace(cloud, settings=cloud.settings.model_copy(update={"state_dir": directory}))
    later = datetime.now(UTC) + timedelta(days=2)
    removals = {row.id for row in janitor.survey(other, Policy(keep=99), later).removals}
    stands = {resource_id for name, resource_id, _ in _others(cloud) if name != _RESULT}
    stands |= {machine["InstanceId"] for machine in machines(cloud)}
    assert not stands - removals, stands - removals

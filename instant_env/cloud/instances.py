"""Machines: launch one, wait for a state, end it for certain."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.arch import Arch
from instant_env.cloud.launching.places import Place, candidates, leaves_choice
from instant_env.cloud.launching.refusals import is_elsewhere, is_of_the_type
from instant_env.cloud.launching.repeats import Answer, repeated
from instant_env.cloud.rules.consistency import is_not_known_to_launches, repeat_while_unknown
from instant_env.cloud.session import Cloud, CloudError, cloud_error, error_code, retry_cleanup
from instant_env.cloud.tags import Role, project_filter, tag_specifications
from instant_env.errors import UsageError
from instant_env.progress import Progress
from instant_env.settings import CloudName
from instant_env.waiting import wait_until

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import EbsBlockDeviceTypeDef, InstanceTypeDef, RunInstancesRequestTypeDef

#: How long a public address may come after `running`. EC2 publishes no bound; seconds were seen.
ADDRESS_TIMEOUT_S = 30.0

#: A current general-purpose generation that exists for both architectures.
_DEFAULT_TYPES = {Arch.X86_64: "m7i.large", Arch.ARM64: "m7g.large"}

#: Families that end in these letters after the generation are Graviton (t4g, m7g, c7gn, ...).
_GRAVITON = ("g", "gd", "gn", "ge", "gb")

#: What a builder may be instead where there is none of those: of about the same size, other generations.
_ALTERNATIVES = {
    Arch.X86_64: ("m7i-flex.large", "m6i.large", "m7a.large", "c7i.large"),
    Arch.ARM64: ("m6g.large", "c7g.large", "t4g.large"),
}

#: GetConsoleOutput's where a type's console cannot be read while it is written.
_NO_LATEST = frozenset({"UnsupportedOperation", "InvalidParameterCombination", "InvalidParameterValue"})

_NOT_FOUND = "InvalidInstanceID.NotFound"
#: More than two minutes in all: before NotFound is believed, the Developer Guide wants growing pauses of
#: up to minutes ("Eventual consistency in the Amazon EC2 API").
_NOT_YET_PAUSES_S = (0.25, 1.0, 4.0, 10.0, 20.0, 40.0, 60.0)
#: How much later a second look at the tags is.
_TAGS_LATE_S = 15.0

_LIVE_STATES = ("pending", "running", "stopping", "stopped", "shutting-down")


class Market(StrEnum):
    """How the machine is paid for."""

    SPOT = "spot"
    ON_DEMAND = "on-demand"


def fits(instance_type: str, arch: Arch) -> bool:
    """Whether machines of this type are of this architecture, by the type's name."""
    family = instance_type.partition(".")[0].removesuffix("-flex")
    letters = family.lstrip("abcdefghijklmnopqrstuvwxyz").lstrip("0123456789")
    is_arm = letters.startswith(_GRAVITON) or family == "a1"
    return is_arm == (arch is Arch.ARM64)


def default_type(cloud: Cloud, arch: Arch, override: str | None = None) -> str:
    """The instance type to use; raises UsageError when the chosen one is of another architecture."""
    chosen = override or cloud.settings.instance_type or _DEFAULT_TYPES[arch]
    if not fits(chosen, arch):
        raise UsageError(f"instance type {chosen} is not {arch}", hint=f"for example: {_DEFAULT_TYPES[arch]}")
    return chosen


def usual_type(cloud: Cloud, arch: Arch) -> str:
    """The configured type if it is of this architecture, else the architecture's default."""
    configured = cloud.settings.instance_type
    return configured if configured and fits(configured, arch) else _DEFAULT_TYPES[arch]


def builder_types(cloud: Cloud, arch: Arch, requested: Sequence[str]) -> tuple[str, ...]:
    """Types for a machine of which only the size matters, in the order to try them: the requested ones alone,
    or the default and others like it."""
    if requested:
        return tuple(default_type(cloud, arch, kind) for kind in requested)
    first = default_type(cloud, arch)
    return (first,) if cloud.settings.instance_type else (first, *_ALTERNATIVES[arch])


def default_market(cloud: Cloud) -> Market:
    """Spot on AWS, where it saves money; localec2's machines cost nothing."""
    return Market.SPOT if cloud.name is CloudName.AWS else Market.ON_DEMAND


@dataclass(frozen=True)
class LaunchOptions:
    """What an experiment may vary of a launch; the defaults are how we launch otherwise.

    ``zone`` and ``subnet_id``: where. A request names the subnet alone of the two, or the zone.
    ``root_gib`` None is the AMI's own size. ``volume_rate_mib_s``: EBS's provisioned initialisation rate of
    the root volume, 100 to 300 MiB/s (API_EbsBlockDevice). Both need the AMI's root device.
    """

    hop_limit: int = 1
    zone: str | None = None
    subnet_id: str | None = None
    root_gib: int | None = None
    volume_rate_mib_s: int | None = None
    instance_profile: str | None = None
    tags_in_metadata: bool = False
    encrypted: bool = False
    kms_key_id: str | None = None
    volume_type: str | None = None
    hibernation: bool = False


@dataclass(frozen=True)
class LaunchRequest:
    """One machine to launch.

    ``interface_id``: an existing network interface, which has subnet and security group of its own.
    """

    image_id: str
    instance_type: str
    run_id: str
    role: Role
    name: str
    expires_at: datetime
    client_token: str
    key_name: str | None = None
    security_group_id: str | None = None
    market: Market = Market.ON_DEMAND
    shutdown_behavior: str = "terminate"
    user_data: str | None = None
    extra_tags: Mapping[str, str] = field(default_factory=dict)
    options: LaunchOptions = field(default_factory=LaunchOptions)
    root_device: str = ""
    interface_id: str | None = None


def request_body(cloud: Cloud, request: LaunchRequest) -> RunInstancesRequestTypeDef:
    """RunInstances' parameters for a request: IMDSv2 only, tags on machine, volumes and new interface."""
    options = request.options
    tagged: list[Literal["instance", "volume", "network-interface"]] = ["instance", "volume"]
    if not request.interface_id:  # an existing one has its tags
        tagged.append("network-interface")
    body: RunInstancesRequestTypeDef = {
        "ImageId": request.image_id,
        "InstanceType": request.instance_type,  # type: ignore[typeddict-item]
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": request.client_token,
        "InstanceInitiatedShutdownBehavior": request.shutdown_behavior,  # type: ignore[typeddict-item]
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": options.hop_limit,
        },
        "TagSpecifications": tag_specifications(
            *tagged,
            run_id=request.run_id,
            role=request.role,
            name=request.name,
            expires_at=request.expires_at,
            extra=request.extra_tags,
        ),
    }
    if request.key_name:
        body["KeyName"] = request.key_name
    if request.interface_id:
        body["NetworkInterfaces"] = [{"DeviceIndex": 0, "NetworkInterfaceId": request.interface_id}]
    else:
        if request.security_group_id:
            body["SecurityGroupIds"] = [request.security_group_id]
        _put_place(body, cloud, options)
    if options.tags_in_metadata:
        body["MetadataOptions"]["InstanceMetadataTags"] = "enabled"
    if options.instance_profile:
        body["IamInstanceProfile"] = {"Name": options.instance_profile}
    if options.hibernation:
        body["HibernationOptions"] = {"Configured": True}
    if root := _root_volume(options):
        body["BlockDeviceMappings"] = [{"DeviceName": request.root_device, "Ebs": root}]
    if request.user_data:
        body["UserData"] = request.user_data
    if request.market is Market.SPOT:
        body["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        }
    return body


def _put_place(body: RunInstancesRequestTypeDef, cloud: Cloud, options: LaunchOptions) -> None:
    """Subnet or zone, never both: EC2 refuses a zone that is not the subnet's."""
    subnet_id = options.subnet_id or cloud.settings.subnet
    if options.zone and subnet_id and not options.subnet_id:
        raise UsageError(
            f"a machine in {options.zone} cannot be in the configured subnet {subnet_id} as well",
            hint="leave the zone out, or let the zone's subnet be looked for",
        )
    if subnet_id:
        body["SubnetId"] = subnet_id
    elif options.zone:
        body["Placement"] = {"AvailabilityZone": options.zone}


def _root_volume(options: LaunchOptions) -> EbsBlockDeviceTypeDef:
    """What a launch says of its root volume; empty when that is the AMI's business."""
    root: EbsBlockDeviceTypeDef = {}
    if options.root_gib is not None:
        root["VolumeSize"] = options.root_gib
    if options.volume_rate_mib_s is not None:
        root["VolumeInitializationRate"] = options.volume_rate_mib_s
    if options.encrypted or options.hibernation:  # EC2 hibernates to an encrypted root volume only
        root["Encrypted"] = True
    if options.kms_key_id:
        root["KmsKeyId"] = options.kms_key_id
    if options.volume_type:
        root["VolumeType"] = options.volume_type  # type: ignore[typeddict-item]
    return root


def launch(cloud: Cloud, request: LaunchRequest) -> str:
    """As :func:`launch_and_tell`, for whom it does not matter what was repeated."""
    return launch_and_tell(cloud, request).value


def launch_and_tell(cloud: Cloud, request: LaunchRequest) -> Answer[str]:
    """RunInstances; the instance id. botocore's errors are passed on.

    A repeat (see `repeats`) has the same client token, so it answers the same machine.
    """
    body = request_body(cloud, request)

    def once() -> str:
        with cloud.launches.request(request.run_id) as answered:
            instance_id = cloud.ec2_once.run_instances(**body)["Instances"][0]["InstanceId"]
            answered(instance_id)
        return instance_id

    return repeated(once, "RunInstances")


def start(cloud: Cloud, instance_id: str) -> str:
    """StartInstances; returns how often it was repeated, in words. botocore's errors are passed on."""
    return repeated(lambda: cloud.ec2_once.start_instances(InstanceIds=[instance_id]), "StartInstances").note


def open_connection(cloud: Cloud, run_id: str) -> None:
    """Open or revive the connection that the next launch takes, so that no t1 holds a TLS handshake."""
    with suppress(ClientError, BotoCoreError):  # the launch itself will say what is wrong
        cloud.ec2_once.describe_instances(Filters=project_filter(run=run_id))


def launch_where_there_is_room(
    cloud: Cloud, request: LaunchRequest, instance_types: Sequence[str], progress: Progress
) -> str:
    """RunInstances; where there is no capacity, again in each zone, and then with the next type.

    A configured subnet is in one zone, so only types are tried there. Each try has a client token of its own:
    EC2 refuses one that comes with other parameters. The last try's ClientError is passed on.
    """
    refusal: ClientError | None = None
    tries = 0
    for kind in instance_types:
        for place in _places_of(cloud, kind):
            tries += 1
            one = replace(
                request,
                instance_type=kind,
                client_token=f"{request.client_token}-{tries}",
                options=replace(request.options, subnet_id=place.subnet_id) if place else request.options,
            )
            try:
                answer = _launch_once_known(cloud, one, progress)
                if answer.note:
                    progress(answer.note)
                return answer.value
            except ClientError as error:
                if not is_elsewhere(error):
                    raise
                refusal = error
                progress(
                    f"no {kind} in {place.zone if place else 'the zone that EC2 took'}: {error_code(error)}"
                )
                if is_of_the_type(error):
                    break
    if refusal is None:
        raise CloudError(f"no subnet of ours has {' or '.join(instance_types)}", hint="name another type")
    raise refusal


def _launch_once_known(cloud: Cloud, request: LaunchRequest, progress: Progress) -> Answer[str]:
    """As `launch`, again for a minute while EC2 does not know a group, key, image or profile that is new: not
    for what is measured. A refused request has used no client token up."""
    return repeat_while_unknown(
        lambda: launch_and_tell(cloud, request),
        is_not_known_to_launches,
        on_refusal=lambda error: progress(f"EC2 does not know it yet, so again: {error}"),
    )


def _places_of(cloud: Cloud, instance_type: str) -> Iterator[Place | None]:
    """Where to try a type: first where EC2 likes, then in each zone; looked up when they are needed.

    EC2 chooses among the default subnets, so that is left out when one of them gives no public address.
    """
    if cloud.settings.subnet:
        yield None
        return
    if leaves_choice(cloud):
        yield None
    with suppress(UsageError):  # no zone that we can use has the type
        yield from sorted(candidates(cloud, [instance_type]), key=lambda place: place.zone)


def describe(cloud: Cloud, instance_id: str) -> InstanceTypeDef | None:
    """One instance, or None while EC2 has not heard of it yet (NotFound right after a launch is normal)."""
    try:
        answer = repeated(
            lambda: cloud.ec2_polls.describe_instances(InstanceIds=[instance_id]), "DescribeInstances"
        ).value
    except ClientError as error:
        if error_code(error) == _NOT_FOUND:
            return None
        raise
    for reservation in answer["Reservations"]:
        for instance in reservation["Instances"]:
            return instance
    return None


class NoPublicAddress(CloudError):
    """A machine runs without the public address that we would reach it by."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(
            f"{instance_id} has no public address {ADDRESS_TIMEOUT_S:.0f} s after it was running",
            hint="a subnet with MapPublicIpOnLaunch gives one; --ssh-private uses private ones",
        )


def address_of(instance: InstanceTypeDef, *, private: bool) -> str:
    """Where a machine is reached; empty as long as it is not known.

    A machine that is `running` may still lack its public address (ClusterHQ/flocker#2237,
    aws/aws-sdk-ruby#751), so the private one is never taken in its place.
    """
    return instance.get("PrivateIpAddress", "") if private else instance.get("PublicIpAddress", "")


def wait_for_address(
    cloud: Cloud, instance: InstanceTypeDef, *, private: bool, timeout_s: float = ADDRESS_TIMEOUT_S
) -> str:
    """The address of a machine that runs. Raises NoPublicAddress when none comes in time."""
    instance_id = instance["InstanceId"]
    if address := address_of(instance, private=private):
        return address

    def look() -> str:
        description = describe(cloud, instance_id)
        return address_of(description, private=private) if description is not None else ""

    if address := wait_until(look, timeout_s, 0.5):
        return address
    raise NoPublicAddress(instance_id)


def wait_for_state(
    cloud: Cloud,
    instance_id: str,
    states: Collection[str],
    *,
    timeout_s: float,
    poll_s: float = 0.25,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> InstanceTypeDef:
    """Poll one instance until its state is one of ``states``.

    Raises CloudError on the timeout, and at once when the machine ended and that was not wanted.
    """
    deadline = clock() + timeout_s
    state = "unknown"
    while clock() < deadline:
        instance = describe(cloud, instance_id)
        if instance is not None:
            state = instance["State"]["Name"]
            if state in states:
                return instance
            if state in ("terminated", "shutting-down") and "terminated" not in states:
                reason: Any = instance.get("StateReason", {})
                raise CloudError(f"{instance_id} ended by itself: {reason.get('Message', 'no reason given')}")
        sleep(poll_s)
    raise CloudError(
        f"{instance_id} is still {state} after {timeout_s:.0f} s, wanted {' or '.join(sorted(states))}",
        hint="see its console: aws ec2 get-console-output",
    )


def console(cloud: Cloud, instance_id: str) -> tuple[str, bool]:
    """The text of the serial console, and whether it is the present one.

    Without Latest, EC2 answers what was on it shortly after the machine's last transition. Types that are not
    built on Nitro have nothing else (API_GetConsoleOutput). botocore's errors are passed on.
    """
    latest = True
    try:
        answer = cloud.ec2.get_console_output(InstanceId=instance_id, Latest=True)
    except ClientError as error:
        if error_code(error) not in _NO_LATEST:
            raise
        latest = False
        answer = cloud.ec2.get_console_output(InstanceId=instance_id)
    return answer.get("Output") or "", latest


def console_tail(cloud: Cloud, instance_id: str, lines: int = 15) -> str:
    """The last lines of the serial console, or an empty text when there is none."""
    try:
        output, _ = console(cloud, instance_id)
    except (ClientError, BotoCoreError):
        return ""
    return "\n".join(output.splitlines()[-lines:])


def request_end(
    cloud: Cloud,
    instance_id: str,
    *,
    has_nothing_to_lose: bool = False,
    sleep: Callable[[float], None] | None = None,
) -> bool:
    """TerminateInstances; False when the machine is not known any more.

    ``has_nothing_to_lose``: its system is not shut down first, which takes seconds (API reference,
    TerminateInstances: SkipOsShutdown).

    In the first two minutes after RunInstances has answered with this id, EC2 may say that there is no such
    machine, and it may run all the same. It is asked again, with growing pauses, and at last whether it lists
    it.
    """
    pauses_s: Sequence[float] = _NOT_YET_PAUSES_S if cloud.launches.is_young(instance_id) else (0.25,)
    try:
        exists = retry_cleanup(
            lambda: cloud.ec2.terminate_instances(
                InstanceIds=[instance_id], **{"SkipOsShutdown": True} if has_nothing_to_lose else {}
            ),
            missing_code=_NOT_FOUND,
            missing_pauses_s=pauses_s,
            sleep=sleep,
        )
        if not exists and pauses_s is _NOT_YET_PAUSES_S and _is_listed(cloud, instance_id):
            raise CloudError(
                f"terminating {instance_id}: EC2 lists it, and answers {_NOT_FOUND} when it is to be ended",
                hint="run: invoke clean",
            )
    except ClientError as error:
        raise cloud_error(error, f"terminating {instance_id}", hint="run: invoke clean") from error
    cloud.launches.ended(instance_id)
    return exists


def _is_listed(cloud: Cloud, instance_id: str) -> bool:
    """Whether a machine is there, asked by a filter, which knows no NotFound."""
    answer = cloud.ec2.describe_instances(Filters=[{"Name": "instance-id", "Values": [instance_id]}])
    machines = [machine for reservation in answer["Reservations"] for machine in reservation["Instances"]]
    return any(machine["State"]["Name"] != "terminated" for machine in machines)


def terminate(cloud: Cloud, instance_ids: Sequence[str], *, timeout_s: float = 300.0) -> None:
    """Terminate machines and wait until EC2 says they are gone. Unknown ids count as gone, unless they were
    launched just now."""
    remaining = [instance_id for instance_id in sorted(set(instance_ids)) if request_end(cloud, instance_id)]
    for instance_id in remaining:
        retry_cleanup(lambda one=instance_id: wait_for_state(cloud, one, {"terminated"}, timeout_s=timeout_s))  # type: ignore[misc]


def end_run(
    cloud: Cloud, run_id: str, role: Role | None = None, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """End what is alive of a run: what carries its tags, and what was launched here, of any age.

    Where a launch of the last minute has no answer (an interrupt, a broken connection), only the tags lead to
    its machine, and EC2 lists new tags late: they are looked at again. Raises CloudError, and botocore's
    errors.
    """
    retry_cleanup(
        lambda: terminate(
            cloud, sorted({*live_of_run(cloud, run_id, role), *cloud.launches.open_ids(run_id)})
        )
    )
    if cloud.launches.unanswered(run_id):
        sleep(_TAGS_LATE_S)
        retry_cleanup(lambda: terminate(cloud, live_of_run(cloud, run_id, role)))


def live_of_run(cloud: Cloud, run_id: str, role: Role | None = None) -> list[str]:
    """Ids of a run's machines that are not terminated, of one role or of all.

    This is how a machine is found whose launch was cut short between the request and its answer: tags are
    set by the launching call itself.
    """
    tags = project_filter(run=run_id, role=role.value) if role else project_filter(run=run_id)
    pages = cloud.ec2.get_paginator("describe_instances").paginate(
        Filters=[*tags, {"Name": "instance-state-name", "Values": list(_LIVE_STATES)}]
    )
    return [
        instance["InstanceId"]
        for page in pages
        for reservation in page["Reservations"]
        for instance in reservation["Instances"]
    ]

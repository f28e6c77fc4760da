"""RunInstances: from a request to records, with everything checked before anything is made.

Everything that EC2 would refuse is refused with its code; everything it would do and we do not is refused by
the allow-list before this is reached.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from instant_env.localec2.instances.admission import (
    check_account,
    check_offered,
    check_zone,
    default_zone,
    no_default_vpc,
)
from instant_env.localec2.instances.hibernation import check_configuration
from instant_env.localec2.instances.mappings import changed, device_of
from instant_env.localec2.instances.spot_terms import new_request, spot_terms
from instant_env.localec2.instances.types import check_cpu_options, check_type, cpu_credits
from instant_env.localec2.qemu import command_line
from instant_env.localec2.records.records import (
    Attachment,
    ImageMapping,
    ImageRecord,
    InstanceRecord,
    InterfaceAttachment,
    InterfaceRecord,
    MetadataOptions,
    VolumeRecord,
)
from instant_env.localec2.state.client_tokens import records_of_token
from instant_env.localec2.state.moto_api import EC2ClientError, new_id
from instant_env.localec2.state.profile_associations import associate
from instant_env.localec2.state.state import State, now

#: API_RunInstances: "User data is limited to 16 KB, in raw form".
MAX_USER_DATA = 16 * 1024
#: The first addresses of a subnet are reserved: the network's, the router's, the resolver's and one for the
#: future (VPC User Guide, "Subnet sizing"); so is the last.
FIRST_USABLE = 4
#: What EC2 takes when no type is given.
DEFAULT_INSTANCE_TYPE = "m1.small"

Params = Callable[..., Any]


@dataclass(frozen=True)
class Placement:
    """Where an instance goes in the network."""

    subnet: Any
    group_ids: list[str]
    public_ip: bool
    private_ip: str | None  # the one that the launch wants
    existing: list[tuple[InterfaceRecord, int, bool]]  # interfaces, device indexes, whether they end with it

    @property
    def primary(self) -> InterfaceRecord | None:
        """The interface that becomes the instance's first one, when it exists already."""
        return next((record for record, index, _ in self.existing if index == 0), None)


def run_instances(
    state: State, get: Params, tags: dict[str, dict[str, str]], digest: str
) -> list[InstanceRecord]:
    """Make the records of new instances (or find those that this client token made before), lock held.

    ``get`` reads a parameter of the request, whose :func:`request_digest` is ``digest``. The machines are
    started by the caller: for each instance that is `pending` and new.
    """
    token = get("ClientToken")
    if earlier := records_of_token(state.instances.values(), token, digest):
        return sorted(earlier, key=lambda item: item.launch_index)
    image = state.image(get("ImageId") or "")
    if image.state != "available":
        raise EC2ClientError(
            "InvalidAMIID.Unavailable", f"The image ID '{image.id}' is not available ({image.state})"
        )
    instance_type = get("InstanceType") or DEFAULT_INSTANCE_TYPE
    check_type(instance_type, image.architecture)
    for name in ("MinCount", "MaxCount"):
        if get(name) is None:
            raise EC2ClientError("MissingParameter", f"The request must contain the parameter {name}")
    credit = cpu_credits(get("CreditSpecification.CpuCredits"), instance_type)
    check_cpu_options(get("CpuOptions") or {}, instance_type)
    least, most = int(get("MinCount")), int(get("MaxCount"))
    if not 1 <= least <= most:
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Invalid value '{least}' for minCount or '{most}' for maxCount: 1 <= minCount <= maxCount",
        )
    key_name = get("KeyName")
    place = _placement(state, get, instance_type)
    check_offered(state, instance_type, place.subnet.availability_zone)
    volumes = _volumes(state, image, get("BlockDeviceMappings") or [])
    options = metadata_options(get("MetadataOptions") or {}, _metadata_defaults(image))
    data = user_data(get("UserData"))
    hibernation = bool(get("HibernationOptions.Configured"))
    if hibernation:
        check_configuration(image, instance_type, volumes[0], state.strictness.switches.guest_memory_mib)
    spot = spot_terms(get("InstanceMarketOptions") or {}, hibernation)
    check_account(state, instance_type, most, spot=spot is not None)
    public_key = _public_key(state, key_name)
    associate(state.identities, get("IamInstanceProfile"))  # refuse before anything is made
    # As many as there are addresses for, and at least MinCount.
    addresses = [place.primary.private_ip] if place.primary else _addresses(state, place, least, most)
    reservation, launched = new_id("r"), now()
    instances = []
    for index, address in enumerate(addresses):
        instance = InstanceRecord(
            id=new_id("i"), tags=tags.get("instance", {}), reservation_id=reservation,
            interface_id=place.primary.id if place.primary else new_id("eni"),
            interface_attachment_id=new_id("eni-attach"),
            mac_address=place.primary.mac_address if place.primary else mac_address(), image_id=image.id,
            architecture=image.architecture, root_device_name=image.root_device_name,
            instance_type=instance_type,
            key_name=key_name, public_key=public_key, security_group_ids=place.group_ids,
            subnet_id=place.subnet.id,
            zone=place.subnet.availability_zone,
            private_ip=address,
            wants_public_ip=place.public_ip, user_data_base64=data, client_token=token,
            request_digest=digest, launch_index=index, launch_time=launched,
            shutdown_behavior=get("InstanceInitiatedShutdownBehavior") or "stop",
            market="spot" if spot else "on-demand", one_time=spot is not None and not spot.persistent,
            hibernation=hibernation, nocloud=image.nocloud,
            ebs_optimized=bool(get("EbsOptimized")), metadata_options=options,
            disable_api_termination=bool(get("DisableApiTermination")),
            disable_api_stop=bool(get("DisableApiStop")), cpu_credits=credit,
            monitoring=bool(get("Monitoring.Enabled")),
            profile=associate(state.identities, get("IamInstanceProfile")),
        )  # fmt: skip
        state.save(instance)
        for record, device_index, delete in place.existing:
            record.attachment = InterfaceAttachment(
                id=new_id("eni-attach") if device_index else instance.interface_attachment_id,
                instance_id=instance.id, device_index=device_index, delete_on_termination=delete,
                attach_time=launched,
            )  # fmt: skip
            state.save(record)
        for mapping in volumes:
            state.save(volume_of(state, instance, mapping, tags.get("volume", {})))
        if spot:
            volume_tags, request_tags = tags.get("volume", {}), tags.get("spot-instances-request", {})
            request = new_request(instance, spot, volumes, volume_tags, request_tags)
            state.save(request)
            instance.spot_request_id = request.id
            state.save(instance)
        if interface_tags := tags.get("network-interface"):
            state.mirror.ec2.create_tags([instance.interface_id], interface_tags)
        instances.append(instance)
    return instances


def _metadata_defaults(image: ImageRecord) -> MetadataOptions:
    """What MetadataOptions are when the launch does not say: an image with ImdsSupport v2.0 gives two hops.

    (User guide, "Configure the AMI": HttpTokens required, HttpPutResponseHopLimit 2.)
    """
    return MetadataOptions(hop_limit=2) if image.imds_support == "v2.0" else MetadataOptions()


def _placement(state: State, get: Params, instance_type: str) -> Placement:
    interfaces = get("NetworkInterfaces") or []
    subnet_id, group_ids = get("SubnetId"), list(get("SecurityGroupIds") or [])
    public: bool | None = None
    address = get("PrivateIpAddress")
    existing: list[tuple[InterfaceRecord, int, bool]] = []
    if interfaces:
        indexes = [int(item.get("DeviceIndex", 0)) for item in interfaces]
        if 0 not in indexes or len(set(indexes)) != len(indexes):
            raise EC2ClientError(
                "InvalidParameterValue",
                "When specifying network interfaces, you must include a device at index 0, and each once.",
            )
        if max(indexes) > command_line.NIC_SLOTS:
            raise EC2ClientError(
                "AttachmentLimitExceeded",
                f"localec2 attaches interfaces at device indexes up to {command_line.NIC_SLOTS}.",
            )
        existing = _existing(state, interfaces, int(get("MaxCount")))
        interfaces = [item for item in interfaces if not item.get("NetworkInterfaceId")]
        if any(int(item.get("DeviceIndex", 0)) for item in interfaces):
            raise EC2ClientError(
                "UnsupportedOperation", "localec2 makes only the first interface with an instance."
            )
        if subnet_id or group_ids or get("SecurityGroups") or address:
            raise EC2ClientError(
                "InvalidParameterCombination",
                "Network interfaces and an instance-level subnet ID, private IP address or security groups "
                "may not be specified on the same request",
            )
        if interfaces and interfaces[0].get("DeleteOnTermination") is False:
            raise EC2ClientError(
                "UnsupportedOperation", "localec2's network interfaces are deleted with their instance."
            )
        if interfaces:
            subnet_id, group_ids = interfaces[0].get("SubnetId"), list(interfaces[0].get("Groups") or [])
            public = interfaces[0].get("AssociatePublicIpAddress")
            address = interfaces[0].get("PrivateIpAddress")
        if existing:
            public = False  # EC2 gives none to an existing interface, nor to the first of several
            subnet_id = subnet_id or existing[0][0].subnet_id
        for record, index, _ in existing:
            if index == 0:
                subnet_id, group_ids = record.subnet_id, list(record.security_group_ids)
    ec2 = state.mirror.ec2
    zone = get("Placement.AvailabilityZone")
    if subnet_id:
        subnet = state.subnet(subnet_id)
        check_zone(state, zone, subnet)
    else:
        subnet = _default_subnet(state, zone, instance_type)
    if get("SecurityGroups") and subnet.vpc_id != state.networks.default_vpc_id:
        raise EC2ClientError(
            "InvalidParameterCombination", "The parameter groupName cannot be used with the parameter subnet"
        )
    for name in get("SecurityGroups") or []:
        group = ec2.get_security_group_from_name(name, subnet.vpc_id)
        if group is None:
            raise EC2ClientError(
                "InvalidGroup.NotFound",
                f"The security group '{name}' does not exist in default VPC '{subnet.vpc_id}'",
            )
        group_ids.append(group.id)
    state.networks.check_groups(group_ids, subnet.vpc_id)
    if not group_ids:
        group_ids = [ec2.get_default_security_group(subnet.vpc_id).id]
    return Placement(
        subnet, group_ids, subnet.map_public_ip_on_launch if public is None else public, address, existing
    )


def _default_subnet(state: State, zone: str | None, instance_type: str) -> Any:
    """The default subnet of a zone, or of the first one that has the type."""
    if not state.strictness.switches.default_vpc:
        raise no_default_vpc()
    defaults = state.mirror.ec2.get_default_subnets()
    if zone and zone not in defaults:
        raise EC2ClientError("InvalidParameterValue", f"Invalid availability zone: [{zone}]")
    return defaults[zone or default_zone(state, instance_type, defaults)]


def _addresses(state: State, place: Placement, least: int, most: int) -> list[str]:
    """The private addresses of new instances."""
    if place.private_ip is None:
        return free_ips(state, place.subnet, least, most)
    if most > 1:
        raise EC2ClientError(
            "InvalidParameterCombination", "A private IP address is one instance's: MaxCount must be 1."
        )
    return [private_ip(state, place.subnet, place.private_ip)]


def _existing(
    state: State, interfaces: list[dict[str, Any]], count: int
) -> list[tuple[InterfaceRecord, int, bool]]:
    """Of a launch's NetworkInterfaces those that exist already."""
    existing = []
    for item in interfaces:
        if interface_id := item.get("NetworkInterfaceId"):
            record = state.interface(interface_id)
            if record.attachment is not None or count > 1:
                raise EC2ClientError("InvalidNetworkInterface.InUse", f"Interface: [{interface_id}] in use.")
            if item.get("SubnetId") or item.get("Groups") or item.get("AssociatePublicIpAddress") is not None:
                raise EC2ClientError(
                    "InvalidParameterCombination",
                    "A network interface may not specify both a network interface ID and a subnet, groups or "
                    "a public address",
                )
            existing.append((record, int(item.get("DeviceIndex", 0)), bool(item.get("DeleteOnTermination"))))
    zones, ids = {record.zone for record, _, _ in existing}, {record.id for record, _, _ in existing}
    if len(zones) > 1 or len(ids) < len(existing):
        raise EC2ClientError("InvalidParameterCombination", "The network interfaces do not fit together.")
    return sorted(existing, key=lambda entry: entry[1])


def _volumes(state: State, image: ImageRecord, changes: list[dict[str, Any]]) -> list[ImageMapping]:
    """The volumes of a new instance, the root first: the image's, as the request changes them."""
    root_snapshot = state.snapshots.get(image.snapshot_id)
    mappings = {
        item.device: item
        for item in image.all_mappings(root_encrypted=root_snapshot is not None and root_snapshot.encrypted)
    }
    named: set[str] = set()
    for change in changes:
        device, ebs = device_of(change), change.get("Ebs")
        if device in named:
            raise EC2ClientError("InvalidBlockDeviceMapping", f"The device '{device}' is used twice.")
        named.add(device)
        is_root = device == image.root_device_name
        if "NoDevice" in change:
            if is_root:
                raise EC2ClientError("InvalidBlockDeviceMapping", f"The root device {device} is needed.")
            mappings.pop(device, None)
            continue
        if ebs is None:
            raise EC2ClientError("InvalidBlockDeviceMapping", "Each mapping needs Ebs or NoDevice.")
        if is_root and ebs.get("SnapshotId") not in (None, image.snapshot_id):
            raise EC2ClientError(
                "InvalidBlockDeviceMapping", f"snapshotId cannot be modified on root device {device}"
            )
        if ebs.get("SnapshotId") in image.snapshot_ids and is_root:
            ebs = {name: value for name, value in ebs.items() if name != "SnapshotId"}  # it says what is so
        # Another snapshot at an image's device takes its place; anything else changes what is there.
        base = None if ebs.get("SnapshotId") else mappings.get(device)
        mappings[device] = changed(base, device, ebs, state)
    for mapping in mappings.values():
        if mapping.snapshot_id and state.snapshot(mapping.snapshot_id).state != "completed":
            raise EC2ClientError("IncorrectState", f"Snapshot {mapping.snapshot_id} is not completed")
    if len(mappings) - 1 > command_line.VOLUME_SLOTS:
        raise EC2ClientError(
            "InvalidBlockDeviceMapping",
            f"localec2 attaches at most {command_line.VOLUME_SLOTS} volumes beside the root.",
        )
    return [mappings.pop(image.root_device_name), *mappings.values()]


def volume_of(
    state: State, instance: InstanceRecord, mapping: ImageMapping, tags: dict[str, str]
) -> VolumeRecord:
    """The record of a new volume that a launching instance gets."""
    snapshot = state.snapshots[mapping.snapshot_id] if mapping.snapshot_id else None
    return VolumeRecord(
        id=new_id("vol"), tags=tags, size_gib=mapping.size_gib, zone=instance.zone,
        volume_type=mapping.volume_type, performance=mapping.performance, snapshot_id=mapping.snapshot_id,
        layers=snapshot.layers if snapshot else [], encrypted=mapping.encrypted, kms_key=mapping.kms_key,
        initialization_mib_s=mapping.initialization_mib_s,
        create_time=instance.launch_time,
        attachment=Attachment(
            instance_id=instance.id, device=mapping.device,
            delete_on_termination=mapping.delete_on_termination, attach_time=instance.launch_time,
        ),
    )  # fmt: skip


def metadata_options(structure: dict[str, Any], current: MetadataOptions) -> MetadataOptions:
    """EC2's MetadataOptions structure over what is set already."""
    values = current.model_dump()
    for name, field in (("HttpTokens", "http_tokens"), ("HttpEndpoint", "http_endpoint")):
        if name in structure:
            values[field] = structure[name]
    if "HttpPutResponseHopLimit" in structure:
        values["hop_limit"] = int(structure["HttpPutResponseHopLimit"])
    if "InstanceMetadataTags" in structure:
        values["instance_tags"] = structure["InstanceMetadataTags"] == "enabled"
    try:
        return MetadataOptions(**values)
    except ValidationError as error:
        name = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise EC2ClientError("InvalidParameterValue", f"Invalid value for MetadataOptions: {name}") from error


def user_data(value: Any) -> str | None:
    """User data as it came over the wire, in base64, checked."""
    if value is None:
        return None
    text = value if isinstance(value, str) else value.decode("ascii", "replace")
    text = "".join(text.split())  # `base64` of coreutils breaks its lines, and EC2 takes them (RFC 2045)
    try:
        size = len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise EC2ClientError("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.") from error
    if size > MAX_USER_DATA:
        raise EC2ClientError("InvalidParameterValue", "User data is limited to 16384 bytes")
    return text


def _public_key(state: State, key_name: str | None) -> str | None:
    if not key_name:
        return None
    pair = state.mirror.ec2.key_pairs.get(key_name)
    if pair is None:
        raise EC2ClientError("InvalidKeyPair.NotFound", f"The key pair '{key_name}' does not exist")
    return str(pair.public_key)


def private_ip(state: State, subnet: Any, address: str | None = None) -> str:
    """A free address of the subnet: the wanted one, or a random one as EC2 gives them."""
    if address is not None:
        network = ipaddress.IPv4Network(subnet.cidr_block)
        if ipaddress.IPv4Address(address) not in list(network.hosts())[FIRST_USABLE - 1 :]:
            raise EC2ClientError(
                "InvalidParameterValue", f"Address {address} does not fall within the subnet's"
            )
        if any(item.private_ip == address for item in state.in_subnet(subnet.id)):
            raise EC2ClientError("InvalidIPAddress.InUse", f"Address {address} is in use.")
        return address
    return free_ips(state, subnet, 1)[0]


def free_ips(state: State, subnet: Any, least: int, most: int | None = None) -> list[str]:
    """At least ``least`` free addresses of the subnet, ``most`` if there are so many; drawn at random."""
    # Another VPC may have the same addresses.
    used = {item.private_ip for item in state.in_subnet(subnet.id)}
    network = ipaddress.IPv4Network(subnet.cidr_block)
    usable = range(int(network.network_address) + FIRST_USABLE, int(network.broadcast_address))
    start = random.randrange(len(usable))  # noqa: S311 - an address, no secret
    # Every address is looked at once: the server's lock is held, and a subnet can be full.
    candidates = (str(ipaddress.IPv4Address(value)) for value in (*usable[start:], *usable[:start]))
    free = (address for address in candidates if address not in used)
    addresses = list(itertools.islice(free, most or least))
    if len(addresses) >= least:
        return addresses
    raise EC2ClientError(
        "InsufficientFreeAddressesInSubnet",
        f"There are not enough free addresses in subnet '{subnet.id}' to satisfy the request.",
    )


def mac_address() -> str:
    """Locally administered, as EC2's are (02:...)."""
    return ":".join(["02", *(f"{random.randrange(256):02x}" for _ in range(5))])  # noqa: S311

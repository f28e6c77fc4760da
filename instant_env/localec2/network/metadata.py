"""What a machine learns about itself: the file that the metadata service serves.

internal/imds/README.md has its format. Only what EC2 lists for an instance of its kind:
cloud-init fetches every name, one request each.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instant_env.arch import Arch
from instant_env.files import write_atomically
from instant_env.localec2.records.records import InstanceRecord, Interruption, VolumeRecord

#: The account that everything belongs to; moto's default.
ACCOUNT_ID = "123456789012"
#: EC2's words for a Nitro machine (meta-data/system) and for a list that stays empty here.
SYSTEM = "nitro"
VHOSTMD = '<?xml version="1.0" encoding="UTF-8"?>'

#: A node of the tree: a directory or a leaf.
Node = dict[str, Any]


@dataclass(frozen=True)
class Interface:
    """A network interface as IMDS tells of it. The primary private address comes first."""

    device_index: int
    interface_id: str
    mac_address: str
    private_ips: tuple[str, ...]
    subnet_id: str
    subnet_cidr: str
    vpc_id: str
    vpc_cidr: str
    security_groups: dict[str, str]  # id -> name
    public_ips: dict[str, str] = field(default_factory=dict)  # public address -> the private one it leads to


@dataclass(frozen=True)
class PushedKey:
    """A key that EC2 Instance Connect gave to a user of the machine, for a minute."""

    user: str
    text: str  # as IMDS serves it, signature and all
    expires: datetime


@dataclass(frozen=True)
class Extras:
    """What changes while a machine runs and is no part of its record."""

    iam: Node = field(default_factory=dict)
    managed_ssh_keys: Node = field(default_factory=dict)  # what is beside active-keys/
    pushed_keys: Sequence[PushedKey] = ()


def internal_domain(region: str) -> str:
    """The domain of private host names, by region as on EC2."""
    return "ec2.internal" if region == "us-east-1" else f"{region}.compute.internal"


def host_name(private_ip: str) -> str:
    return f"ip-{private_ip.replace('.', '-')}"


def private_dns_name(private_ip: str, region: str) -> str:
    return f"{host_name(private_ip)}.{internal_domain(region)}"


def metadata(
    instance: InstanceRecord, volumes: list[VolumeRecord], interfaces: Sequence[Interface], *,
    region: str, zone_id: str, secret: str, extras: Extras = Extras(),
) -> dict[str, Any]:  # fmt: skip
    """The content of the file. ``secret`` is the server's; the tokens' key is derived per instance."""
    host = private_dns_name(instance.private_ip, region)
    groups = next(item.security_groups for item in interfaces if item.device_index == 0)
    tree: Node = {
        "ami-id": instance.image_id, "ami-launch-index": str(instance.launch_index),
        "ami-manifest-path": "(unknown)", "block-device-mapping": _block_devices(instance, volumes),
        "events": {"maintenance": {"history": "[]", "scheduled": "[]"}},
        "hibernation": {"configured": str(instance.hibernation).lower()},
        "hostname": host, "instance-action": "none", "instance-id": instance.id,
        "instance-life-cycle": instance.market, "instance-type": instance.instance_type,
        "local-hostname": host, "local-ipv4": instance.private_ip, "mac": instance.mac_address,
        "metrics": {"vhostmd": VHOSTMD},
        "network": {
            "interfaces": {"macs": {item.mac_address: _interface(item, region) for item in interfaces}}
        },
        "placement": {"availability-zone": instance.zone, "availability-zone-id": zone_id, "region": region},
        "profile": "default-hvm", "reservation-id": instance.reservation_id,
        "security-groups": "\n".join(groups.values()),
        "services": {"domain": "amazonaws.com", "partition": "aws"}, "system": SYSTEM,
    }  # fmt: skip
    if instance.interruption is not None:
        tree["spot"] = _notice(instance.interruption)
        tree["events"]["recommendations"] = {"rebalance": _rebalance(instance.interruption)}
    if instance.public_ip:
        tree["public-ipv4"] = instance.public_ip
    if instance.key_name and instance.public_key:
        key = _openssh_line(instance.public_key, instance.key_name)
        tree["public-keys"] = {"0": {"openssh-key": key}}
    if extras.iam:
        tree["iam"] = extras.iam
    if extras.managed_ssh_keys:
        tree["managed-ssh-keys"] = extras.managed_ssh_keys
    options = instance.metadata_options
    return {
        "version": 1,
        "token_key": hmac.new(secret.encode(), f"imds {instance.id}".encode(), hashlib.sha256).hexdigest(),
        "http_tokens": options.http_tokens,
        "http_endpoint": options.http_endpoint,
        "hop_limit": options.hop_limit,
        "instance_tags": options.instance_tags,
        "tags": instance.tags,
        "user_data_base64": instance.user_data_base64,
        "tree": tree,
        "key_names": [instance.key_name] if "public-keys" in tree else [],
        "active_keys": [
            {"user": key.user, "text": key.text, "expires": int(key.expires.timestamp())}
            for key in extras.pushed_keys
        ],
        "document": _document(instance, region),
    }


def _interface(interface: Interface, region: str) -> Node:
    node: Node = {
        "device-number": str(interface.device_index), "interface-id": interface.interface_id,
        "local-hostname": private_dns_name(interface.private_ips[0], region),
        "local-ipv4s": "\n".join(interface.private_ips), "mac": interface.mac_address,
        "owner-id": ACCOUNT_ID,
        "security-group-ids": "\n".join(interface.security_groups),
        "security-groups": "\n".join(interface.security_groups.values()),
        "subnet-id": interface.subnet_id, "subnet-ipv4-cidr-block": interface.subnet_cidr,
        "vpc-id": interface.vpc_id,
        "vpc-ipv4-cidr-block": interface.vpc_cidr, "vpc-ipv4-cidr-blocks": interface.vpc_cidr,
    }  # fmt: skip
    if interface.public_ips:
        node["public-ipv4s"] = "\n".join(interface.public_ips)
        node["ipv4-associations"] = dict(interface.public_ips)
    return node


def _notice(interruption: Interruption) -> Node:
    """``spot/``. EC2 has termination-time only where the machine ends for good."""
    at, action = timestamp(interruption.time), interruption.action
    notice = {"instance-action": json.dumps({"action": action, "time": at})}
    return notice | ({"termination-time": at} if action == "terminate" else {})


def _rebalance(interruption: Interruption) -> str:
    """EC2 recommends a rebalance with the notice at the latest."""
    return json.dumps({"noticeTime": timestamp(interruption.noticed)})


def _block_devices(instance: InstanceRecord, volumes: list[VolumeRecord]) -> dict[str, str]:
    """EC2: "only available in metadata if they were present at launch time or when the instance was last
    started"; so a volume attached to a running instance is not told of.
    """
    devices = {"ami": instance.root_device_name, "root": instance.root_device_name}
    others = sorted(
        volume.attachment.device
        for volume in volumes
        if volume.attachment
        and volume.attachment.device != instance.root_device_name
        and volume.attachment.attach_time <= instance.launch_time
    )
    return devices | {f"ebs{number}": device for number, device in enumerate(others, start=1)}


def _openssh_line(public_key: str, name: str) -> str:
    """EC2 gives the key with its pair's name as comment, whatever comment was imported."""
    kind, body = public_key.split()[:2]
    return f"{kind} {body} {name}\n"


def _document(instance: InstanceRecord, region: str) -> dict[str, Any]:
    """The instance identity document. AWS writes arm64 and x86_64 there, as in its API."""
    return {
        "accountId": ACCOUNT_ID, "architecture": Arch.parse(instance.architecture).value,
        "availabilityZone": instance.zone, "billingProducts": None, "devpayProductCodes": None,
        "marketplaceProductCodes": None, "imageId": instance.image_id, "instanceId": instance.id,
        "instanceType": instance.instance_type, "kernelId": None,
        "pendingTime": timestamp(instance.launch_time),
        "privateIp": instance.private_ip, "ramdiskId": None, "region": region, "version": "2017-09-30",
    }  # fmt: skip


def timestamp(moment: datetime) -> str:
    """A time as IMDS writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def document_text(fields: dict[str, Any]) -> str:
    """A JSON leaf in IMDS's own layout: two spaces, and one on each side of the colon."""
    lines = [f"  {json.dumps(name)} : {json.dumps(value)}" for name, value in fields.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file; the helper reads it again with every request."""
    write_atomically(path, json.dumps(content).encode())

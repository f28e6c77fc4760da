"""What a machine learns about itself: the file that the IMDS helper serves (its format: imds/README.md).

Only what EC2 lists for an instance of its kind: cloud-init fetches every name, one request each.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC
from pathlib import Path
from typing import Any

from instant_env.arch import Arch
from instant_env.localec2.records import InstanceRecord, Interruption, VolumeRecord, write_atomically

#: The account that everything belongs to; moto's default.
ACCOUNT_ID = "123456789012"
VPC_CIDR = "172.31.0.0/16"


def internal_domain(region: str) -> str:
    """The domain of private host names, by region as on EC2."""
    return "ec2.internal" if region == "us-east-1" else f"{region}.compute.internal"


def host_name(private_ip: str) -> str:
    return f"ip-{private_ip.replace('.', '-')}"


def private_dns_name(instance: InstanceRecord, region: str) -> str:
    return f"{host_name(instance.private_ip)}.{internal_domain(region)}"


def metadata(
    instance: InstanceRecord,
    volumes: list[VolumeRecord],
    *,
    region: str,
    zone_id: str,
    vpc_id: str,
    subnet_cidr: str,
    group_names: list[str],
    secret: str,
) -> dict[str, Any]:
    """The content of the file. ``secret`` is the server's; the tokens' key is derived per instance."""
    host = private_dns_name(instance, region)
    interface: dict[str, Any] = {
        "device-number": "0", "interface-id": instance.interface_id, "local-hostname": host,
        "local-ipv4s": instance.private_ip, "mac": instance.mac_address, "owner-id": ACCOUNT_ID,
        "security-group-ids": "\n".join(instance.security_group_ids),
        "security-groups": "\n".join(group_names),
        "subnet-id": instance.subnet_id, "subnet-ipv4-cidr-block": subnet_cidr, "vpc-id": vpc_id,
        "vpc-ipv4-cidr-block": VPC_CIDR, "vpc-ipv4-cidr-blocks": VPC_CIDR,
    }  # fmt: skip
    tree: dict[str, Any] = {
        "ami-id": instance.image_id, "ami-launch-index": str(instance.launch_index),
        "ami-manifest-path": "(unknown)", "block-device-mapping": _block_devices(instance, volumes),
        "hostname": host, "instance-action": "none", "instance-id": instance.id,
        "instance-life-cycle": instance.market, "instance-type": instance.instance_type,
        "local-hostname": host, "local-ipv4": instance.private_ip, "mac": instance.mac_address,
        "network": {"interfaces": {"macs": {instance.mac_address: interface}}},
        "placement": {"availability-zone": instance.zone, "availability-zone-id": zone_id, "region": region},
        "profile": "default-hvm", "reservation-id": instance.reservation_id,
        "security-groups": "\n".join(group_names),
        "services": {"domain": "amazonaws.com", "partition": "aws"},
    }  # fmt: skip
    if instance.interruption:
        tree |= _interruption(instance.interruption)
    if instance.public_ip:
        tree["public-ipv4"] = instance.public_ip
        interface["public-ipv4s"] = instance.public_ip
        interface["ipv4-associations"] = {instance.public_ip: instance.private_ip}
    if instance.key_name and instance.public_key:
        key = _openssh_line(instance.public_key, instance.key_name)
        tree["public-keys"] = {"0": {"openssh-key": key}}
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
        "document": _document(instance, region),
    }


def _interruption(notice: Interruption) -> dict[str, Any]:
    """The notice of a spot instance; EC2 recommends a rebalance with it at the latest."""
    time = notice.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    spot = {"instance-action": json.dumps({"action": notice.action, "time": time})}
    if notice.action == "terminate":
        spot["termination-time"] = time
    noted = json.dumps({"noticeTime": notice.noticed.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")})
    return {"spot": spot, "events": {"recommendations": {"rebalance": noted}}}


def _block_devices(instance: InstanceRecord, volumes: list[VolumeRecord]) -> dict[str, str]:
    devices = {"ami": instance.root_device_name, "root": instance.root_device_name}
    others = sorted(
        volume.attachment.device
        for volume in volumes
        if volume.attachment and volume.attachment.device != instance.root_device_name
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
        "pendingTime": instance.launch_time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "privateIp": instance.private_ip, "ramdiskId": None, "region": region, "version": "2017-09-30",
    }  # fmt: skip


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file; the helper reads it again with every request."""
    write_atomically(path, json.dumps(content).encode())

"""Filters of DescribeInstances that moto does not have, each as what it looks at in our records."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from instant_env.localec2.records.records import InstanceRecord
from instant_env.localec2.state.mirror import STATE_CODES
from instant_env.localec2.state.state import State

#: What a filter compares its values with: one value or several; nothing matches None and an empty list.
Pick = Callable[[State, InstanceRecord], object]


def _volumes(state: State, instance: InstanceRecord) -> Iterator[tuple[str, str, bool]]:
    """Id, device, and whether it goes with the instance, of each volume."""
    for volume in state.attached(instance.id):
        if (place := volume.attachment) is not None:
            yield volume.id, place.device, place.delete_on_termination


def _option(pick: Callable[[InstanceRecord], object]) -> Pick:
    """What is in the instance's record alone."""
    return lambda _, instance: pick(instance)


def _constant(value: object) -> Pick:
    """What is the same for every instance here."""
    return lambda _, __: value


#: Filter (API_DescribeInstances) -> what it looks at.
FILTERS: dict[str, Pick] = {
    "block-device-mapping.delete-on-termination": lambda s, i: [last for _, _, last in _volumes(s, i)],
    "block-device-mapping.device-name": lambda s, i: [device for _, device, _ in _volumes(s, i)],
    "block-device-mapping.status": lambda s, i: ["attached" for _ in _volumes(s, i)],
    "block-device-mapping.volume-id": lambda s, i: [volume_id for volume_id, _, _ in _volumes(s, i)],
    "boot-mode": _constant("uefi"),
    "client-token": _option(lambda i: i.client_token),
    "current-instance-boot-mode": _constant("uefi"),
    "ebs-optimized": _option(lambda i: i.ebs_optimized),
    "enclave-options.enabled": _constant(False),
    "hibernation-options.configured": _option(lambda i: i.hibernation),
    "hypervisor": _constant("xen"),
    "iam-instance-profile.arn": _option(lambda i: i.profile and i.profile.profile_arn),
    "iam-instance-profile.id": _option(lambda i: i.profile and i.profile.profile_id),
    "instance-lifecycle": _option(lambda i: i.market),
    "instance-state-code": _option(lambda i: STATE_CODES[i.state]),
    "launch-index": _option(lambda i: i.launch_index),
    "launch-time": _option(lambda i: i.launch_time),
    "metadata-options.http-endpoint": _option(lambda i: i.metadata_options.http_endpoint),
    "metadata-options.http-protocol-ipv6": _constant("disabled"),
    "metadata-options.http-put-response-hop-limit": _option(lambda i: i.metadata_options.hop_limit),
    "metadata-options.http-tokens": _option(lambda i: i.metadata_options.http_tokens),
    "metadata-options.instance-metadata-tags": _option(
        lambda i: "enabled" if i.metadata_options.instance_tags else "disabled"
    ),
    "monitoring-state": _option(lambda i: "enabled" if i.monitoring else "disabled"),
    "reason": _option(lambda i: i.transition_reason),
    "reservation-id": _option(lambda i: i.reservation_id),
    "root-device-name": _option(lambda i: i.root_device_name),
    "root-device-type": _constant("ebs"),
    "spot-instance-request-id": _option(lambda i: i.spot_request_id),
    "tenancy": _constant("default"),
    "virtualization-type": _constant("hvm"),
}

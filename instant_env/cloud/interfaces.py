"""Network interfaces with a public address, made ahead of the machine that will have them.

A public address that survives until a machine comes is an Elastic IP, of which an account has five per
region unless its quota was raised (EC2 User Guide, "Elastic IP address quota").
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from botocore.exceptions import ClientError

from instant_env.cloud.launching import places
from instant_env.cloud.rules.consistency import repeat_while_unknown, wait_until_known
from instant_env.cloud.session import Cloud, CloudError, cloud_error, delete_once_unused, error_code
from instant_env.cloud.tags import Role, project_filter, tag_specifications

#: Elastic IPs per region, unless the quota L-0263D0A3 was raised.
ELASTIC_IP_QUOTA = 5

#: An interface stays in use for a little while after its machine is gone.
_RELEASE_TIMEOUT_S = 60.0
#: EC2 says one of these of an interface that is attached, and another while it detaches.
_IN_USE = ("InvalidParameterValue", "InvalidNetworkInterface.InUse", "OperationNotPermitted")


@dataclass(frozen=True)
class PublicInterface:
    """An interface that nothing uses yet, and the address that a machine with it will have."""

    interface_id: str
    allocation_id: str
    address: str
    zone: str


def make_public_interface(
    cloud: Cloud,
    *,
    security_group_id: str,
    run_id: str,
    role: Role,
    name: str,
    expires_at: datetime,
    subnet_id: str | None = None,
) -> PublicInterface:
    """CreateNetworkInterface, AllocateAddress, AssociateAddress; what was made is undone when one fails.

    ``subnet_id`` None is the one that machines go to. EC2 knows the interface by then. botocore's ClientError
    is passed on: ``AddressLimitExceeded`` when the quota is used up. Raises CloudError when EC2 does not come
    to know the interface.
    """
    tags = {"run_id": run_id, "role": role, "name": name, "expires_at": expires_at}
    interface = cloud.ec2.create_network_interface(
        SubnetId=subnet_id or places.choose(cloud).subnet_id,
        Groups=[security_group_id],
        Description=f"instant-env {role.value}",
        TagSpecifications=tag_specifications("network-interface", **tags),  # type: ignore[arg-type]
    )["NetworkInterface"]
    interface_id = interface["NetworkInterfaceId"]
    allocation_id = ""
    try:
        address = cloud.ec2.allocate_address(
            Domain="vpc",
            TagSpecifications=tag_specifications("elastic-ip", **tags),  # type: ignore[arg-type]
        )
        allocation_id = address["AllocationId"]
        wait_until_known(
            lambda: cloud.ec2.describe_network_interfaces(NetworkInterfaceIds=[interface_id])[
                "NetworkInterfaces"
            ],
            f"network interface {interface_id}",
        )
        repeat_while_unknown(
            lambda: cloud.ec2.associate_address(AllocationId=allocation_id, NetworkInterfaceId=interface_id)
        )
    except (ClientError, CloudError):
        delete_public_interface(cloud, interface_id, allocation_id)
        raise
    return PublicInterface(interface_id, allocation_id, address["PublicIp"], interface["AvailabilityZone"])


def delete_public_interface(
    cloud: Cloud, interface_id: str, allocation_id: str, timeout_s: float = _RELEASE_TIMEOUT_S
) -> None:
    """Delete both; either may be empty. Waits while EC2 still counts a dying machine as the user."""
    if interface_id:
        _until_released(cloud, interface_id, timeout_s)
    if allocation_id:
        _release(cloud, allocation_id)


def _until_released(cloud: Cloud, interface_id: str, timeout_s: float) -> None:
    try:
        delete_once_unused(
            lambda: cloud.ec2.delete_network_interface(NetworkInterfaceId=interface_id), _IN_USE, timeout_s
        )
    except ClientError as error:
        if error_code(error) != "InvalidNetworkInterfaceID.NotFound":
            raise cloud_error(
                error, f"deleting network interface {interface_id}", hint="run: invoke clean"
            ) from error


def _release(cloud: Cloud, allocation_id: str) -> None:
    """Without its interface an address is not associated any more; EC2 may see that a little later."""
    try:
        delete_once_unused(
            lambda: cloud.ec2.release_address(AllocationId=allocation_id),
            ("InvalidIPAddress.InUse",),
            _RELEASE_TIMEOUT_S,
        )
    except ClientError as error:
        if error_code(error) != "InvalidAllocationID.NotFound":
            raise cloud_error(error, f"releasing {allocation_id}", hint="run: invoke clean") from error


def delete_of_run(cloud: Cloud, run_id: str) -> None:
    """Interfaces and addresses that a run made; its machines must be gone."""
    filters = project_filter(run=run_id)
    for interface in cloud.ec2.describe_network_interfaces(Filters=filters)["NetworkInterfaces"]:
        _until_released(cloud, interface["NetworkInterfaceId"], _RELEASE_TIMEOUT_S)
    for address in cloud.ec2.describe_addresses(Filters=filters)["Addresses"]:
        _release(cloud, address["AllocationId"])

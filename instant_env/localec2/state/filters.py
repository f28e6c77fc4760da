"""Filters of EC2's listings: the same rules for every listing, moto's own among them.

EC2 User Guide, "Filter the found resources": values are alternatives, filters are all to be met, and a value
is a pattern. Where a resource has several of something (tags, addresses), one that matches is enough. moto
compares in a different way in each of its models; :func:`install` replaces what they compare with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from moto.ec2 import utils
from moto.utilities import utils as utilities

from instant_env.localec2.state.patterns import compiled


def matches(patterns: Sequence[str], value: object) -> bool:
    """Whether any of a filter's values, with their wildcards, is ``value`` or one of several values."""
    texts = _texts(value)
    return any(compiled(pattern, escapes=True).fullmatch(text) for pattern in patterns for text in texts)


def _texts(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, datetime):
        return [value.replace(tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")]
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return [str(value)]
    return [text for item in value for text in _texts(item)]


def _listed(values: Any) -> list[str]:
    return [values] if isinstance(values, str) else list(values or [])


def _is_filter_matching(resource: Any, name: str, values: Any) -> bool:
    return matches(_listed(values), resource.get_filter_value(name))


def _tag_filter_matches(resource: Any, name: str, values: Any) -> bool:
    tags = {tag["key"]: tag["value"] for tag in resource.get_tags()}
    candidates: object = list(tags.values())
    if name == "tag-key":
        candidates = list(tags)
    elif name.startswith("tag:"):
        candidates = tags.get(name.removeprefix("tag:"))
    return matches(_listed(values), candidates)


def _instance_value_in_filter_values(value: Any, values: Any) -> bool:
    return matches(_listed(values), value)


def _aws_api_matches(pattern: str, value: Any) -> bool:
    return matches([pattern], value)


def _passes_igw_filter_dict(gateway: Any, filters: dict[str, Any]) -> bool:
    for name, values in filters.items():
        if name in utils.filter_dict_igw_mapping:
            value = utils.get_object_value(gateway, utils.filter_dict_igw_mapping[name])
            if not matches(_listed(values), value):
                return False
        elif not utils.is_tag_filter(name):
            raise NotImplementedError(f"the filter {name} of DescribeInternetGateways is not implemented")
        elif not _tag_filter_matches(gateway, name, values):
            return False
    return True


def _filter_resources(
    resources: list[Any], filters: Any, attributes: tuple[tuple[str, ...], ...]
) -> list[Any]:
    def passes(resource: Any) -> bool:
        for name, attribute, *key in attributes:
            if name in filters:
                value = getattr(resource, attribute)
                if not matches(_listed(filters[name]), value.get(key[0]) if key else value):
                    return False
        return True

    return [resource for resource in resources if passes(resource)]


#: (where moto has it, its name) -> what takes its place, there and wherever it is imported by name.
REPLACED: dict[tuple[Any, str], Any] = {
    (utils, "is_filter_matching"): _is_filter_matching,
    (utils, "tag_filter_matches"): _tag_filter_matches,
    (utils, "instance_value_in_filter_values"): _instance_value_in_filter_values,
    (utils, "passes_igw_filter_dict"): _passes_igw_filter_dict,
    (utilities, "filter_resources"): _filter_resources,
    (sys.modules["moto.ec2.models.security_groups"], "aws_api_matches"): _aws_api_matches,
}


def install() -> None:
    """Make moto's models of EC2 compare so. Doing it twice changes nothing."""
    models = [module for name, module in list(sys.modules.items()) if name.startswith("moto.ec2.")]
    for (place, name), function in REPLACED.items():
        original = getattr(place, name)
        for module in (place, *models):
            if module.__dict__.get(name) is original:
                setattr(module, name, function)

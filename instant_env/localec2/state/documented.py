"""What the service's model documents of an action: which filters a listing has."""

from __future__ import annotations

import functools
import html
import re

from instant_env.localec2.state.moto_api import get_service_model

_CODE = re.compile(r"<code>([^<]+)</code>")
#: Names of filters by tags, wherever there are tags. The second is no longer documented, and still taken.
_TAGS = ("tag-key", "tag-value")

#: Filters that the documentation had, and that are still taken.
_OLDER = {
    "DescribeInstances": ("group-id", "group-name"),
    "DescribeAddresses": ("domain",),
    "DescribeVpcs": ("cidr-block",),
}


def _plain(name: str) -> str:
    """EC2 takes the names of its first years as well: `isDefault` for `is-default`."""
    return name.replace("-", "").lower()


@functools.cache
def filters(action: str) -> frozenset[str]:
    """The names that the documentation of an action's filters has, made plain; none where it lists none."""
    members = get_service_model("ec2").operation_model(action).input_shape.members
    shape = members.get("Filters") or members.get("Filter")
    text = shape.documentation if shape is not None else ""
    names = _CODE.findall(text) if "<li>" in text else []
    return frozenset(_plain(html.unescape(name)) for name in names)


def has_filter(action: str, name: str) -> bool:
    """Whether a listing may have a filter of this name; True where its documentation does not say."""
    names = filters(action)
    if _plain(name) in names or not names or name in _OLDER.get(action, ()):
        return True
    tagged = any(known.startswith("tag") for known in names)
    return tagged and (name.startswith("tag:") or name in _TAGS)

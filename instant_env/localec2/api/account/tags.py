"""DescribeTags: the tags of everything, one by one."""

from __future__ import annotations

from collections.abc import Callable

from instant_env.localec2.state.filters import matches
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError, EC2Response, resource_kind

#: Filter -> what of (resource id, key, value) it looks at.
_FILTERS: dict[str, Callable[[tuple[str, str, str]], str]] = {
    "key": lambda tag: tag[1],
    "resource-id": lambda tag: tag[0],
    "resource-type": lambda tag: resource_kind(tag[0]),
    "value": lambda tag: tag[2],
}


class TagListing(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    def describe_tags(self) -> ActionResult:
        self.error_on_dryrun()
        entries = [
            (resource_id, key, value)
            for resource_id, tags in sorted(self.ec2_backend.tags.items())
            for key, value in sorted(tags.items())
        ]
        for name, values in self._filters_from_querystring().items():
            if name.startswith("tag:"):
                tag_key = name.removeprefix("tag:")
                entries = [tag for tag in entries if tag[1] == tag_key and matches(values, tag[2])]
            elif name in _FILTERS:
                entries = [tag for tag in entries if matches(values, _FILTERS[name](tag))]
            else:
                raise EC2ClientError("InvalidParameterValue", f"The filter '{name}' is invalid")
        return ActionResult(
            {
                "Tags": [
                    {"ResourceId": item, "ResourceType": resource_kind(item), "Key": key, "Value": value}
                    for item, key, value in entries
                ]
            }
        )

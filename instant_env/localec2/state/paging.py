"""Which actions of EC2 answer in pages, and how: read from their models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from moto.core import serialize

from instant_env.localec2.state.moto_api import get_service_model

#: Where a model says nothing: of most actions (API_DescribeInstances).
LEAST, MOST = 5, 1000
#: Said of `MaxResults` where it excludes ids (API_DescribeInstances and others).
_EXCLUDES = "You cannot specify this parameter and"


class Paging(NamedTuple):
    """How an action pages."""

    items: str  # the member of its answer
    least: int
    most: int
    excluded: tuple[str, ...]  # parameters that cannot be given with MaxResults
    name_of: Callable[[Any], str]  # what tells items apart; "" where nothing does


@functools.cache
def paging(action: str) -> Paging | None:
    """How an action pages; None when it does not."""
    model = get_service_model("ec2").operation_model(action)
    inputs = model.input_shape.members if model.input_shape else {}
    outputs = model.output_shape.members if model.output_shape else {}
    if not {"MaxResults", "NextToken"} <= set(inputs) or "NextToken" not in outputs:
        return None
    items = next((name for name, shape in outputs.items() if shape.type_name == "list"), None)
    if items is None:
        return None
    bounds = inputs["MaxResults"].metadata
    ids = [name for name, shape in inputs.items() if shape.type_name == "list" and name.endswith("Ids")]
    excluded = tuple(ids[:1]) if _EXCLUDES in (inputs["MaxResults"].documentation or "") else ()
    return Paging(
        items, int(bounds.get("min", LEAST)), int(bounds.get("max", MOST)), excluded,
        _namer(items, outputs[items].member),
    )  # fmt: skip


def _namer(items: str, shape: Any) -> Callable[[Any], str]:
    members = shape.members if shape.type_name == "structure" else {}
    singular = items.removesuffix("s")
    candidates = (f"{singular}Id", singular, "InstanceId", "VolumeId")
    name = next((key for key in candidates if key in members), None)
    if name is None:
        return lambda _: ""

    def name_of(item: Any) -> str:
        context = serialize.AttributePickerContext(obj=item, key=name, shape=members[name])
        for key in serialize.XFormedAttributePicker().get_possible_keys(context):
            value = serialize.get_value(item, key, serialize.MISSING)
            if value is not serialize.MISSING and value is not None:
                return str(value)
        return ""

    return name_of

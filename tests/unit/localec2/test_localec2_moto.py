"""What localec2 replaces or reads inside moto, by name: an upgrade that renames a part fails here."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

import pytest
from moto.core import serialize
from moto.core.base_backend import BackendDict
from moto.ec2.models import core as ec2_core
from moto.ec2.models import ec2_backends

from instant_env.localec2.state import filters
from instant_env.localec2.state import moto_api as moto
from instant_env.localec2.state.serializer import EC2Serializer

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

#: (what has it, the name): give ids; `fixed_ids` replaces them while moto is shown a record.
DRAWN = [
    (moto.instances, "random_instance_id"),
    (moto.instances, "random_reservation_id"),
    (moto.interfaces, "random_eni_id"),
    (moto.interfaces, "random_mac_address"),
    (moto.key_pairs, "random_key_pair_id"),
    (moto.security_groups, "random_security_group_id"),
    (moto.security_groups, "random_security_group_rule_id"),
    (moto.instances, "random_eni_attach_id"),
]
#: Private parts that are read or replaced.
INSIDE = [
    (ec2_core.TaggedEC2Resource, "get_tags"),
    (moto.amis, "AMIS"),
    (serialize, "SERVICE_SPECIFIC_SERIALIZERS"),
    (serialize, "XFormedAttributePicker"),
    (serialize.EC2Serializer, "_serialize_result"),
    (moto.EC2Response, "RESPONSE_KEY_PATH_TO_TRANSFORMER"),
    (moto.EC2Response, "_enrich_response"),
    (moto.EC2Response, "_parse_tag_specification"),
    (moto.EC2Response, "_filters_from_querystring"),
    (moto.EC2Response, "error_on_dryrun"),
    (moto.EC2Response, "call_action"),
    (moto.EC2Response, "parse_parameters"),
]


@pytest.mark.parametrize(
    ("place", "name"), [*DRAWN, *INSIDE], ids=lambda value: getattr(value, "__name__", value)
)
def test_moto_has_what_is_replaced(place: Any, name: str) -> None:
    assert hasattr(place, name), f"moto no longer has {place.__name__}.{name}"


@pytest.mark.parametrize("name", ["latest_amis_loaded", "latest_ecs_amis_loaded", "normalize_name"])
def test_the_parameter_store_has_what_is_set(name: str) -> None:
    assert hasattr(moto.ssm_backend("us-east-1")._parameters, name)


@pytest.mark.parametrize(
    ("place", "name"), filters.REPLACED, ids=lambda value: getattr(value, "__name__", value)
)
def test_moto_compares_as_we_do_wherever_it_does(place: Any, name: str) -> None:
    """Whoever imported the function by its name has ours."""
    ours = filters.REPLACED[(place, name)]
    assert getattr(place, name) is ours
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("moto.ec2."):
            assert module.__dict__.get(name, ours) is ours, module_name


def test_what_is_replaced_is_in_use() -> None:
    assert ec2_core.TaggedEC2Resource.get_tags.__module__ == moto.__name__
    assert serialize.SERVICE_SPECIFIC_SERIALIZERS["ec2"]["ec2"] is EC2Serializer
    assert moto.amis.AMIS == []


def test_every_function_that_is_drawn_is_in_the_table() -> None:
    from instant_env.localec2.state import mirror

    source = inspect.getsource(mirror)
    assert {name for _, name in DRAWN} >= {
        word.split("=")[0] for word in source.replace("(", " ").split() if word.startswith("random_")
    }


def test_a_server_of_the_tests_finds_nothing_of_another_one(served: Served) -> None:
    """Not even what moto has lost from its list of backends in use, as its own reset can."""
    ours = served.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    BackendDict._instances.clear()
    served.restart()
    assert served.ec2.describe_vpcs()["Vpcs"][0]["VpcId"] == ours
    BackendDict._instances.clear()
    ec2_backends.clear()
    stranger = ec2_backends[moto.ACCOUNT_ID]["us-east-1"].default_vpc.id
    BackendDict._instances.clear()
    served.restart()
    assert served.ec2.describe_vpcs()["Vpcs"][0]["VpcId"] == ours != stranger

"""What localec2 replaces or reads inside moto, by name: an upgrade that renames a part fails here."""

from __future__ import annotations

import inspect
import sys
import threading
from typing import Any

import pytest
from moto.core import serialize
from moto.ec2.models import core as ec2_core
from moto.ec2.models import ec2_backends
from moto.moto_api._internal import mock_random

from instant_env.localec2.state import filters
from instant_env.localec2.state import moto_api as moto
from instant_env.localec2.state.serializer import EC2Serializer

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


def test_ids_from_a_seed_are_the_same_while_other_threads_draw() -> None:
    drawing, stopped = threading.Event(), threading.Event()

    def draw() -> None:
        while not stopped.is_set():
            mock_random.get_random_hex(17)
            drawing.set()

    def default_network() -> tuple[str, set[str]]:
        ec2_backends.clear()
        backend = moto.ec2_backend("us-east-1", seed=5)
        return backend.default_vpc.id, set(backend.internet_gateways)

    alone = default_network()
    other = threading.Thread(target=draw)
    other.start()
    try:
        assert drawing.wait(10)
        assert {default_network()[0] for _ in range(20)} == {alone[0]}
        assert default_network() == alone
        assert mock_random.uuid4() != mock_random.uuid4()
    finally:
        stopped.set()
        other.join()

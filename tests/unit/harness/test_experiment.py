from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.plan.experiment import Cell, Experiment, Options
from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.errors import UsageError
from instant_env.launch.techniques import TECHNIQUES, find_technique


def experiment(**changes: Any) -> Experiment:
    values: dict[str, Any] = {
        "techniques": ("cold", "minimal-ami", "custom-init"),
        "arch": Arch.X86_64,
        "instance_type": "m7i.large",
        "iterations": 8,
        "seed": 1,
        "timeout_s": 60.0,
    }
    return Experiment.race(**(values | changes))


def test_every_block_has_each_technique_once() -> None:
    plan = list(experiment().plan())
    assert [planned.attempt for planned in plan] == list(range(1, 25))
    for block in range(1, 9):
        names = [planned.technique for planned in plan if planned.block == block]
        assert sorted(names) == ["cold", "custom-init", "minimal-ami"]


def test_order_differs_between_blocks_and_follows_the_seed() -> None:
    orders = {
        tuple(planned.technique for planned in experiment().plan() if planned.block == block)
        for block in range(1, 9)
    }
    assert len(orders) > 1
    assert list(experiment().plan()) == list(experiment().plan())
    assert list(experiment().plan()) != list(experiment(seed=2).plan())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iterations": 0}, "at least 1"),
        ({"techniques": ()}, "no technique"),
        ({"techniques": ("cold", "cold")}, "twice"),
        ({"timeout_s": 0.0}, "time-out"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        experiment(**changes)


def test_unknown_technique_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'warm'") as caught:
        find_technique("warm")
    assert "known: cold, minimal-ami, custom-init, prealloc-eni, warm-stopped," in caught.value.hint


@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=TECHNIQUES)
def test_each_technique_says_what_it_does_needs_and_saves(technique: object) -> None:
    text = technique.__doc__ or ""
    assert all(word in text for word in ("Does:", "Needs:", "Saves:"))


def test_an_image_and_a_way_combine() -> None:
    combined = find_technique("custom-init+prealloc-eni")
    assert (combined.name, combined.recipe) == ("custom-init+prealloc-eni", "custom-init")
    assert combined.most_in_flight == 5
    assert find_technique("warm-stopped").recipe == "minimal"
    assert find_technique("prealloc-eni").recipe is None
    for nonsense in ("prealloc-eni+custom-init", "cold+cold", "warm-stopped+prealloc-eni", "cold+"):
        with pytest.raises(UsageError, match="unknown technique"):
            find_technique(nonsense)


def test_a_stopped_pool_of_stock_images_is_refused() -> None:
    with pytest.raises(UsageError, match="ignores changed user data"):
        find_technique("cold+warm-stopped").prepare(None, {})  # type: ignore[arg-type]


def test_warm_up_comes_first_and_is_block_0() -> None:
    plan = list(dataclasses.replace(experiment(iterations=2), warm_up=1).plan())
    assert [planned.block for planned in plan] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [planned.attempt for planned in plan] == list(range(1, 10))


def test_a_variant_says_what_differs() -> None:
    cell = Cell("cold", Arch.X86_64, "m7i.large", Market.SPOT, Options(hop_limit=2, zone="us-east-1b"))
    assert cell.label == "cold [market=spot hop_limit=2 zone=us-east-1b]"
    assert Cell("cold", Arch.X86_64, "m7i.large").label == "cold"

from __future__ import annotations

from typing import Any

import pytest

from harness.experiment import Experiment
from instant_env.arch import Arch
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
    return Experiment(**(values | changes))


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
    assert caught.value.hint == "known: cold, minimal-ami, custom-init"


@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=TECHNIQUES)
def test_each_technique_says_what_it_does_needs_and_saves(technique: object) -> None:
    text = technique.__doc__ or ""
    assert all(word in text for word in ("Does:", "Needs:", "Saves:"))

"""The one loop that asks until something is so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError

from instant_env.cloud.session import delete_once_unused
from instant_env.waiting import wait_until


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def test_the_first_true_answer_is_returned() -> None:
    clock, answers = Clock(), iter(["", "", "ready", "later"])
    assert wait_until(lambda: next(answers), 10, 0.5, clock=clock, sleep=clock.sleep) == "ready"
    assert clock.sleeps == [0.5, 0.5]


def test_the_last_question_is_asked_when_the_time_is_up() -> None:
    clock = Clock()
    assert wait_until(lambda: clock.now >= 102, 2, 1, clock=clock, sleep=clock.sleep) is True


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 2.5])
def test_after_the_timeout_the_false_answer_is_returned(timeout_s: float) -> None:
    clock = Clock()
    assert wait_until(lambda: 0, timeout_s, 1, clock=clock, sleep=clock.sleep) == 0
    assert len(clock.sleeps) == (3 if timeout_s > 0 else 0)


def refusals(codes: Iterator[str]) -> None:
    if code := next(codes):
        raise ClientError({"Error": {"Code": code}}, "DeleteSecurityGroup")


def test_what_is_in_use_is_deleted_once_it_is_not() -> None:
    codes = iter(["InUse", "InUse", "", "asked once too often"])
    delete_once_unused(lambda: refusals(codes), ("InUse",), timeout_s=60)
    assert next(codes) == "asked once too often"


@pytest.mark.parametrize("code", ["InUse", "UnauthorizedOperation"])
def test_a_refusal_to_delete_is_passed_on(code: str) -> None:
    with pytest.raises(ClientError, match=code):
        delete_once_unused(lambda: refusals(iter([code])), ("InUse",), timeout_s=0)

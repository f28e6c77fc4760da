"""A machine that was launched just now exists, whatever EC2 says of its id and of its tags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, IncompleteReadError
from support.harness_cloud import Ec2Faults, cloud_in_process, register_image, states
from support.moto_cloud import launch_of

from instant_env.cloud import instances
from instant_env.cloud.launch_log import NOT_YET_S, LaunchLog
from instant_env.cloud.session import Cloud, CloudError

NOT_FOUND = ClientError(
    {"Error": {"Code": "InvalidInstanceID.NotFound", "Message": "does not exist"}}, "TerminateInstances"
)


@pytest.fixture
def cloud(tmp_path: Path) -> Any:
    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        yield cloud


def unknown_until(cloud: Cloud, is_known: Callable[[], bool]) -> None:
    """TerminateInstances answers NotFound until then."""

    def refuse(**_: Any) -> None:
        if not is_known():
            raise NOT_FOUND

    cloud.ec2.meta.events.register("before-parameter-build.ec2.TerminateInstances", refuse)


def test_a_machine_that_ec2_does_not_know_yet_is_ended_once_it_does(cloud: Cloud) -> None:
    pauses: list[float] = []
    unknown_until(cloud, lambda: sum(pauses) > 60)
    instance_id = instances.launch(cloud, launch_of(register_image(cloud)))
    assert instances.request_end(cloud, instance_id, sleep=pauses.append)
    assert pauses == sorted(pauses)
    assert states(cloud) == ["terminated"]


def test_what_is_never_known_is_gone_after_two_minutes_unless_ec2_lists_it(cloud: Cloud) -> None:
    pauses: list[float] = []
    unknown_until(cloud, lambda: False)
    instance_id = instances.launch(cloud, launch_of(register_image(cloud)))
    with pytest.raises(CloudError, match="EC2 lists it"):
        instances.request_end(cloud, instance_id, sleep=pauses.append)
    assert sum(pauses) > NOT_YET_S

    def lists_nothing(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Reservations"] = []

    cloud.ec2.meta.events.register("after-call.ec2.DescribeInstances", lists_nothing)
    assert not instances.request_end(cloud, instance_id, sleep=pauses.append)


def test_an_old_machine_is_gone_when_ec2_says_so_twice(cloud: Cloud) -> None:
    pauses: list[float] = []
    unknown_until(cloud, lambda: False)
    assert not instances.request_end(cloud, "i-00000000000000000", sleep=pauses.append)
    assert len(pauses) == 1


def test_a_run_ends_what_it_launched_though_its_tags_are_not_listed_yet(cloud: Cloud) -> None:
    instance_id = instances.launch(cloud, launch_of(register_image(cloud)))

    def by_tag_nothing(params: dict[str, Any], **_: Any) -> None:
        for one in params.get("Filters", []):
            if one["Name"].startswith("tag:"):
                one["Values"] = ["not yet"]

    cloud.ec2.meta.events.register("provide-client-params.ec2.DescribeInstances", by_tag_nothing)
    assert instances.live_of_run(cloud, "r1") == []
    instances.end_run(cloud, "r1")
    assert states(cloud) == ["terminated"]
    assert cloud.launches.open_ids("r1") == set(), instance_id


def test_after_a_launch_without_an_answer_the_tags_are_looked_at_again(cloud: Cloud) -> None:
    def lose(**_: Any) -> None:
        raise IncompleteReadError(actual_bytes=1, expected_bytes=2)

    cloud.ec2.meta.events.register("after-call.ec2.RunInstances", lose)
    with pytest.raises(IncompleteReadError):
        instances.launch(cloud, launch_of(register_image(cloud)))
    tags_are_listed = False

    def by_tag_late(params: dict[str, Any], **_: Any) -> None:
        if not tags_are_listed:
            params["Filters"] = [{"Name": "tag:Project", "Values": ["not yet"]}]

    def pause(seconds: float) -> None:
        nonlocal tags_are_listed
        assert 10 <= seconds <= 30
        tags_are_listed = True

    cloud.ec2.meta.events.register("provide-client-params.ec2.DescribeInstances", by_tag_late)
    instances.end_run(cloud, "r1", sleep=pause)
    assert tags_are_listed, "it looked twice"
    assert states(cloud) == ["terminated"]


def test_a_refused_launch_and_an_old_one_ask_for_no_second_look() -> None:
    now = 0.0
    log = LaunchLog(clock=lambda: now)
    with pytest.raises(ClientError), log.request("r"):
        raise NOT_FOUND
    assert not log.unanswered("r")
    with pytest.raises(KeyboardInterrupt), log.request("r"):
        raise KeyboardInterrupt
    assert log.unanswered("r")
    assert not log.unanswered("another")
    now = 61.0
    assert not log.unanswered("r")


def test_the_log_does_not_grow_with_a_services_life() -> None:
    now = 0.0
    log = LaunchLog(clock=lambda: now)
    for number in range(100):
        now = number * 600.0
        with log.request("r") as answered:
            answered(f"i-{number}")
    assert len(log.open_ids("r")) <= 7
    assert log.is_young("i-99")
    assert not log.is_young("i-98")

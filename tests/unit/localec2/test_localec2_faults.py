"""Faults on demand, over HTTP as an administrator makes them and as a client meets them."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError
from support.patience import until

from instant_env.localec2.api import server
from instant_env.localec2.state.faults import DelayFault, ErrorFault, Faults, UnknownFault

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


def ask(served: Served, method: str, route: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{served.server.url}/_localec2/faults{route}", method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-Localec2-Token": served.state.server.admin_token},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
        result: dict[str, Any] = json.load(answer)
        return result


def inject(served: Served, **fault: Any) -> str:
    return str(ask(served, "POST", body=fault)["fault"]["id"])


def listed(served: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(served, "GET")["faults"]
    return found


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\)")


def launch(served: Served, **more: Any) -> str:
    arguments: dict[str, Any] = {"InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
    return str(served.ec2.run_instances(ImageId=served.register(), **arguments)["Instances"][0]["InstanceId"])


def state_of(served: Served, instance_id: str) -> str:
    found = served.ec2.describe_instances(InstanceIds=[instance_id])
    return found["Reservations"][0]["Instances"][0]["State"]["Name"]


def metadata_of(served: Served, instance_id: str) -> dict[str, Any]:
    path = served.state.layout.instance(instance_id) / "metadata.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("RequestLimitExceeded", 503),
        ("InsufficientInstanceCapacity", 500),
        ("InternalError", 500),
        ("UnauthorizedOperation", 400),
    ],
)
def test_an_action_fails_as_often_as_it_was_told(served: Served, code: str, status: int) -> None:
    inject(served, kind="error", action="RunInstances", code=code, times=2)
    for left in (1, 0):
        served.ec2.describe_instances()  # another action
        with refused(code) as error:
            launch(served)
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert len(listed(served)) == left
    assert served.ec2.describe_instances()["Reservations"] == [], "it failed, so nothing is there"
    launch(served)


def test_a_client_that_retries_does_not_notice_throttling(served: Served) -> None:
    inject(served, kind="error", action="DescribeInstances", code="RequestLimitExceeded", times=2)
    patient = served.client("ec2", config=Config(retries={"max_attempts": 4, "mode": "standard"}))
    answer = patient.describe_instances()
    assert answer["ResponseMetadata"]["RetryAttempts"] == 2
    assert listed(served) == []


def test_ssm_fails_in_its_own_form(served: Served) -> None:
    inject(served, kind="error", action="GetParameter", code="ThrottlingException")
    with refused("ThrottlingException"):
        served.ssm.get_parameter(Name="/x")
    with refused("ParameterNotFound"):
        served.ssm.get_parameter(Name="/x")


def test_an_unsigned_call_uses_no_fault_up(served: Served) -> None:
    inject(served, kind="error", action="DescribeInstances", code="InternalError")
    with refused("SignatureDoesNotMatch"):
        served.client("ec2", aws_secret_access_key="wrong").describe_instances()
    assert [fault["struck"] for fault in listed(served)] == [0]


def test_a_delayed_action_keeps_nobody_else_waiting(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delay ends when the test says so."""
    begun, over, delays_s = threading.Event(), threading.Event(), list[float]()

    def delay(seconds: float) -> None:
        delays_s.append(seconds)
        begun.set()
        over.wait(60)

    monkeypatch.setattr(server, "time", SimpleNamespace(sleep=delay))
    inject(served, kind="delay", action="DescribeVolumes", delay_ms=1000)
    with ThreadPoolExecutor() as pool:
        delayed = pool.submit(served.ec2.describe_volumes)
        try:
            assert begun.wait(60)
            served.ec2.describe_instances()
            assert not delayed.done()
        finally:
            over.set()
        delayed.result(60)
    assert delays_s == [1.0]
    assert listed(served)[0]["struck"] == 1, "a delay lasts until it is cleared"


@pytest.mark.parametrize(("when", "made"), [("before", 0), ("after", 1)])
def test_a_dropped_connection(served: Served, when: str, made: int) -> None:
    image_id = served.register()
    inject(served, kind="drop", action="RunInstances", when=when)
    arguments: dict[str, Any] = {"ImageId": image_id, "MinCount": 1, "MaxCount": 1, "ClientToken": "once"}
    with pytest.raises(ConnectionClosedError):
        served.ec2.run_instances(InstanceType="t3.micro", **arguments)
    assert len(served.ec2.describe_instances()["Reservations"]) == made
    served.ec2.run_instances(InstanceType="t3.micro", **arguments)
    assert len(served.ec2.describe_instances()["Reservations"]) == 1, "the token makes the retry the same"


def test_instances_are_not_found_at_first(served: Served) -> None:
    fault_id = inject(served, kind="unknown", delay_ms=60_000)
    instance_id = launch(served)
    assert served.ec2.describe_instances()["Reservations"] == []
    with refused("InvalidInstanceID.NotFound"):
        state_of(served, instance_id)
    with refused("InvalidInstanceID.NotFound"):
        served.ec2.terminate_instances(InstanceIds=[instance_id])
    ask(served, "DELETE", f"/{fault_id}")
    until(lambda: state_of(served, instance_id) == "running")


def test_a_killed_machine_is_an_instance_that_ended(served: Served) -> None:
    instance_id = launch(served)
    until(lambda: state_of(served, instance_id) == "running")
    inject(served, kind="kill", instance=instance_id)
    until(lambda: state_of(served, instance_id) == "stopped")
    assert listed(served) == []


def test_the_next_machine_is_killed_and_the_one_after_it_is_not(served: Served) -> None:
    first = launch(served)
    until(lambda: state_of(served, first) == "running")
    inject(served, kind="kill", instance="next")
    second = launch(served)
    until(lambda: state_of(served, second) == "stopped")
    third = launch(served)
    until(lambda: state_of(served, third) == "running")
    assert state_of(served, first) == "running"


def test_a_frozen_machine_goes_on_when_the_fault_is_cleared_or_over(served: Served) -> None:
    instance_id = launch(served)
    until(lambda: state_of(served, instance_id) == "running")
    machine = served.machine(instance_id)
    fault_id = inject(served, kind="freeze", instance=instance_id)
    assert machine.frozen
    assert ask(served, "DELETE", f"/{fault_id}") == {"cleared": [fault_id]}
    assert not machine.frozen
    inject(served, kind="freeze", instance=instance_id, seconds=0.1)
    assert machine.frozen
    until(lambda: not machine.frozen)
    assert listed(served) == []


def test_slow_disks_of_all_machines_those_to_come_included(served: Served) -> None:
    first = launch(served)
    until(lambda: state_of(served, first) == "running")
    inject(served, kind="disk", bytes_per_second=1_000_000)
    second = launch(served)
    until(lambda: state_of(served, second) == "running")
    until(lambda: served.machine(second).limits == (1_000_000, 0))
    assert served.machine(first).limits == (1_000_000, 0)
    ask(served, "DELETE")
    assert served.machine(first).limits == served.machine(second).limits == (0, 0)


def test_imds_is_told_before_the_machine_starts_and_while_it_runs(served: Served) -> None:
    inject(served, kind="imds", instance="next", delay_ms=1500)
    first, second = launch(served), ""
    until(lambda: state_of(served, first) == "running")
    assert metadata_of(served, first)["fault_delay_ms"] == 1500
    second = launch(served)
    until(lambda: state_of(served, second) == "running")
    assert "fault_delay_ms" not in metadata_of(served, second)
    inject(served, kind="imds", instance=second, status=503)
    assert metadata_of(served, second)["fault_status"] == 503
    inject(served, kind="imds", instance=second, answer="garbage")
    assert metadata_of(served, second)["fault_answer"] == "garbage"
    assert "fault_status" not in metadata_of(served, second)  # the newest one wins
    ask(served, "DELETE")
    assert "fault_status" not in metadata_of(served, second)
    assert "fault_delay_ms" not in metadata_of(served, first)


def test_packets_are_lost_from_the_first_one_until_the_fault_is_cleared(served: Served) -> None:
    inject(served, kind="network", instance="next", drop_dhcp=2, delay_ms=10)
    instance_id = launch(served)
    until(lambda: state_of(served, instance_id) == "running")
    interface_id = served.state.instances[instance_id].interface_id
    good = {"dhcp": 0, "loss": 0.0, "delay": 0, "silent_dns": False}
    assert served.network.faults == {interface_id: good | {"dhcp": 2, "delay": 10}}
    inject(served, kind="network", instance=instance_id, loss_percent=25)
    assert served.network.faults[interface_id] == good | {"loss": 0.25}
    inject(served, kind="network", instance=instance_id, silent_dns=True)
    assert served.network.faults[interface_id] == good | {"silent_dns": True}
    ask(served, "DELETE")
    assert served.network.faults[interface_id] == good


def test_a_machine_starts_without_its_card_until_the_fault_is_over(served: Served) -> None:
    inject(served, kind="unplugged", instance="next")
    instance_id = launch(served)
    until(lambda: state_of(served, instance_id) == "running")
    other = launch(served)
    until(lambda: state_of(served, other) == "running")
    machine, normal = served.machine(instance_id), served.machine(other)
    interface_id = served.state.instances[instance_id].interface_id
    assert machine.spec.nics == ()
    assert len(normal.spec.nics) == 1
    ask(served, "DELETE")
    assert [nic.interface_id for nic in machine.plugged] == [interface_id]
    assert normal.plugged == ()


@pytest.mark.parametrize(
    ("fault", "status", "word"),
    [
        ({"kind": "error", "action": "RunInstancs", "code": "X"}, 400, "no action"),
        ({"kind": "error", "action": "RunInstances", "code": "X", "tims": 2}, 400, "tims"),
        ({"kind": "quake"}, 400, "kind"),
        ({"kind": "disk"}, 400, "bytes_per_second"),
        ({"kind": "kill", "instance": "i-0123456789abcdef0"}, 409, "no instance"),
        ({"kind": "kill", "instance": "*"}, 400, "instance"),
        ({"kind": "unplugged", "instance": "i-0123456789abcdef0"}, 409, "next"),
    ],
)
def test_a_fault_that_makes_no_sense(served: Served, fault: dict[str, Any], status: int, word: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(served, "POST", body=fault)
    assert error.value.code == status
    assert word in json.load(error.value)["error"]
    assert listed(served) == []


def test_a_restart_forgets_faults(served: Served) -> None:
    inject(served, kind="error", action="*", code="InternalError", times=100)
    served.restart()
    assert served.ec2.describe_instances()["Reservations"] == []


# The table, on a clock of the test's own


def test_faults_end_on_time() -> None:
    at = [0.0]
    table = Faults(clock=lambda: at[0])
    table.add(ErrorFault(action="*", code="InternalError", times=None, seconds=10))
    assert table.strike("RunInstances", []).error == (500, "InternalError", "An internal error has occurred")
    at[0] = 10.5
    assert table.strike("RunInstances", []).error is None
    assert table.listed() == []


def test_delays_add_up_and_errors_take_turns() -> None:
    table = Faults()
    table.add(DelayFault(action="*", delay_ms=100))
    table.add(DelayFault(action="RunInstances", delay_ms=50))
    table.add(ErrorFault(action="RunInstances", code="First"))
    table.add(ErrorFault(action="RunInstances", code="Second"))
    strikes = [table.strike("RunInstances", []) for _ in range(3)]
    assert [strike.error and strike.error[1] for strike in strikes] == ["First", "Second", None]
    assert strikes[0].delay_s == pytest.approx(0.15)


def test_instances_become_known_with_age() -> None:
    at = [0.0]
    table = Faults(clock=lambda: at[0])
    table.launched("i-1")
    at[0] = 3.0
    table.launched("i-2")
    table.add(UnknownFault(delay_ms=2000))
    assert table.hidden() == {"i-2"}
    assert table.strike("StopInstances", ["i-1"]).error is None
    assert table.strike("StopInstances", ["i-1", "i-2"]).error is not None
    at[0] = 5.5
    assert table.hidden() == set()

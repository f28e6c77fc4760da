"""Every call that a bake makes fails once: the bake is done all the same, or fails in one line, and leaves
nothing.

What is seen here is the cloud's side; the client's own retries are real, their pauses are cut short.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.compat import HTTPHeaders
from support.pretend_bakery import NOTHING, Bakery, Calls

from instant_env.bake.request import Method
from instant_env.errors import InstantEnvError

pytest_plugins = ("support.pretend_bakery",)
pytestmark = pytest.mark.slow

#: HTTP status of each, as EC2 has it. The client tries again what is Throttling or a 5xx.
CODES = {"Throttling": 503, "InternalError": 500, "InsufficientInstanceCapacity": 500, "NotFound": 400}
NOT_FOUND = {
    "Instance": "InvalidInstanceID.NotFound", "Console": "InvalidInstanceID.NotFound",
    "Volume": "InvalidVolume.NotFound", "Snapshot": "InvalidSnapshot.NotFound",
    "Image": "InvalidAMIID.NotFound", "Tags": "InvalidAMIID.NotFound", "Vpc": "InvalidVpcID.NotFound",
    "KeyPair": "InvalidKeyPair.NotFound", "SecurityGroup": "InvalidGroup.NotFound",
    "Parameter": "ParameterNotFound", "Resource": "InvalidResourceId",
}  # fmt: skip


class _Body:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self._content


class Fault:
    """One failing answer: the ``number``-th request (0: the first) of an action, once."""

    def __init__(self, action: str, code: str, number: int) -> None:
        self._action, self._code, self._number = action, code, number
        self.fired = False

    def __call__(self, request: AWSRequest, event_name: str, **_: Any) -> AWSResponse | None:
        if event_name.rpartition(".")[2] != self._action or self.fired:
            return None
        self._number -= 1
        if self._number >= 0:
            return None
        self.fired = True
        return self._answer(request, "ssm" in event_name)

    def _answer(self, request: AWSRequest, is_json: bool) -> AWSResponse:
        code = self._code
        if code == "NotFound":
            code = next(found for noun, found in NOT_FOUND.items() if noun in self._action)
        body = json.dumps({"__type": code, "message": "as told"}) if is_json else (
            f"<Response><Errors><Error><Code>{code}</Code><Message>as told</Message></Error></Errors>"
            "<RequestID>r</RequestID></Response>"
        )  # fmt: skip
        return AWSResponse(str(request.url), CODES[self._code], HTTPHeaders(), _Body(body.encode()))


def bake_with(bakery: Bakery, fault: Fault | None, method: Method) -> str:
    """The error's line, or an empty text when the bake was done."""
    clients = (bakery.cloud.ec2, bakery.cloud.ssm)
    for client in clients:
        if fault is not None:
            client.meta.events.register("before-send", cast(Any, fault), unique_id="fault")
    try:
        bakery.bake(method=method, force=True)
        return ""
    except InstantEnvError as error:
        return f"{error.message} ({error.hint})"
    finally:
        for client in clients:
            client.meta.events.unregister("before-send", unique_id="fault")


def check_all(bakery: Bakery, codes: Callable[[str], list[str]], method: Method) -> None:
    calls = Calls(bakery.cloud)
    assert bake_with(bakery, None, method) == ""
    actions = [action for action, _ in calls.requests]
    places = list(dict.fromkeys((action, 0) for action in actions))
    # What is asked often fails also late, where its answer is wanted for something else.
    places += [(action, actions.count(action) - 1) for action, _ in places if actions.count(action) > 1]
    for action, at in places:
        for code in codes(action):
            before = set(bakery.images())
            fault = Fault(action, code, at)
            line = bake_with(bakery, fault, method)
            where = f"{code} at {action} {at}: {line or 'done'}"
            print(where)
            if not fault.fired:  # polls differ in how often they ask
                assert not line, where
                continue
            assert "\n" not in line, where
            assert bakery.leftovers() == NOTHING, where
            added = set(bakery.images()) - before
            assert len(added) == (not line or "is baked and verified" in line), where
            assert all(image.verified for image in bakery.baked()), where
            assert len(bakery.snapshots()) == len(bakery.images()), where


def test_a_fault_at_each_call_leaves_nothing(bakery: Bakery) -> None:
    """NotFound, which nothing tries again, at each call that changes something; of the others one at
    each call, in turn."""
    others = itertools.cycle([code for code in CODES if code != "NotFound"])
    reading = itertools.cycle(CODES)

    def some(action: str) -> list[str]:
        if action.startswith(("Describe", "Get")):
            return [next(reading)]
        return ["NotFound", next(others)]

    check_all(bakery, some, Method.CREATE_IMAGE)


def test_a_fault_at_each_call_of_registering_leaves_nothing(bakery: Bakery) -> None:
    """What CreateImage does not call."""
    for action in ("CreateSnapshot", "DescribeSnapshots", "RegisterImage"):
        for code in CODES:
            fault = Fault(action, code, 0)
            line = bake_with(bakery, fault, Method.REGISTER)
            assert fault.fired
            assert bakery.leftovers() == NOTHING, f"{code} at {action}: {line}"
            assert len(bakery.snapshots()) == len(bakery.images()), f"{code} at {action}: {line}"

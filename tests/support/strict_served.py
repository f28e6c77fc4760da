"""Switches and launches of a localec2 in this process, on which the tests of its strictness agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instant_env.localec2.state.strictness import visibility
from support.patience import until

if TYPE_CHECKING:
    from support.localec2_served import Served


def strict(served: Served, **switches: Any) -> None:
    """Set some of the switches."""
    with served.state.lock:
        visibility.change(served.state, switches)


def launch(served: Served, **more: Any) -> str:
    """RunInstances; the instance's id. It may not be visible yet."""
    arguments: dict[str, Any] = {"InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
    return served.ec2.run_instances(ImageId=served.register(), **arguments)["Instances"][0]["InstanceId"]


def launched(served: Served, **more: Any) -> str:
    """The same, once it runs by the server's own records."""
    instance_id = launch(served, **more)
    until(lambda: served.state.instances[instance_id].state == "running")
    return instance_id

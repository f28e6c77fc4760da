"""Why instances end, in EC2's words (API_StateReason lists the codes)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Why an instance ends: StateReason, and the text before the time in StateTransitionReason."""

    code: str
    message: str
    reason: str


HIBERNATION = Cause("Client.UserInitiatedHibernate", "User initiated hibernate", "User initiated")
GUEST = Cause("Client.InstanceInitiatedShutdown", "Instance initiated shutdown", "User initiated")
USER = Cause("Client.UserInitiatedShutdown", "User initiated shutdown", "User initiated")
#: API_StateReason names these codes.
TERMINATION = Cause(
    "Server.SpotInstanceTermination", "Spot Instance termination", "Server.SpotInstanceTermination"
)
SHUTDOWN = Cause("Server.SpotInstanceShutdown", "Spot Instance shutdown", "Server.SpotInstanceShutdown")

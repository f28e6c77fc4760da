"""The keys that Instance Connect pushed to running machines, signed as their IMDS serves them."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from instant_env.localec2.network.metadata import Extras, Node, PushedKey
from instant_env.localec2.state.signer import Signer

#: API_SendSSHPublicKey: "The key remains for 60 seconds."
KEY_LIFETIME = timedelta(seconds=60)


class InstanceConnect:
    """The keys that were pushed, and the signer. Pushing wants the state's lock held; the signer does not."""

    def __init__(self, signer_file: Path, region: str) -> None:
        self._signer_file, self._region = signer_file, region
        self._signer_lock = threading.Lock()
        self._signer: Signer | None = None
        self._pushed: defaultdict[str, list[PushedKey]] = defaultdict(list)
        self._nodes: dict[str, Node] = {}  # instance -> what is beside its active keys

    def signer(self) -> Signer:
        """The signer, made at the first use. Without the state's lock: making keys takes its time."""
        with self._signer_lock:
            if self._signer is None:
                self._signer = Signer.at(self._signer_file, self._region, datetime.now(UTC))
            return self._signer

    def push(
        self, signer: Signer, instance_id: str, user: str, key: str, caller: str, request: str
    ) -> PushedKey:
        """Add a key, signed, to those of a user."""
        now = datetime.now(UTC)
        expires = now + KEY_LIFETIME
        lines = (
            f"#Timestamp={int(expires.timestamp())}\n#Instance={instance_id}\n#Caller={caller}\n"
            f"#Request={request}\n{key}\n"
        )
        pushed_key = PushedKey(user, f"{lines}{signer.sign(lines)}\n\n", expires)
        alive = [item for item in self._pushed[instance_id] if item.expires > now]
        self._pushed[instance_id] = [*alive, pushed_key]
        self._nodes[instance_id] = signer.nodes(now)
        return pushed_key

    def extras(self, instance_id: str, iam: Node) -> Extras:
        """What IMDS of an instance has of all this."""
        return Extras(iam, self._nodes.get(instance_id, {}), tuple(self._pushed.get(instance_id, ())))

    def forget(self, instance_id: str) -> None:
        """The machine is no more."""
        self._pushed.pop(instance_id, None)
        self._nodes.pop(instance_id, None)

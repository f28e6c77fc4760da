"""The switches of a server, and since when it has what some of them are about. In memory only.

EC2 Developer Guide, "Eventual consistency in the Amazon EC2 API": what a call has made may not be visible to
the calls that follow it. A server that has started anew knows all that it has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from instant_env.localec2.records.records import (
    ImageRecord,
    InstanceRecord,
    InterfaceRecord,
    KeyPairRecord,
    Record,
    SecurityGroupRecord,
    SnapshotRecord,
    VolumeRecord,
)
from instant_env.localec2.state.identities import InstanceProfileRecord
from instant_env.localec2.state.moto_api import ACCOUNT_ID
from instant_env.localec2_settings import LocalEc2Settings

#: Kinds whose new members are visible late.
LATE_KINDS = (
    InstanceRecord, VolumeRecord, SnapshotRecord, ImageRecord, InterfaceRecord, KeyPairRecord,
    SecurityGroupRecord, InstanceProfileRecord,
)  # fmt: skip
#: Longer than any switch: what is older is forgotten.
_FORGOTTEN_S = 3600.0


class _Times:
    """When something happened, by its id; the oldest are forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, name: str) -> None:
        with self._lock:
            now = self._clock()
            self._at.pop(name, None)  # the order is that of time
            self._at[name] = now
            while self._at and now - next(iter(self._at.values())) > _FORGOTTEN_S:
                del self._at[next(iter(self._at))]

    def age_s(self, name: str) -> float:
        """Seconds since; an hour when nothing is known."""
        with self._lock:
            at = self._at.get(name)
        return _FORGOTTEN_S if at is None else self._clock() - at

    def names(self) -> list[str]:
        with self._lock:
            return list(self._at)


@dataclass
class Strictness:
    """The switches and what they look at. ``clock`` is monotonic seconds; any thread may ask."""

    switches: LocalEc2Settings = field(default_factory=LocalEc2Settings)
    clock: Callable[[], float] = time.monotonic
    _made: _Times = field(init=False)
    _tagged: _Times = field(init=False)
    _running: _Times = field(init=False)
    _started: _Times = field(init=False)
    _deregistered: _Times = field(init=False)

    def __post_init__(self) -> None:
        def now() -> float:
            return self.clock()  # a test may set another clock later

        self._made, self._tagged, self._running = _Times(now), _Times(now), _Times(now)
        self._started, self._deregistered = _Times(now), _Times(now)

    def change(self, switches: Mapping[str, object]) -> LocalEc2Settings:
        """Set some of the switches; returns all. Raises pydantic's ValidationError."""
        values = self.switches.model_dump() | dict(switches)
        self.switches = LocalEc2Settings.model_validate(values)
        return self.switches

    # What happened

    def made(self, record: Record) -> None:
        """A record is new. What belongs to others has been there for long."""
        if not isinstance(record, LATE_KINDS):
            return
        if isinstance(record, ImageRecord | SnapshotRecord) and record.owner_id != ACCOUNT_ID:
            return
        self._made.note(record.key)
        for key in record.tags:
            self._tagged.note(_tag(record.key, key))

    def tagged(self, resource_ids: Iterable[str], keys: Iterable[str]) -> None:
        """CreateTags was answered."""
        names = list(keys)
        for resource_id in resource_ids:
            for key in names:
                self._tagged.note(_tag(resource_id, key))

    def started(self, instance_id: str) -> None:
        """A launch, or StartInstances."""
        self._started.note(instance_id)

    def running(self, instance_id: str) -> None:
        """An instance is `running` from now on."""
        self._running.note(instance_id)

    def deregistered(self, snapshot_ids: Iterable[str]) -> None:
        """The image of these snapshots is gone."""
        for snapshot_id in snapshot_ids:
            self._deregistered.note(snapshot_id)

    # What follows from it

    def is_hidden(self, resource_id: str) -> bool:
        """Whether calls that name it do not find it: not at first, then they do, then once more not."""
        late_s = self.switches.late_ms / 1000
        age_s = self._made.age_s(resource_id)
        return age_s < late_s / 2 or late_s * 3 / 4 <= age_s < late_s

    def hidden(self) -> set[str]:
        """Everything that no list shows now."""
        if not self.switches.late_ms:
            return set()
        return {name for name in self._made.names() if self.is_hidden(name)}

    def tag_is_late(self, resource_id: str, key: str | None) -> bool:
        """Whether a filter does not know of a tag yet; ``key`` None is any tag of a new resource."""
        late_s = self.switches.late_tags_ms / 1000
        if key is None:
            return self._made.age_s(resource_id) < late_s
        return self._tagged.age_s(_tag(resource_id, key)) < late_s

    def address_is_late(self, instance_id: str) -> bool:
        """Whether the public address of an instance is not described yet."""
        late_s = self.switches.late_address_ms / 1000
        return late_s > 0 and self._running.age_s(instance_id) < late_s

    def hibernates_from_s(self, instance_id: str) -> float:
        """Seconds until an instance can be hibernated; 0 when it can."""
        return max(0.0, self.switches.hibernation_ready_ms / 1000 - self._started.age_s(instance_id))

    def snapshot_in_use(self, snapshot_id: str) -> bool:
        """Whether EC2 still counts the image that a snapshot had."""
        return self._deregistered.age_s(snapshot_id) < self.switches.snapshot_in_use_ms / 1000


def _tag(resource_id: str, key: str) -> str:
    return f"{resource_id} {key}"

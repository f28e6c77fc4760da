"""Faults on demand: what is to go wrong, where, and for how long. In memory only; a restart forgets them.

This module is the table, without side effects: which fault strikes a call, what a machine's IMDS answers.
:mod:`instant_env.localec2.instances.fault_injector` carries out those of machines. Faults of the API strike
calls that are correctly signed, in the order in which they were made.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from instant_env.localec2.state.moto_api import known_actions

#: HTTP status of EC2's codes that are not 400. RequestLimitExceeded: botocore's _retry.json asks for 503;
#: the 500s are the server errors of EC2's "Error codes for the Amazon EC2 API".
STATUSES = {
    "RequestLimitExceeded": 503, "EC2ThrottledException": 503, "Unavailable": 503, "ServiceUnavailable": 503,
    "InternalError": 500, "InternalFailure": 500, "InsufficientInstanceCapacity": 500,
    "InsufficientCapacity": 500, "InsufficientHostCapacity": 500, "InsufficientReservedInstanceCapacity": 500,
}  # fmt: skip
#: What EC2 says with them.
MESSAGES = {
    "RequestLimitExceeded": "Request limit exceeded.",
    "InternalError": "An internal error has occurred",
    "InsufficientInstanceCapacity": "We currently do not have sufficient capacity in the Availability Zone "
    "you requested. Our system will be working on provisioning additional capacity.",
    "Unavailable": "The service is unavailable. Please try again shortly.",
}
#: The instance that starts next; the fault is that instance's from then on.
NEXT = "next"
#: Every instance, also those that are launched later.
ALL = "*"

_Id = Field(pattern=r"^(i-[0-9a-f]{8,17}|next)$", description="an instance, or the one that starts next")
_IdOrAll = Field(
    default=ALL, pattern=r"^(i-[0-9a-f]{8,17}|next|\*)$",
    description="an instance, the one that starts next, or * for all",
)  # fmt: skip


class _Fault(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float | None = Field(default=None, gt=0, le=86400, description="over after this time")


class _ApiFault(_Fault):
    action: str = Field(description="the action that it strikes, or * for all")
    times: int | None = Field(default=None, ge=1, description="over after this many calls")

    @model_validator(mode="after")
    def _check_action(self) -> _ApiFault:
        """A typo would make a fault that never strikes, and a test that passes for that."""
        if self.action != ALL and self.action not in known_actions():
            raise ValueError(f"no action {self.action!r}; names are EC2's: RunInstances")
        return self


class ErrorFault(_ApiFault):
    """The action is not done and answers an error."""

    kind: Literal["error"] = "error"
    times: int | None = Field(default=1, ge=1)
    code: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9.]{0,99}$")
    message: str = Field(default="", max_length=500)
    status: int | None = Field(default=None, ge=400, le=599, description="HTTP; default by code")

    def answer(self) -> tuple[int, str, str]:
        """(HTTP status, code, message)."""
        message = self.message or MESSAGES.get(self.code) or "A fault that was asked for."
        return self.status or STATUSES.get(self.code, 400), self.code, message


class DelayFault(_ApiFault):
    """The action is done late."""

    kind: Literal["delay"] = "delay"
    delay_ms: int = Field(ge=1, le=600_000)


class DropFault(_ApiFault):
    """The connection ends without an answer, before the action is done or after it."""

    kind: Literal["drop"] = "drop"
    times: int | None = Field(default=1, ge=1)
    when: Literal["before", "after"] = "before"


class UnknownFault(_Fault):
    """Eventual consistency: instances are not found for this long after their launch."""

    kind: Literal["unknown"] = "unknown"
    delay_ms: int = Field(ge=1, le=600_000)


class KillFault(_Fault):
    """The machine's process is killed."""

    kind: Literal["kill"] = "kill"
    instance: str = _Id
    after_ms: int = Field(default=0, ge=0, description="after it was asked for or, with `next`, after start")


class FreezeFault(_Fault):
    """The machine's processors stand still until the fault is cleared."""

    kind: Literal["freeze"] = "freeze"
    instance: str = _Id
    after_ms: int = Field(default=0, ge=0, description="after it was asked for or, with `next`, after start")


class DiskFault(_Fault):
    """All disks of the machine are slow."""

    kind: Literal["disk"] = "disk"
    instance: str = _IdOrAll
    bytes_per_second: int = Field(default=0, ge=0, description="of each volume; 0: as fast as it goes")
    operations_per_second: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _slow(self) -> DiskFault:
        if not self.bytes_per_second and not self.operations_per_second:
            raise ValueError("give bytes_per_second or operations_per_second")
        return self


class ImdsFault(_Fault):
    """The metadata service answers late, with this status, or not as HTTP has it."""

    kind: Literal["imds"] = "imds"
    instance: str = _IdOrAll
    delay_ms: int = Field(default=0, ge=0, le=600_000)
    status: int | None = Field(default=None, ge=400, le=599)
    answer: Literal["refused", "truncated", "garbage"] | None = Field(
        default=None, description="connections are refused; answers end halfway, or are no HTTP"
    )

    @model_validator(mode="after")
    def _wrong(self) -> ImdsFault:
        if not self.delay_ms and self.status is None and self.answer is None:
            raise ValueError("give delay_ms, status or answer")
        return self


class NetworkFault(_Fault):
    """Packets of the machine's interfaces are lost or late, either way."""

    kind: Literal["network"] = "network"
    instance: str = _IdOrAll
    drop_dhcp: int = Field(default=0, ge=0, description="the guest's next this many DHCP messages are lost")
    loss_percent: float = Field(default=0.0, ge=0.0, le=100.0)
    delay_ms: int = Field(default=0, ge=0, le=60_000)
    silent_dns: bool = Field(default=False, description="the resolver does not answer")

    @model_validator(mode="after")
    def _bad(self) -> NetworkFault:
        if not (self.drop_dhcp or self.loss_percent or self.delay_ms or self.silent_dns):
            raise ValueError("give drop_dhcp, loss_percent, delay_ms or silent_dns")
        return self


class UnpluggedFault(_Fault):
    """The machine starts without its network card, which is plugged in when the fault is over."""

    kind: Literal["unplugged"] = "unplugged"
    instance: str = _Id


Fault = Annotated[
    ErrorFault
    | DelayFault
    | DropFault
    | UnknownFault
    | KillFault
    | FreezeFault
    | DiskFault
    | ImdsFault
    | NetworkFault
    | UnpluggedFault,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Fault] = TypeAdapter(Fault)


def parse(body: bytes) -> Fault:
    """A fault from its JSON. Raises pydantic's ValidationError."""
    return _ADAPTER.validate_json(body)


@dataclass
class Active:
    """A fault in the table, and what it has done."""

    id: str
    fault: Fault
    ends_at: float | None  # on the table's clock
    instance: str = ""  # `next` becomes an id
    struck: int = 0

    def as_dict(self, clock: float) -> dict[str, Any]:
        values = {"id": self.id} | self.fault.model_dump(exclude_none=True) | {"struck": self.struck}
        if self.instance:
            values["instance"] = self.instance
        if self.ends_at is not None:
            values["seconds_left"] = round(max(0.0, self.ends_at - clock), 1)
        return values


@dataclass(frozen=True)
class Strike:
    """What happens to one call."""

    delay_s: float = 0.0
    error: tuple[int, str, str] | None = None
    drop: Literal["before", "after"] | None = None


@dataclass
class Faults:
    """The table. May be used from any thread; ``clock`` is monotonic seconds."""

    clock: Callable[[], float] = time.monotonic
    _active: dict[str, Active] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _launches: dict[str, float] = field(default_factory=dict)

    def add(self, fault: Fault) -> Active:
        ends = None if fault.seconds is None else self.clock() + fault.seconds
        active = Active(f"fault-{next(self._numbers)}", fault, ends, getattr(fault, "instance", ""))
        with self._lock:
            self._active[active.id] = active
        return active

    def remove(self, fault_id: str | None = None) -> list[Active]:
        """Take one, or all, out of the table; returns them."""
        with self._lock:
            ids = [fault_id] if fault_id is not None else list(self._active)
            return [self._active.pop(one) for one in ids if one in self._active]

    def listed(self) -> list[dict[str, Any]]:
        """What is active, oldest first."""
        return [active.as_dict(self.clock()) for active in self._current()]

    def _current(self) -> list[Active]:
        now = self.clock()
        with self._lock:
            return [item for item in self._active.values() if item.ends_at is None or item.ends_at > now]

    # The API

    def strike(self, action: str, instance_ids: list[str]) -> Strike:
        """What happens to a call of ``action`` that names these instances. Counts it."""
        delay_s, error, drop = 0.0, None, None
        for active in self._current():
            fault = active.fault
            if isinstance(fault, UnknownFault):
                hidden = self._young(fault.delay_ms)
                if error is None and (young := [one for one in instance_ids if one in hidden]):
                    error = (
                        400, "InvalidInstanceID.NotFound", f"The instance ID '{young[0]}' does not exist",
                    )  # fmt: skip
                    active.struck += 1
                continue
            if not isinstance(fault, _ApiFault) or fault.action not in (ALL, action):
                continue
            # A call gets one error or one end; what else there is waits for the next.
            if isinstance(fault, DelayFault):
                if self._count(active, fault):
                    delay_s += fault.delay_ms / 1000
            elif error is None and drop is None and self._count(active, fault):
                if isinstance(fault, ErrorFault):
                    error = fault.answer()
                elif isinstance(fault, DropFault):
                    drop = fault.when
        return Strike(delay_s, error, drop)

    def _count(self, active: Active, fault: _ApiFault) -> bool:
        """Whether it strikes once more; calls come from many threads."""
        with self._lock:
            if active.id not in self._active or (fault.times is not None and active.struck >= fault.times):
                return False
            active.struck += 1
            if active.struck == fault.times:
                del self._active[active.id]
            return True

    def launched(self, instance_id: str) -> None:
        """An instance is made now."""
        with self._lock:
            self._launches[instance_id] = self.clock()

    def forget(self, instance_id: str) -> None:
        """The instance is no longer known."""
        with self._lock:
            self._launches.pop(instance_id, None)

    def _young(self, age_ms: int) -> set[str]:
        limit = self.clock() - age_ms / 1000
        with self._lock:
            return {instance_id for instance_id, at in self._launches.items() if at > limit}

    def hidden(self) -> set[str]:
        """Instances that no list shows yet."""
        ages = [item.fault.delay_ms for item in self._current() if isinstance(item.fault, UnknownFault)]
        return self._young(max(ages)) if ages else set()

    # Machines

    def bind(self, instance_id: str) -> None:
        """This instance's machine starts: what waits for the next one is its own now."""
        with self._lock:
            for active in self._active.values():
                if active.instance == NEXT:
                    active.instance = instance_id

    def of_machine(self, instance_id: str) -> list[Active]:
        """The faults of an instance's machine."""
        return [item for item in self._current() if item.instance in (ALL, instance_id)]

    def network(self, instance_id: str) -> NetworkFault | None:
        """What is wrong with the packets of an instance: the newest fault wins."""
        faults = [item.fault for item in self.of_machine(instance_id) if isinstance(item.fault, NetworkFault)]
        return faults[-1] if faults else None

    def unplugged(self, instance_id: str) -> bool:
        """Whether an instance's machine is to start without its network card."""
        return any(isinstance(item.fault, UnpluggedFault) for item in self.of_machine(instance_id))

    def imds(self, instance_id: str) -> dict[str, int | str]:
        """What the metadata file says of its faults; the newest fault wins."""
        fields: dict[str, int | str] = {}
        for active in self.of_machine(instance_id):
            if isinstance(active.fault, ImdsFault):
                fields["fault_delay_ms"] = active.fault.delay_ms
                fields["fault_status"] = active.fault.status or 0
                fields["fault_answer"] = active.fault.answer or ""
        return {name: value for name, value in fields.items() if value}

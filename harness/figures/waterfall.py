"""Where an attempt's time went: the stretches between its marks, each named by the mark that ends it.

Host's and guest's marks are put on one axis (``guest_boot_ms`` is the guest's zero on the host's clock). What
no mark accounts for is a stage of its own, *unexplained*: its share says how much of t4 nobody can explain.
Where a machine has systemd, its own records and cloud-init's (the run's .guests.jsonl) split that further.
A mark more in :data:`MARKS` splits stretches further; columns that a CSV does not have are no marks of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from harness.figures.reading import Record
from instant_env.launch.timeline import Outcome


class Stage(StrEnum):
    """In the order of a boot; the value is what people read."""

    API = "API call"
    RUNNING = "pending to running"
    FIRMWARE = "firmware and loader"
    KERNEL = "kernel"
    SYSTEMD = "kernel and systemd"
    INITRAMFS = "initramfs"
    UNITS = "systemd"
    CLOUD_INIT = "cloud-init"
    INIT = "init"
    RESUME = "resume"
    NETWORK = "network"
    KEY = "key"
    SSHD = "sshd"
    AUTH = "authentication"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Mark:
    """``guest`` marks count from the start of the guest's kernel."""

    column: str
    ends: Stage
    guest: bool = False


MARKS = (
    Mark("t1_ms", Stage.API),
    Mark("t2_ms", Stage.RUNNING),
    Mark("guest_boot_ms", Stage.FIRMWARE),
    Mark("kernel_handoff_ms", Stage.KERNEL, guest=True),
    Mark("init_start_ms", Stage.INIT, guest=True),
    Mark("resumed_ms", Stage.RESUME, guest=True),
    Mark("network_up_ms", Stage.NETWORK, guest=True),
    Mark("key_received_ms", Stage.KEY, guest=True),
    Mark("key_written_ms", Stage.KEY, guest=True),
    Mark("sshd_started_ms", Stage.SSHD, guest=True),
    Mark("sshd_listening_ms", Stage.SSHD, guest=True),
    Mark("t3_ms", Stage.SSHD),
    Mark("first_login_ms", Stage.AUTH, guest=True),
    Mark("t4_ms", Stage.AUTH),
)

#: Only our init as PID 1 starts sshd itself.
_PID1_MARK = "sshd_started_ms"

#: Debian's, and Amazon Linux's.
_SSHD_UNITS = ("ssh.service", "sshd.service")


@dataclass(frozen=True)
class Stretch:
    """A piece of one attempt, in ms from t0."""

    stage: Stage
    start_ms: float
    end_ms: float

    @property
    def ms(self) -> float:
        return self.end_ms - self.start_ms


def stretches(record: Record) -> list[Stretch]:
    """All of t0 to t4 of an attempt that was ok, without gaps or overlaps; neighbours of one stage join."""
    t4_ms = record.ms("t4_ms")
    if record.outcome != Outcome.OK or t4_ms is None:
        return []
    pid1 = record.ms(_PID1_MARK) is not None
    pieces: list[Stretch] = []
    at = 0.0
    for instant, stage in sorted(_instants(record, pid1), key=lambda mark: mark[0]):
        # The guest's clock is joined with an error: its marks stay between the host's own ends.
        end = min(max(instant, at), t4_ms)
        if pieces and pieces[-1].stage is stage:
            pieces[-1] = Stretch(stage, pieces[-1].start_ms, end)
        elif end > at:
            pieces.append(Stretch(stage, at, end))
        at = end
    return pieces


def _instants(record: Record, pid1: bool) -> list[tuple[float, Stage]]:
    boot_ms = record.ms("guest_boot_ms")
    boot = _boot_instants(record) if boot_ms is not None else []
    instants = []
    for mark in MARKS:
        value = record.ms(mark.column)
        if value is None or (mark.guest and boot_ms is None):
            continue
        stage = mark.ends
        if mark.column == "init_start_ms" and not pid1:
            stage = Stage.UNITS if boot else Stage.SYSTEMD
        elif mark.column == "init_start_ms" and record.ms("kernel_handoff_ms") is None:
            stage = Stage.KERNEL
        elif mark.column == "t3_ms" and not (pid1 or boot or _sshd_was_there(record)):
            # Between the last mark and sshd's answer somebody else's init was at work, unseen.
            stage = Stage.UNEXPLAINED
        instants.append((value + (boot_ms or 0.0) if mark.guest else value, stage))
    return instants + [(ms + (boot_ms or 0.0), stage) for ms, stage in boot]


def _sshd_was_there(record: Record) -> bool:
    """Of a machine that ran before t0, only its answer was waited for; where it slept, from the mark on that
    tells when it went on."""
    if record.texts.get("resumed") == "yes":
        return record.ms("resumed_ms") is not None
    return (record.ms("guest_boot_ms") or 0.0) < 0


def _boot_instants(record: Record) -> list[tuple[float, Stage]]:
    """What systemd and cloud-init said, in ms from kernel start; nothing unless it reaches to sshd's start.

    What began after sshd was started no longer holds up the login. cloud-init's own stages count, not the
    modules within them, and not when its clock was stepped meanwhile. A stage begins with its unit: until it
    logs its first word, Python starts and reads cloud-init's code.
    """

    def spans(name: str) -> list[dict[str, Any]]:
        return [span for span in record.boot.get(name, ()) if span.get("ended_ms") is not None]

    until = sshd_started_ms(record)
    if until is None:
        return []
    stages = {"kernel": Stage.KERNEL, "initrd": Stage.INITRAMFS}
    instants = [
        (span["ended_ms"], stages[span["name"]]) for span in spans("stages") if span["name"] in stages
    ]
    if not record.boot.get("clock_stepped"):
        for span in spans("cloud_init"):
            if "/" not in span["name"] and span["began_ms"] < until:
                instants.append((_unit_began_ms(record, span), Stage.UNITS))
                instants.append((min(span["ended_ms"], until), Stage.CLOUD_INIT))
    # Last: of two marks at one instant the first names the stretch, and cloud-init may be cut off there.
    return [(ms, stage) for ms, stage in instants if ms <= until] + [(until, Stage.UNITS)]


def _unit_began_ms(record: Record, stage: dict[str, Any]) -> float:
    """When the unit that ran a stage of cloud-init began."""
    began = [
        unit["began_ms"]
        for unit in record.boot.get("units", ())
        if unit["name"].startswith("cloud-") and unit["name"].endswith(".service")
        and unit["began_ms"] <= stage["began_ms"] < (unit["ended_ms"] or math.inf)
    ]  # fmt: skip
    return float(max(began, default=stage["began_ms"]))


@dataclass(frozen=True)
class Breakdown:
    """``attempt`` is a real one, that with the median t4 (the lower of two): its stretches add up to its t4.
    ``stages_ms`` and ``unexplained`` (a share of t4) are medians over all attempts that were ok."""

    technique: str
    attempt: str
    n: int
    stretches: tuple[Stretch, ...]
    stages_ms: dict[Stage, float]
    unexplained: float

    @property
    def t4_ms(self) -> float:
        return self.stretches[-1].end_ms


def breakdowns(records: Sequence[Record], order: Sequence[str]) -> list[Breakdown]:
    """One for each technique that logged in at least once."""
    rows = []
    for technique in order:
        good = [
            (pieces[-1].end_ms, record, pieces)
            for record in records
            if record.technique == technique and (pieces := stretches(record))
        ]
        if not good:
            continue
        good.sort(key=lambda item: item[0])
        _, typical, pieces = good[(len(good) - 1) // 2]
        sums = [{stage: _total(own, stage) for stage in Stage} for _, _, own in good]
        rows.append(
            Breakdown(
                technique=technique,
                attempt=typical.texts.get("attempt", "?"),
                n=len(good),
                stretches=tuple(pieces),
                stages_ms={
                    stage: float(np.median([own[stage] for own in sums]))
                    for stage in Stage
                    if any(own[stage] for own in sums)
                },
                unexplained=float(
                    np.median(
                        [own[Stage.UNEXPLAINED] / t4 for (t4, _, _), own in zip(good, sums, strict=True)]
                    )
                ),
            )
        )
    return rows


@dataclass(frozen=True)
class Work:
    """What a unit or a module of cloud-init did before sshd was started: medians, ``began_ms`` from kernel
    start. ``n`` attempts have it."""

    name: str
    n: int
    began_ms: float
    took_ms: float


def longest_works(records: Sequence[Record], technique: str, most: int) -> list[Work]:
    """What took longest in the boots of a technique, by systemd's and cloud-init's own records, in the order
    in which it began. They overlap: units run side by side, and modules are within their stages, which are
    within their units. Only what more than half of the attempts have."""
    spans: dict[str, list[tuple[float, float]]] = {}
    attempts = 0
    for record in records:
        until = sshd_started_ms(record)
        if record.technique != technique or record.outcome != Outcome.OK or until is None:
            continue
        attempts += 1
        stepped = bool(record.boot.get("clock_stepped"))
        for kind in ("units",) if stepped else ("units", "cloud_init"):
            for span in record.boot.get(kind, ()):
                if span.get("ended_ms") is not None and span["began_ms"] < until:
                    name = span["name"] if kind == "units" else f"cloud-init: {span['name']}"
                    spans.setdefault(name, []).append((span["began_ms"], span["ended_ms"] - span["began_ms"]))
    works = [
        Work(name, len(own), *(float(value) for value in np.median(np.array(own), axis=0)))
        for name, own in spans.items()
        if len(own) > attempts / 2
    ]
    works.sort(key=lambda work: -work.took_ms)
    return sorted(works[:most], key=lambda work: work.began_ms)


def sshd_started_ms(record: Record) -> float | None:
    """When systemd started sshd, in ms from kernel start; None when its records do not say."""
    began = [span["began_ms"] for span in record.boot.get("units", ()) if span["name"] in _SSHD_UNITS]
    return min(began, default=None)


def _total(pieces: Sequence[Stretch], stage: Stage) -> float:
    return sum(piece.ms for piece in pieces if piece.stage is stage)

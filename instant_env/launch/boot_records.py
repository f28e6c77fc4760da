"""Where a systemd machine's boot went, in its own words: systemd's timestamps and cloud-init's log.

Read over the authenticated connection after t4, when it perturbs nothing. systemd is queried through its
private socket where we may (as root; no D-Bus daemon takes part), by the numbers that `systemd-analyze`
computes with. cloud-init logs the start and the finish of each of its stages and modules, which is what
`cloud-init analyze` reads; that command itself would start Python for seconds. Its log has the wall clock of
the guest, which is turned into time since kernel start by reading both clocks at once: right as long as the
guest's clock was not stepped in between, which ``clock_stepped`` says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncssh

from instant_env.errors import InstantEnvError

_TIMEOUT_S = 60.0

#: Sections of the answer. `sudo -n`: no password is asked for, and without sudo we ask as we are.
_SCRIPT = r"""
[ -d /run/systemd/system ] || { echo "== none"; exit 0; }
if sudo -n true 2>/dev/null; then sudo="sudo -n"; else sudo=""; fi
export LC_ALL=C TZ=UTC
echo "== clocks"
read -r up rest </proc/uptime; echo "$up $(date +%s.%N)"
echo "== manager"
$sudo systemctl show -p FirmwareTimestampMonotonic -p LoaderTimestampMonotonic -p InitRDTimestampMonotonic \
    -p UserspaceTimestampMonotonic -p FinishTimestampMonotonic
echo "== units"
$sudo systemctl show -p Id -p InactiveExitTimestampMonotonic -p ActiveEnterTimestampMonotonic \
    '*.service' '*.target' '*.socket' '*.mount'
echo "== cloud-init"
$sudo grep -hE '\]: (start|finish): ' /var/log/cloud-init.log 2>/dev/null
echo "== until"
read -r up rest </proc/uptime; echo "$up"
echo "== end"
"""

_EVENT = re.compile(
    r"^(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - \S+: (?P<kind>start|finish): (?P<name>[^:]+): "
    r"(?:(?P<result>SUCCESS|FAIL|WARN): )?"
)

#: An event that far before the kernel started, or after it was read, was logged by another clock.
_STEP_MS = 1000.0


class RecordsError(InstantEnvError):
    """The machine's records cannot be read."""


@dataclass(frozen=True)
class Span:
    """Something that began and ended, in ms from kernel start; ``ended_ms`` None: not yet when it was asked.

    ``result`` is cloud-init's: ``SUCCESS``, ``WARN`` or ``FAIL``.
    """

    name: str
    began_ms: float
    ended_ms: float | None
    result: str = ""


@dataclass(frozen=True)
class BootRecords:
    """``stages``: systemd's own (firmware and loader are before kernel start, so negative); ``units`` from
    their
    start to when they were active; ``cloud_init`` its stages and modules, nested by name (``a/b``)."""

    stages: tuple[Span, ...]
    units: tuple[Span, ...]
    cloud_init: tuple[Span, ...]
    clock_stepped: bool = False


async def read_boot_records(connection: asyncssh.SSHClientConnection) -> BootRecords | None:
    """Read them; None on a machine without systemd. Raises RecordsError."""
    try:
        result = await connection.run(_SCRIPT, timeout=_TIMEOUT_S, encoding="utf-8", errors="replace")
    except Exception as error:  # whatever a guest's bytes make of asyncssh
        raise RecordsError(f"{type(error).__name__}: {error}") from error
    return parse(str(result.stdout))


def parse(text: str) -> BootRecords | None:
    """What the script printed. Raises RecordsError when it is not whole, or not what systemd prints."""
    try:
        return _parse(text)
    except Exception as error:
        raise RecordsError(f"not what was asked for: {error!r}") from error


def _parse(text: str) -> BootRecords | None:
    sections: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("== "):
            name = line[3:]
            sections[name] = []
        elif name:
            sections[name].append(line)
    if "none" in sections:
        return None
    uptime_s, wall_s = (float(word) for word in sections["clocks"][0].split())
    manager = _properties(sections["manager"])[0]
    units = _properties(sections["units"])
    events, until_s, _ = sections["cloud-init"], float(sections["until"][0]), sections["end"]
    if not all(map(math.isfinite, (uptime_s, wall_s, until_s))):
        raise ValueError("a clock is not a finite number")
    cloud_init = _cloud_init(events, boot_s=wall_s - uptime_s)
    limit_ms = until_s * 1000 + _STEP_MS  # cloud-init goes on while it is asked
    stepped = any(not -_STEP_MS <= span.began_ms <= limit_ms for span in cloud_init)
    return BootRecords(_stages(manager), _units(units), cloud_init, stepped)


def _properties(lines: Sequence[str]) -> list[dict[str, str]]:
    """`systemctl show`: KEY=VALUE lines, an empty line between units."""
    blocks: list[dict[str, str]] = [{}]
    for line in lines:
        key, equals, value = line.partition("=")
        if not line and blocks[-1]:
            blocks.append({})
        elif equals:
            blocks[-1][key] = value
    return blocks


def _us(properties: dict[str, str], key: str) -> float | None:
    """A timestamp in ms; 0 is systemd's "never"."""
    text = properties.get(key, "")
    return int(text) / 1000 if text.isdigit() and text != "0" else None


def _stages(manager: dict[str, str]) -> tuple[Span, ...]:
    """As systemd-analyze has it: firmware and loader count backwards from kernel start."""
    firmware, loader = _us(manager, "FirmwareTimestampMonotonic"), _us(manager, "LoaderTimestampMonotonic")
    initrd, userspace = _us(manager, "InitRDTimestampMonotonic"), _us(manager, "UserspaceTimestampMonotonic")
    stages = []
    if firmware is not None:
        stages.append(Span("firmware", -firmware, -(loader or 0.0)))
    if loader is not None:
        stages.append(Span("loader", -loader, 0.0))
    stages.append(Span("kernel", 0.0, initrd or userspace))
    if initrd is not None:
        stages.append(Span("initrd", initrd, userspace))
    if userspace is not None:
        stages.append(Span("userspace", userspace, _us(manager, "FinishTimestampMonotonic")))
    return tuple(stages)


def _units(blocks: Sequence[dict[str, str]]) -> tuple[Span, ...]:
    spans = []
    for block in blocks:
        began = _us(block, "InactiveExitTimestampMonotonic")
        active = _us(block, "ActiveEnterTimestampMonotonic")
        if began is not None and "Id" in block:
            spans.append(Span(block["Id"], began, active if active is not None and active >= began else None))
    return tuple(sorted(spans, key=lambda span: (span.began_ms, span.name)))


def _cloud_init(lines: Sequence[str], *, boot_s: float) -> tuple[Span, ...]:
    """Pairs of start and finish; of the same name the last one open is finished first.

    Of a stage itself the log may have the finish alone (seen of Debian's cloud-init 22.4): it began no later
    than the first thing within it.
    """
    open_: dict[str, list[int]] = {}
    spans: list[Span] = []
    for line in lines:
        if (event := _EVENT.match(line)) is None:
            continue
        at = datetime.strptime(event["at"], "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC)
        ms = round((at.timestamp() - boot_s) * 1000, 1)
        name = event["name"]
        if event["kind"] == "start":
            open_.setdefault(name, []).append(len(spans))
            spans.append(Span(name, ms, None))
        elif open_.get(name):
            number = open_[name].pop()
            spans[number] = Span(name, spans[number].began_ms, ms, event["result"] or "")
        elif within := [span.began_ms for span in spans if span.name.startswith(f"{name}/")]:
            spans.append(Span(name, min(within), ms, event["result"] or ""))
    return tuple(spans)

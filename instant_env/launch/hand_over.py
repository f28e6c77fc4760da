"""The words between whoever hands a machine out and its ``instant-init hand-over``: one line each way.

init/internal/handover reads the request and writes the answer; the cases that tests/unit/launch/
test_hand_over.py writes are read by its tests, so the two agree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from instant_env.errors import InstantEnvError, UsageError
from instant_env.public_key import PublicKey, is_plain
from instant_env.user_data import format_time

VERSION = 1
#: The init's limits (init/internal/handover): of a line, and of a lease's name.
MAX_BYTES = 16 * 1024
MAX_LEASE = 128


class Code(StrEnum):
    """Why a machine says no. After the first four nothing has changed on it; after the others somebody's key
    may be on it."""

    HANDED_OUT = "handed-out"
    """It was handed out before, to the lease that the answer names."""
    REQUEST = "request"
    """The line is not a request: not JSON, another version, a field that is missing or breaks its rule."""
    KEY = "key"
    """The public key is not one that the init takes."""
    MARK = "mark"
    """The mark cannot be written: the disk is full, or read-only."""
    KEYS = "keys"
    """The mark is set, and authorized_keys could not be replaced."""
    SESSIONS = "sessions"
    """Mark and key are set, and a session of somebody else could not be ended."""


#: Nothing was changed on a machine that answers one of these.
_UNCHANGED = frozenset({Code.HANDED_OUT, Code.REQUEST, Code.KEY, Code.MARK})


class HandOverError(InstantEnvError):
    """A machine was not handed out."""


class ParkBroken(HandOverError):
    """The parked connection is gone, and nothing was written to it: the machine is as it was, or dead."""


class Refused(HandOverError):
    """The machine said no, and nothing has changed on it."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class AlreadyHandedOut(Refused):
    """By its own mark the machine is somebody's: it is not to be given to anybody, nor ended for this."""

    def __init__(self, lease: str) -> None:
        owner = f"lease {lease}" if lease else "a lease that its mark does not name"
        super().__init__(Code.HANDED_OUT, f"the machine was handed out before, to {owner}")
        self.lease = lease


class Contaminated(HandOverError):
    """The request was written, and the machine did not say that all went well: a key may be on it. It goes to
    nobody else, and is to be ended."""


@dataclass(frozen=True)
class HandOverRequest:
    """To whom, until when. ``expires_at`` is aware and written in whole seconds; ``replaces`` is the value of
    the tag instant-env:expires-at that the machine has until now, empty without one. Raises UsageError."""

    lease: str
    public_key: PublicKey
    expires_at: datetime
    replaces: str = ""

    def __post_init__(self) -> None:
        if not self.lease or len(self.lease) > MAX_LEASE or not is_plain(self.lease):
            raise UsageError(
                f"the name of a lease has 1 to {MAX_LEASE} characters, and no control characters",
                hint="use its id",
            )
        if self.expires_at.tzinfo is None:
            raise UsageError("expires_at is a time with a zone", hint="for example: datetime.now(UTC)")
        if (size := len(self.as_line())) > MAX_BYTES:
            raise UsageError(
                f"a hand-over has at most {MAX_BYTES} bytes, this one {size}", hint="use a shorter key"
            )

    def as_line(self) -> str:
        """ASCII, on one line, with its newline. The key goes without its comment."""
        fields = {
            "version": VERSION,
            "lease": self.lease,
            "public_key": self.public_key.bare,
            "expires_at": format_time(self.expires_at),
            "replaces": self.replaces,
        }
        return json.dumps(fields) + "\n"


@dataclass(frozen=True)
class HandOverAnswer:
    """The machine is the lessee's. ``ended_sessions``: how many processes of other sessions were ended."""

    ended_sessions: int = 0


def read_ready(line: str) -> None:
    """Check the line that a parked command says first. Raises AlreadyHandedOut, Refused or ParkBroken."""
    fields = _object(line)
    if fields.get("ready") is not True:
        raise _refusal(fields) or ParkBroken(f"the machine says {line[:200]!r} instead of being ready")


def read_answer(line: str) -> HandOverAnswer:
    """The answer to a request. Raises AlreadyHandedOut, Refused or Contaminated."""
    fields = _object(line)
    if fields.get("ok") is True:
        ended = fields.get("ended_sessions")
        return HandOverAnswer(ended if type(ended) is int else 0)
    raise _refusal(fields) or Contaminated(f"the machine answers {line[:200]!r} to a hand-over")


def _refusal(fields: dict[str, Any]) -> HandOverError | None:
    """The error that an answer is; None for what no init says."""
    try:
        code = Code(fields.get("code", ""))
    except ValueError:
        return None
    detail = str(fields.get("detail", ""))[:300]
    if code is Code.HANDED_OUT:
        return AlreadyHandedOut(str(fields.get("lease", ""))[:MAX_LEASE])
    if code in _UNCHANGED:
        return Refused(code, f"the machine refuses the hand-over ({code}): {detail}")
    return Contaminated(f"the hand-over failed half-way ({code}): {detail}")


def _object(line: str) -> dict[str, Any]:
    try:
        loaded = json.loads(line)
    except Exception:  # noqa: BLE001 - JSON can be nested too deeply, a number too long, and so on
        return {}
    return loaded if isinstance(loaded, dict) else {}

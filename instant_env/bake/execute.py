"""Run a plan's steps on a machine over Fabric: each timed, logged, and its failure explained.

Scripts and helpers live in ``/run/instant-bake``, a tmpfs of our own: nothing of the bake touches the disk
except what the recipe puts there.
"""

from __future__ import annotations

import io
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import fabric
import paramiko
from invoke.exceptions import CommandTimedOut, ThreadException
from invoke.runners import Result

from instant_env.bake.plan import File, Script, Step, Upload
from instant_env.errors import InstantEnvError
from instant_env.progress import Doing, Progress

WORK_DIR = "/run/instant-bake"
#: A larger upload goes by the disk, whose free space the seal overwrites.
_MOST_IN_MEMORY = 96 * 2**20
_STAGED_ON_DISK = "/var/tmp/instant-bake.upload"  # noqa: S108 (on a machine that nobody else is on)
#: How a script begins a line that whoever bakes should read, and not only the log have.
NOTE = "note: "
#: Paramiko's, of a command that a signal ended, or that the connection did not outlive.
_NO_STATUS = -1


class StepError(InstantEnvError):
    """A step failed on the builder."""

    exit_code = 5


@dataclass(frozen=True)
class StepTime:
    """How long a step took, wall clock."""

    name: str
    seconds: float


class StepLog:
    """The bake's log file, each line behind the seconds since the log began; optionally everything goes to a
    second stream too, as it comes (``--verbose``)."""

    def __init__(self, path: Path, echo: TextIO | None = None) -> None:
        self.path = path
        self._echo = echo
        self._started = time.monotonic()
        self._at_line_start = True
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, text: str) -> int:
        stamp = f"{time.monotonic() - self._started:8.2f}  "
        for line in text.splitlines(keepends=True):
            self._file.write(stamp + line if self._at_line_start else line)
            self._at_line_start = line.endswith("\n")
        if self._echo is not None:
            self._echo.write(text)
        return len(text)

    def flush(self) -> None:
        self._file.flush()
        if self._echo is not None:
            self._echo.flush()

    def close(self) -> None:
        self._file.close()


@contextmanager
def step_log(path: Path, echo: TextIO | None) -> Iterator[StepLog]:
    log = StepLog(path, echo)
    try:
        yield log
    finally:
        log.close()


def _sudo(connection: fabric.Connection, arguments: Sequence[str], log: StepLog, timeout_s: int) -> Result:
    """Run one command as root. Its exit status is the caller's to look at."""
    command = ["sudo", "-n", *arguments]
    return run_command(connection, command, log, timeout_s=timeout_s, name=shlex.join(arguments))


def run_command(
    connection: fabric.Connection, arguments: Sequence[str], log: StepLog, *, timeout_s: int, name: str = ""
) -> Result:
    """Run one command as the login user. It is an argument list until the last moment; each word is quoted.

    Errors call it ``name``. Raises StepError when it takes longer or the connection breaks, not if it fails.
    """
    name = name or shlex.join(arguments)
    try:
        result: Result = connection.run(
            shlex.join(arguments),
            hide=True,
            out_stream=log,
            err_stream=log,
            timeout=timeout_s,
            warn=True,
        )
    except CommandTimedOut as error:
        raise StepError(f"{name} ran longer than {timeout_s} s", hint=f"see {log.path}") from error
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise StepError(f"the connection to the machine broke: {error}", hint=f"see {log.path}") from error
    except Exception as error:
        # Invoke reads the output in threads, whose errors come in one of its own: a log on a full disk, a
        # terminal that has gone. And whatever a peer's bytes make of Paramiko.
        raise StepError(f"{name} was given up: {_cause(error)}", hint=f"see {log.path}") from error
    # Not whether it is still connected: Paramiko ends the command before it calls its transport inactive.
    if result.exited == _NO_STATUS and (cause := connection.transport.get_exception()) is not None:
        raise StepError(
            f"the connection to the machine broke during {name}", hint=f"see {log.path}"
        ) from cause
    return result


def _cause(error: Exception) -> str:
    """What happened, in words: of Invoke's error for its threads, the first of theirs."""
    if isinstance(error, ThreadException) and error.exceptions:
        return str(error.exceptions[0].value) or error.exceptions[0].type.__name__
    return str(error) or type(error).__name__


def run_as_root(
    connection: fabric.Connection, arguments: Sequence[str], log: StepLog, *, timeout_s: int = 60
) -> str:
    """Run a command as root and return its standard output. Raises StepError when it fails."""
    result = _sudo(connection, arguments, log, timeout_s)
    if not result.ok:
        last = " / ".join((result.stderr or result.stdout).strip().splitlines()[-3:])
        raise StepError(f"{shlex.join(arguments)} ended with {result.exited}: {last}", hint=f"see {log.path}")
    return str(result.stdout)


def make_work_dir(connection: fabric.Connection, log: StepLog) -> None:
    """A private tmpfs at WORK_DIR. /run itself may be mounted noexec."""
    run_as_root(connection, ["mkdir", "-p", WORK_DIR], log)
    run_as_root(connection, ["mount", "-t", "tmpfs", "-o", "mode=0700,size=128m", "tmpfs", WORK_DIR], log)
    run_as_root(connection, ["chown", str(connection.user), WORK_DIR], log)


def put_bytes(connection: fabric.Connection, content: bytes, to: str) -> None:
    """Put a file into WORK_DIR as the login user."""
    try:
        connection.put(io.BytesIO(content), to)
    except Exception as error:  # whatever a peer's bytes make of Paramiko
        raise StepError(f"uploading {to} failed: {_cause(error)}") from error


def _run_script(
    connection: fabric.Connection, script: Script, index: int, log: StepLog, variables: Mapping[str, str]
) -> list[str]:
    """Run it; return the lines that it means for people: those that begin with NOTE."""
    path = f"{WORK_DIR}/{index:02d}-{script.name}.sh"
    put_bytes(connection, script.text.encode(), path)
    # By env(1): sudo drops what it does not know (sudoers(5), env_reset).
    environment = [f"{name}={value}" for name, value in variables.items()]
    command = [*(["env", *environment] if environment else []), "sh", path]
    result = _sudo(connection, command, log, script.timeout_s)
    if not result.ok:
        last = " / ".join((result.stderr or result.stdout).strip().splitlines()[-3:])
        raise StepError(
            f"step {script.name} ended with {result.exited}: {last}",
            hint=f"the whole output is in {log.path}",
        )
    return [line for line in result.stdout.splitlines() if line.startswith(NOTE)]


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise StepError(f"cannot read {source}: {error.strerror or error}") from error


def _upload(connection: fabric.Connection, upload: Upload | File, log: StepLog) -> None:
    content = upload.content if isinstance(upload, File) else _read(upload.source)
    staged = f"{WORK_DIR}/.upload" if len(content) <= _MOST_IN_MEMORY else _STAGED_ON_DISK
    put_bytes(connection, content, staged)
    run_as_root(
        connection, ["install", "-o", "root", "-g", "root", "-m", upload.mode, staged, upload.to], log
    )
    run_as_root(connection, ["rm", "-f", staged], log)


def run_steps(
    connection: fabric.Connection,
    steps: Sequence[Step],
    log: StepLog,
    progress: Progress,
    variables: Mapping[str, str] | None = None,
) -> list[StepTime]:
    """Run the steps in order; stop at the first failure (StepError). Scripts get ``variables`` in their
    environment."""
    times: list[StepTime] = []
    for index, step in enumerate(steps, start=1):
        log.write(f"--- {index:02d} {step.name}\n")
        progress(Doing(f"step {index}/{len(steps)} {step.name}"))
        started = time.monotonic()
        if isinstance(step, Script):
            for line in _run_script(connection, step, index, log, variables or {}):
                progress(line)
        else:
            _upload(connection, step, log)
        seconds = time.monotonic() - started
        log.flush()
        times.append(StepTime(step.name, round(seconds, 3)))
        progress(f"step {index}/{len(steps)} {step.name}: {seconds:.1f} s")
    return times


def start_detached(connection: fabric.Connection, script: str, name: str, log: StepLog) -> None:
    """Start a script as a transient systemd unit and leave it: it outlives the connection."""
    path = f"{WORK_DIR}/{name}.sh"
    put_bytes(connection, script.encode(), path)
    log.write(f"--- {name} (detached)\n")
    run_as_root(
        connection, ["systemd-run", "--quiet", "--collect", f"--unit=instant-bake-{name}", "sh", path], log
    )

"""Ask a booted machine what its recipe's checks want: each is tried until it passes or its time is up.

Services come up after a login is possible, so a failure counts only when the time is over.
"""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paramiko

from instant_env.bake.builder import Machine
from instant_env.bake.execute import StepError, StepLog, run_command
from instant_env.bake.proof.checks import Check, Http
from instant_env.bake.proof.verdict import CheckTime, VerifyError
from instant_env.cloud.session import Cloud
from instant_env.progress import Doing, Progress

#: Between two attempts, doubled up to the most.
_PAUSE_S, _MOST_PAUSE_S = 0.5, 5.0
#: Of one GET: whoever accepts and does not answer is asked again. A command has at least as long: what begins
#: just before the end is not cut off, and the error says what the service does, not what the clock did.
_ATTEMPT_S = 10.0
#: Of a body so much is read, searched and logged.
_MOST_BODY = 64 * 1024
#: Of a failure's output so many last lines and characters are in the error; the log has all of it.
_LAST_LINES, _LAST_CHARACTERS = 3, 500


@dataclass(frozen=True)
class _Answer:
    """Of one attempt. ``failure`` is empty where it passed; ``is_last``: there is no use in another one."""

    failure: str
    output: str = ""
    is_last: bool = False

    @property
    def end(self) -> str:
        lines = " / ".join(self.output.strip().splitlines()[-_LAST_LINES:])[-_LAST_CHARACTERS:]
        return f"{self.failure}; its last output: {lines or 'none'}"


class _OpenChannel:
    """A channel as http.client wants a socket. A socket that is closed while a file of it is read stays open,
    and http.client relies on it where the server closes after its answer; a channel would drop the rest."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self.makefile, self.sendall = channel.makefile, channel.sendall

    def close(self) -> None:
        pass


class _OverSsh(http.client.HTTPConnection):
    """To a port of the machine's own loopback, through its SSH server: no tool on the machine is needed."""

    def __init__(self, transport: paramiko.Transport, port: int, timeout_s: float) -> None:
        super().__init__("127.0.0.1", port, timeout=timeout_s)
        self._transport, self._timeout_s = transport, timeout_s
        self._channel: paramiko.Channel | None = None

    def connect(self) -> None:
        self._channel = self._transport.open_channel(
            "direct-tcpip", (self.host, self.port), ("127.0.0.1", 0), timeout=self._timeout_s
        )
        self._channel.settimeout(self._timeout_s)
        self.sock: Any = _OpenChannel(self._channel)

    def hang_up(self) -> None:
        """Close the channel, once the answer has been read."""
        if self._channel is not None:
            self._channel.close()


def run_checks(
    cloud: Cloud, machine: Machine, recipe: str, checks: Sequence[Check], log: StepLog, progress: Progress
) -> list[CheckTime]:
    """Run them in order; stop at the first that fails for good. Raises VerifyError."""
    times: list[CheckTime] = []
    for check in checks:
        log.write(f"--- check {check.name}: {check.described}\n")
        progress(Doing(f"check {check.name}: {check.described}"))
        times.append(_run(cloud, machine, recipe, check, log))
        log.flush()
        attempts = f" (attempt {times[-1].attempts})" if times[-1].attempts > 1 else ""
        progress(f"check {check.name}: {times[-1].seconds:.1f} s{attempts}")
    return times


def _run(cloud: Cloud, machine: Machine, recipe: str, check: Check, log: StepLog) -> CheckTime:
    started, attempts, pause_s = time.monotonic(), 0, _PAUSE_S
    while True:
        attempts += 1
        left_s = max(check.timeout_s - (time.monotonic() - started), _ATTEMPT_S)
        answer = _attempt(cloud, machine, check, left_s, log)
        seconds = time.monotonic() - started
        if not answer.failure:
            return CheckTime(check.name, round(seconds, 3), attempts)
        log.write(f"check {check.name}, attempt {attempts}: {answer.failure}\n")
        if answer.is_last or seconds + pause_s >= check.timeout_s:
            raise VerifyError(
                f"check {check.name} of recipe {recipe} failed for {seconds:.0f} s, {attempts} "
                f"attempt{'s' * (attempts != 1)}: {check.described}: {answer.end}",
                hint=f"all output: {log.path}; --on-error keep leaves the machine for a look",
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _MOST_PAUSE_S)


def _attempt(cloud: Cloud, machine: Machine, check: Check, left_s: float, log: StepLog) -> _Answer:
    if check.http is not None:
        return _get(cloud, machine, check.http, check.expect, _ATTEMPT_S, log)
    # After the profile, which may well have commands that fail.
    text = f"set -e\n{check.command}"
    words = ["sudo", "-n", "sh", "-c", text] if check.user == "root" else ["sh", "-lc", text]
    try:
        result = run_command(machine.connection, words, log, timeout_s=int(left_s) + 1)
    except StepError as error:  # the time is up, or the connection is gone
        return _Answer(error.message, is_last=True)
    output = str(result.stdout) + str(result.stderr)
    if not result.ok:
        return _Answer(f"it ended with {result.exited}", output)
    return _Answer(_missing(check.expect, output), output)


def _missing(expect: str, text: str) -> str:
    if expect and re.search(expect, text, re.MULTILINE) is None:
        return f"nothing in it matches {expect}"
    return ""


def _get(cloud: Cloud, machine: Machine, wish: Http, expect: str, timeout_s: float, log: StepLog) -> _Answer:
    transport = machine.connection.transport
    if wish.origin == "machine":
        connection: http.client.HTTPConnection = _OverSsh(transport, wish.port, timeout_s)
    else:
        port = cloud.port_of(wish.port)
        connection = http.client.HTTPConnection(machine.address, port, timeout=timeout_s)
    try:
        connection.request("GET", wish.path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read(_MOST_BODY).decode("utf-8", "replace")
    except (OSError, EOFError, http.client.HTTPException, paramiko.SSHException) as error:
        reason = f"no answer from {connection.host}:{connection.port}: {error or type(error).__name__}"
        return _Answer(reason, is_last=transport is None or not transport.is_active())
    finally:
        connection.close()
        if isinstance(connection, _OverSsh):
            connection.hang_up()
    log.write(
        f"GET {wish.path} from {connection.host}:{connection.port}: {response.status}\n{body.rstrip()}\n"
    )
    if response.status != wish.status:
        return _Answer(f"it answered {response.status} {response.reason}", body)
    return _Answer(_missing(expect, body), body)

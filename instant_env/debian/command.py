"""Run the programs of a build: argument lists, one log, and nothing left running.

Each command is the leader of a session of its own, so that Ctrl-C reaches this process first and the whole
group (apt, dpkg, maintainer scripts) is ended before the exception goes on.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from instant_env import stopping
from instant_env.errors import InstantEnvError, MissingToolError

#: How many of a failed command's last lines go into the message; the rest is in the log.
_TAIL = 4
#: Seconds between asking a process group to end and ending it: mmdebstrap removes its chroot meanwhile.
_GRACE_S = 20.0


class BuildError(InstantEnvError):
    """An image or a part of one could not be built or fetched."""


def require(tools: Mapping[str, str]) -> None:
    """Raise MissingToolError unless every program (key) is there; the value is its Debian package.

    mkfs and sfdisk live in sbin, which an ordinary user's PATH may lack: see :func:`search_path`.
    """
    missing = [name for name in tools if shutil.which(name, path=search_path()) is None]
    if missing:
        packages = " ".join(sorted({tools[name] for name in missing}))
        raise MissingToolError(
            f"not installed: {', '.join(sorted(missing))}", hint=f"run: apt-get install {packages}"
        )


def search_path() -> str:
    """PATH with the system directories that Debian leaves out for ordinary users."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class Runner:
    """Runs commands one after another and keeps all they say in ``log``."""

    def __init__(self, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        self.environment = {**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8", **(environment or {})}
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")

    def run(
        self,
        command: Sequence[str | Path],
        *,
        stdin: str = "",
        on_line: Callable[[str], None] | None = None,
        directory: Path | None = None,
        prefix: Sequence[str | Path] = (),
    ) -> None:
        """Run ``command`` to its end. Raises BuildError with its last lines when it fails.

        ``stdin`` must be small (it is written before the output is read). ``on_line`` sees each line of the
        output, stdout and stderr mixed. ``directory`` is where it runs, by default where we do. ``prefix`` is
        what runs it, such as unshare with its options; an error names the command all the same. On any
        exception, Ctrl-C included, the process group is ended.
        """
        arguments = [str(part) for part in (*prefix, *command)]
        tail: deque[str] = deque(maxlen=_TAIL)
        started = time.monotonic()
        with self.log.open("a", encoding="utf-8") as log:
            print(f"$ {shlex.join(arguments)}", file=log, flush=True)
            process = None
            try:
                with stopping.signals_deferred():
                    process = subprocess.Popen(
                        arguments,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                        text=True, errors="replace", env=self.environment, start_new_session=True,
                        cwd=directory,
                    )  # fmt: skip
                assert process.stdin is not None  # noqa: S101 (PIPE was asked for)
                assert process.stdout is not None  # noqa: S101
                try:
                    process.stdin.write(stdin)
                    process.stdin.close()
                except BrokenPipeError:
                    pass  # It ended without reading; its exit code says why.
                for line in process.stdout:
                    log.write(line)
                    if line.strip():
                        tail.append(line.strip())
                    if on_line is not None:
                        on_line(line.rstrip("\n"))
                code = process.wait()
            except BaseException:
                if process is not None:
                    end_group(process)
                raise
            print(f"# exit {code} after {time.monotonic() - started:.1f} s", file=log)
        if code != 0:
            raise BuildError(
                f"{Path(command[0]).name} failed ({code}): {' / '.join(tail) or 'it said nothing'}",
                hint=f"all of its output is in {self.log}",
            )


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and everything it started: SIGTERM, then SIGKILL for what does not go."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=_GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
    process.wait()

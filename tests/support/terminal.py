"""A program on a terminal: what a person at a keyboard would see of it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from types import TracebackType

#: A machine under emulation may be busy with something else.
TIMEOUT_S = 60.0


class Terminal:
    """A pseudo-terminal that is its program's controlling one, so that Ctrl-C and a new size are felt."""

    def __init__(self, command: list[str], *, rows: int, columns: int) -> None:
        self.seen = ""  # everything so far
        self._at = 0  # what was expected before this has come
        self._status: int | None = None
        pid, self._fd = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "xterm"
            os.execvp(command[0], command)  # noqa: S606 - a list
        self._pid = pid
        self.resize(rows, columns)

    def resize(self, rows: int, columns: int) -> None:
        """As when a window is drawn larger; the kernel tells the program."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text: str) -> None:
        """Type it."""
        os.write(self._fd, text.encode())

    def expect(self, pattern: str, timeout_s: float = TIMEOUT_S) -> re.Match[str]:
        """Wait for the pattern behind what was expected last. Fails with everything that was seen."""
        deadline = time.monotonic() + timeout_s
        while (match := re.compile(pattern).search(self.seen, self._at)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} does not come: {self.seen!r}"
            assert self._read(deadline), f"it ended before {pattern!r}: {self.seen!r}"
        self._at = match.end()
        return match

    def _read(self, deadline: float) -> bool:
        """Read what there is; False at the end."""
        ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return True
        try:
            data = os.read(self._fd, 4096)
        except OSError:  # EIO: the program has closed the terminal
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """The program's exit status."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            assert time.monotonic() < deadline, f"it does not end: {self.seen!r}"
        _, status = os.waitpid(self._pid, 0)
        self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._fd)

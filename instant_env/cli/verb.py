"""What every verb shares: results on stdout, progress and errors on stderr, interrupts that clean up."""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from invoke.exceptions import Exit
from rich.console import Console
from rich.status import Status
from rich.text import Text

from instant_env import stopping
from instant_env.errors import described
from instant_env.foreign import visible
from instant_env.progress import AGAIN_S, FIRST_S, Doing, Heartbeat

P = ParamSpec("P")
R = TypeVar("R")


def _discard_output() -> None:
    """Point stdout at /dev/null: its reader has left (`invoke amis | head`), which is not an error.

    The verb runs on to its own exit code. Buffered text goes to /dev/null too: Python would exit with 120 if
    its last flush failed (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


@contextmanager
def writing_to_stdout() -> Iterator[None]:
    """Around what writes to stdout by other means than `say`, and does nothing else."""
    _rest()
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()


class _Plain(Console):
    """A console to which a text is only a text: no brackets of it are markup, and no terminal obeys it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


class _Results(_Plain):
    """When the reader of stdout is gone, Rich exits with 1; here the verb's own exit code counts."""

    def on_broken_pipe(self) -> None:
        _discard_output()


_stderr = _Plain(stderr=True)
#: Off a terminal nobody's columns are 80: an id that is cut short is no id.
_stdout = _Results(width=None if sys.stdout.isatty() else 200)


#: A spinner is shown after a silence of so many seconds.
_SPINNER_S = 1.0


class _Wait:
    """What a spinner has beside it: the last line, and for how long that has been so."""

    def __init__(self, line: str) -> None:
        self._line = line
        self._since = time.monotonic()

    def __rich__(self) -> Text:
        before = "" if isinstance(self._line, Doing) else "after: "
        seconds = time.monotonic() - self._since
        return Text(f"{before}{visible(as_called(self._line[:60]))} · {seconds:.0f} s", "dim")


class Reporter:
    """Progress for people: a line per event with the seconds since the start. A long wait shows that it is
    one: on a terminal by a spinner under the lines, elsewhere by a line about what goes on."""

    def __init__(self, *, first_s: float = FIRST_S, again_s: float = AGAIN_S) -> None:
        self._started = time.monotonic()
        self._again_s = again_s
        spinner_s = _SPINNER_S if self.on_terminal else again_s
        self._heartbeat = Heartbeat(self._on_silence, first_s=min(first_s, spinner_s), again_s=spinner_s)
        self._spinning = threading.RLock()
        self._status: Status | None = None  # the spinner, while it is shown
        self._beside: Any = None  # what is beside the spinner
        self._is_live = False
        self._has_figure = False  # what is beside it is not the last line

    def __call__(self, text: str) -> None:
        if not isinstance(text, Doing):
            self._print(text)
        if not self._has_figure:
            self._put(_Wait(text))
        if self._is_live:
            self._heartbeat.line(text)

    def _print(self, text: str) -> None:
        elapsed_s = time.monotonic() - self._started
        # One call: what is shown live comes between two.
        _stderr.print(Text.assemble((f"{elapsed_s:7.1f} s", "dim"), "  ", visible(as_called(text))))

    def _on_silence(self, line: str, seconds: float) -> None:
        if self.on_terminal:
            self._spin()
        elif not isinstance(line, Doing):
            self._print(f"{seconds:.0f} s since: {line}")
        elif seconds < self._again_s:
            self._print(line)
        else:
            self._print(f"{line}: {seconds:.0f} s so far")

    @property
    def on_terminal(self) -> bool:
        """Whether people watch it; elsewhere it is lines in a file."""
        return _stderr.is_terminal

    def show(self, renderable: Any) -> None:
        """Show this beside the spinner from now on, in place of the last line; nothing off a terminal."""
        self._has_figure = True
        self._put(renderable)
        if self._is_live and self.on_terminal:
            self._spin()

    def _put(self, beside: Any) -> None:
        self._beside = beside
        if self._status is not None:
            self._status.update(beside)

    def _spin(self) -> None:
        with self._spinning:
            if self._status is None:
                self._status = _stderr.status(self._beside)
                self._status.start()

    def rest(self) -> None:
        """Show nothing until the next line: results are written, or a person is asked."""
        self._heartbeat.rest()
        with self._spinning:
            if self._status is not None:
                self._status.stop()
            self._status = None

    def end_waiting(self) -> None:
        """Show lines only from now on: what runs until it is stopped keeps nobody waiting."""
        self.rest()
        self._is_live = False

    @contextmanager
    def live(self, text: str = "working") -> Iterator[Reporter]:
        """Show long waits while the block runs; ``text`` says what it does until something else does."""
        self._is_live = True
        with self._heartbeat:
            self(Doing(text))
            try:
                yield self
            finally:
                self.rest()
                self._is_live = False


_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def reporter() -> Reporter:
    """The progress of the verb that runs."""
    return _reporter.get() or Reporter()


def _rest() -> None:
    if (running := _reporter.get()) is not None:
        running.rest()


@contextmanager
def _reporting(text: str) -> Iterator[None]:
    running = Reporter()
    token = _reporter.set(running)
    try:
        with running.live(text):
            yield
    finally:
        _reporter.reset(token)


#: How texts name commands, those of modules below this one too: as one calls them in a checkout.
_COMMAND = re.compile(
    r"\binvoke (?=(amis|bake|bench|build|clean|compare|doctor|facts|publish|recipes|report|serve|setup)\b"
    r"|teardown\b|(init|lease|local|recipe|store|token)\.[a-z])"
)


def as_called(text: str, program: str = "") -> str:
    """The text with commands as this program was called: ``instant-env clean`` for ``invoke clean``."""
    is_console_script = Path(program or sys.argv[0]).name == "instant-env"
    return _COMMAND.sub("instant-env ", text) if is_console_script else text


def fail(message: str, hint: str, exit_code: int) -> NoReturn:
    """Print one line on stderr and end the process."""
    text = " ".join(message.split()) + (f" ({' '.join(hint.split())})" if hint else "")
    _stderr.print(Text("error: ", "bold red"), end="")
    _stderr.print(as_called(text), markup=False)
    raise Exit(code=exit_code)


def _write_anything() -> None:
    """Let stdout and stderr take characters that their encoding does not have, written out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _purpose(function: Callable[..., object]) -> str:
    """What a verb is for, as `invoke --list` has it, up to the first stop: a wait's text until it has one."""
    return re.split(r"[;:,.]", inspect.getdoc(function) or "working")[0].replace("\n", " ")


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a task's body: errors become one line and an exit code, interrupts clean up first."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            _write_anything()
            with stopping.interrupts(), _reporting(_purpose(function)):
                return function(*args, **kwargs)
        except (ClientError, BotoCoreError) as error:
            fail(f"EC2: {error}", "", 4)
        except KeyboardInterrupt as error:
            code = stopping.exit_code(stopping.signal_number(error))
            fail("interrupted; what was begun has been cleaned up", "", code)
        except BrokenPipeError as error:
            # Not stdout's, which the functions below handle: a program or server of ours closed its end.
            fail(f"a connection was closed by its other end: {error}", "run it again", 1)
        except ResponseParserError as error:
            hint = "is something between this machine and the endpoint, such as a network's login page?"
            fail(f"EC2: what answered is no AWS: {error}", hint, 4)
        except Exception as error:
            if (known := described(error)) is None:
                raise  # a fault of ours
            fail(known.message, known.hint, known.exit_code)

    return wrapped


def say(text: str) -> None:
    """A result for people, on stdout."""
    _rest()
    _stdout.print(as_called(text), markup=False)


def show(renderable: Any) -> None:
    """A rich renderable on stdout: a table with colours on a terminal, plain text elsewhere."""
    _rest()
    _stdout.print(renderable)


def print_json(value: Any) -> None:
    """The result for programs: one JSON object, the last thing on stdout."""
    text = json.dumps(value, default=str, indent=2)
    with writing_to_stdout():
        print(text)

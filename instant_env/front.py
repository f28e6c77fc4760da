"""The front door's manners: progress on stderr, results on stdout, errors in one line, and interrupts
that clean up.

``tasks.py`` holds one thin task per verb; what they share is here.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from invoke.exceptions import Exit
from invoke.parser.argument import Argument
from invoke.tasks import Task
from rich.console import Console
from rich.status import Status
from rich.text import Text

from instant_env import stopping
from instant_env.errors import InstantEnvError

P = ParamSpec("P")
R = TypeVar("R")

#: What a shell reports for a process that SIGINT ended.
INTERRUPTED = 130


class _Results(Console):
    """Rich ends the process with 1 when who read its output has left. That is for `verb` to judge."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError


_stderr = Console(stderr=True, highlight=False, soft_wrap=True)
#: Off a terminal nobody's columns are 80: an id that is cut short is no id.
_stdout = _Results(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


class Reporter:
    """Progress for people: a line per event with the seconds since the start; on a terminal, also a
    spinner under them, so that a long wait shows that it is one."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._status: Status | None = None
        self._shown: Any = None

    def __call__(self, text: str) -> None:
        elapsed_s = time.monotonic() - self._started
        # One call: what is shown live comes between two.
        _stderr.print(Text.assemble((f"{elapsed_s:7.1f} s", "dim"), "  ", text))
        if self._status is not None and self._shown is None:
            self._status.update(f"[dim]after: {text[:60].replace('[', '(')}[/dim]")

    @property
    def on_terminal(self) -> bool:
        """Whether people watch it; elsewhere it is lines in a file."""
        return _stderr.is_terminal

    def show(self, renderable: Any) -> None:
        """Show this beside the spinner from now on, in place of the last event; nothing off a terminal."""
        self._shown = renderable
        if self._status is not None:
            self._status.update(renderable)

    @contextmanager
    def live(self) -> Iterator[Reporter]:
        """Show the spinner while the block runs, on a terminal only."""
        if not _stderr.is_terminal:
            yield self
            return
        with _stderr.status("[dim]working[/dim]") as status:
            self._status = status
            try:
                yield self
            finally:
                self._status = None


def fail(message: str, hint: str, exit_code: int) -> NoReturn:
    """Print one line on stderr and end the process."""
    text = " ".join(message.split())
    _stderr.print("[bold red]error:[/bold red] ", end="")
    _stderr.print(text + (f" ({' '.join(hint.split())})" if hint else ""), markup=False)
    raise Exit(code=exit_code)


@contextmanager
def interrupts(*, quiet: bool = False) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt once, so that every ``finally`` runs; more of them
    are answered with a word, since cutting a clean-up short is what leaves machines running. ``quiet`` is for
    processes that share a screen with the one that speaks."""
    seen = False

    def handle(signum: int, _: FrameType | None) -> None:
        nonlocal seen
        if seen and quiet:
            return
        if seen:
            print("still cleaning up; machines would stay behind otherwise", file=sys.stderr, flush=True)
            return
        seen = True
        stopping.leave_terminal(signum)
        if not quiet:
            print(f"\n{signal.Signals(signum).name}: cleaning up", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, handle) for number in stopping.signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a task's body: errors become one line and an exit code, interrupts clean up first."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with interrupts():
                return function(*args, **kwargs)
        except InstantEnvError as error:
            fail(error.message, error.hint, error.exit_code)
        except (ClientError, BotoCoreError) as error:
            fail(f"EC2: {error}", "", 4)
        except KeyboardInterrupt:
            fail("interrupted; what was begun has been cleaned up", "", INTERRUPTED)
        except BrokenPipeError:
            # `invoke amis | head`: the reader left, which is no failure. Nothing more can be printed.
            sys.stdout = None
            raise Exit(code=0) from None

    return wrapped


def say(text: str) -> None:
    """A result for people, on stdout."""
    _stdout.print(text, markup=False)


def show(renderable: Any) -> None:
    """A rich renderable on stdout: a table with colours on a terminal, plain text elsewhere."""
    _stdout.print(renderable)


def print_json(value: Any) -> None:
    """The result for programs: one JSON object, the last thing on stdout."""
    print(json.dumps(value, default=str, indent=2), flush=True)


class _Pair(Argument):
    """A flag with two values: ``--diff A B``. Invoke asks a flag for values until it has one."""

    def __init__(self, *names: str, help: str) -> None:
        super().__init__(names=names, kind=str, help=help)
        self._pair: list[str] = []

    @property
    def raw_value(self) -> str | None:
        return " ".join(self._pair) if len(self._pair) == 2 else None

    @raw_value.setter
    def raw_value(self, value: Any) -> None:
        pass  # Argument's own __init__ and set_value keep it; both values count here

    def set_value(self, value: Any, cast: bool = True) -> None:  # noqa: ARG002 - Invoke's signature
        self._pair.append(str(value))

    @property
    def value(self) -> Any:
        return tuple(self._pair) or None

    @value.setter
    def value(self, value: Any) -> None:
        self.set_value(value)


def takes_numbers(**kinds: type) -> type[Task[Any]]:
    """A kind of task whose parameters of these names are numbers, or None when they are not given: Invoke
    knows a parameter's type from its default alone."""

    class NumberTask(Task[Any]):
        def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
            arguments: list[Argument] = super().get_arguments(ignore_unknown_help)
            for argument in arguments:
                argument.kind = kinds.get(str(argument.attr_name or argument.name), argument.kind)
            return arguments

    return NumberTask


def takes_pair(flag: str, help: str) -> type[Task[Any]]:
    """A kind of task (``@task(klass=...)``) whose parameter ``flag`` is two values, a tuple, or None."""

    class PairTask(Task[Any]):
        def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
            return [
                _Pair(*argument.names, help=help) if argument.name == flag else argument
                for argument in super().get_arguments(ignore_unknown_help)
            ]

    return PairTask

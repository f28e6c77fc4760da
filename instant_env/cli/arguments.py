"""Tasks with chosen flags: Invoke gives every flag a letter, guesses types, and has no pairs of values."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, ClassVar

from invoke.parser.argument import Argument
from invoke.tasks import Task

#: One-letter flags, by flag: those that a person would guess. Invoke's own `-h` stays free for help.
LETTERS = {"yes": "y", "verbose": "v", "dry-run": "n"}


class _Operand(Argument):
    """A value without a flag. Invoke takes whatever comes for it, so it looks for ``--help`` itself."""

    def __init__(self, like: Argument, on_help: Callable[[], None]) -> None:
        super().__init__(
            names=like.names, kind=like.kind, default=like.default, help=like.help, positional=True,
            attr_name=like.attr_name,
        )  # fmt: skip
        self._on_help = on_help

    def set_value(self, value: Any, cast: bool = True) -> None:
        if value in ("-h", "--help"):
            self._on_help()
        super().set_value(value, cast)


class VerbTask(Task[Any]):
    """A task that has the one-letter flags of :data:`LETTERS` and no others, and shows its help."""

    #: Prints a verb's help and ends the program; :mod:`instant_env.cli.program` knows the verbs' full names.
    print_help: ClassVar[Callable[[Task[Any]], None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "auto_shortflags": False})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Until here Invoke printed, and a closed pipe was to end the process. A verb has things to clean up.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        return super().__call__(*args, **kwargs)

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        arguments: list[Argument] = super().get_arguments(ignore_unknown_help)
        for argument in arguments:
            letter = next((LETTERS[name] for name in argument.names if name in LETTERS), None)
            if letter:
                argument.names = (*argument.names, letter)
        return [
            _Operand(argument, lambda: VerbTask.print_help(self)) if argument.positional else argument
            for argument in arguments
        ]


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

    class NumberTask(VerbTask):
        def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
            arguments = super().get_arguments(ignore_unknown_help)
            for argument in arguments:
                argument.kind = kinds.get(str(argument.attr_name or argument.name), argument.kind)
            return arguments

    return NumberTask


def takes_pair(flag: str, help: str) -> type[Task[Any]]:
    """A kind of task (``@task(klass=...)``) whose parameter ``flag`` is two values, a tuple, or None."""

    class PairTask(VerbTask):
        def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
            return [
                _Pair(*argument.names, help=help) if argument.name == flag else argument
                for argument in super().get_arguments(ignore_unknown_help)
            ]

    return PairTask

"""What others wrote: one line for whatever a file, a text or a number does, and no text is obeyed."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.parsers import ResponseParserError
from invoke.exceptions import Exit
from rich.table import Table

from harness.plan import definition
from harness.plan.experiment import MOST_ATTEMPTS, Cell, Experiment
from instant_env import foreign, layers
from instant_env.arch import Arch
from instant_env.bake import recipe
from instant_env.cli import verb
from instant_env.cloud import janitor
from instant_env.errors import UsageError
from instant_env.settings import ROOT, Settings

DEEP = "a: " + "[" * 20_000
FILES = {
    "not UTF-8": b"description: \xf6\n",
    "nested": DEEP.encode(),
    "not YAML": b"a: [\n",
    "a date that is none": b"a: 2026-99-99\n",
    "a list": b"- a\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("reader", ["experiment", "recipe", "settings"])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, reader: str) -> None:
    path = tmp_path / "recipes" / "odd" / "recipe.yml"
    path.parent.mkdir(parents=True)
    path.write_bytes(FILES[name])

    read: dict[str, Callable[[], object]] = {
        "experiment": lambda: definition.load(path),
        "recipe": lambda: recipe.load_recipe(path.parent.parent, "odd"),
        "settings": lambda: layers.merge(Settings, flags={}, prefix="X_", environ={}, file=path),
    }
    with pytest.raises(UsageError) as error:
        read[reader]()
    assert str(path) in error.value.message
    assert "\n" not in error.value.message


def test_a_file_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="/dev/zero is larger than 16 MiB"):
        definition.load(Path("/dev/zero"))
    with pytest.raises(UsageError, match="cannot read"):
        foreign.read_text(tmp_path)
    with pytest.raises(UsageError, match="cannot read"):
        foreign.read_text(tmp_path / "a\0b")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "/x/y: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 1, "/x: Read-only file system"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "UTF-8"),
        (OverflowError("Python int too large"), 2, "too large"),
        (RecursionError(), 2, "RecursionError"),
        (ResponseParserError("invalid XML received: <html>"), 4, "login page"),
    ],
)
def test_whatever_happens_is_one_line(
    error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @verb.verb
    def failing() -> None:
        raise error

    with pytest.raises(Exit) as ended:
        failing()
    assert ended.value.code == code
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert words in line
    assert line.count("\n") == 1


BRACKETS = ("backup [/data]", "golden [x86_64] 2026", "[bold]x[/bold]", "a[/b]", "[link=http://x]y[/link]")


@pytest.mark.parametrize("text", BRACKETS)
def test_brackets_are_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", title=text, caption=text, box=None)
    table.add_row(text)
    verb.show(table)
    verb.say(text)
    reporter = verb.Reporter()
    reporter(text)
    with pytest.raises(Exit):
        verb.fail(text, text, 1)
    shown = capsys.readouterr()
    assert shown.out.count(text) == 4
    assert shown.err.count(text) == 3


def test_a_terminal_obeys_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b]0;owned\x07\x1b[2Jb\x9b31m\u202ec\r"
    table = Table("name", box=None)
    table.add_row(text)
    verb.show(table)
    verb.say(text)
    verb.Reporter()(text)
    with pytest.raises(Exit):
        verb.fail(text, "", 1)
    shown = capsys.readouterr()
    for output in (shown.out, shown.err):
        assert "\\x1b]0;owned\\x07" in output
        assert not set(output) & set("\x1b\x07\x9b\u202e\r")


def test_output_that_is_not_utf8_has_every_character(tmp_path: Path) -> None:
    script = "from instant_env.cli.verb import say, verb\nverb(lambda: say('gr\u00f6\u00dfe \u2192 x'))()"
    for encoding in ("ascii", "latin-1"):
        result = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding, "HOME": str(tmp_path)},
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, b"")
        assert b"\\u2192 x" in result.stdout


def test_numbers_have_bounds() -> None:
    cells = tuple(Cell(f"t{number}", Arch.X86_64, "t3.micro") for number in range(19_136))
    with pytest.raises(UsageError, match=f"at most {MOST_ATTEMPTS}"):
        Experiment(cells, iterations=3000, seed=1, timeout_s=60)
    assert Experiment(cells, iterations=1, seed=1, timeout_s=60).total == 19_136  # and that soon
    for iterations, timeout_s in ((10**20, 60.0), (1, 1e300), (1, float("inf"))):
        with pytest.raises(UsageError, match="at most"):
            Experiment(cells[:1], iterations=iterations, seed=1, timeout_s=timeout_s)
    with pytest.raises(UsageError, match="--min-age-h must be at most"):
        janitor.policy(keep=1, min_age_h=99_999_999_999, what="", everything=False)


def test_a_stream_is_made_to_take_anything() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream.reconfigure(errors="backslashreplace")
    stream.write(foreign.visible("\u2192\x1b"))
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u2192\\x1b"

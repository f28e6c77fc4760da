"""What others wrote, and may be anything: files that people hand in, texts that reach a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from instant_env.errors import UsageError

#: Larger than any file that people write, and soon read: /dev/zero has no end.
MOST_BYTES = 16 << 20

#: What a terminal obeys: control characters but the line feed and the tab, turns of the direction of writing.
_OBEYED = [
    *(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
]
_VISIBLE = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _OBEYED}


def visible(text: str) -> str:
    """The text with what a terminal would obey written out."""
    return text.translate(_VISIBLE)


def read_text(path: Path, *, hint: str = "") -> str:
    """A text file. Raises UsageError, which names it, when it cannot be read, is no UTF-8, or has no end."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{path} is larger than {MOST_BYTES >> 20} MiB", hint=hint)
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#x}"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}", hint=hint
        ) from error


def read_yaml(path: Path, *, hint: str = "") -> Any:
    """A YAML file. Raises UsageError, which names it."""
    text = read_text(path, hint=hint)
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply", hint=hint) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise UsageError(f"{path} is not YAML: {error}".replace("\n", " "), hint=hint) from error

"""Patterns of EC2's filters and IAM's policies: ``*`` stands for any characters, ``?`` for one."""

from __future__ import annotations

import functools
import re


@functools.lru_cache(maxsize=4096)
def compiled(pattern: str, *, escapes: bool = False, ignore_case: bool = False) -> re.Pattern[str]:
    r"""The pattern as a regular expression for ``fullmatch``; brackets mean nothing.

    With ``escapes``, a backslash takes the next character's meaning away, as in EC2's filters. Each run of
    ordinary characters is matched where it first occurs and never again (an atomic group), so the time is at
    most the product of both lengths, whatever a stranger sends.
    """
    parts = re.findall(r"\\.|." if escapes else r".", pattern, re.DOTALL)
    chunks: list[str] = [""]  # between the stars
    for part in parts:
        if part == "*":
            chunks.append("")
        else:
            chunks[-1] += "." if part == "?" else re.escape(part[-1])
    first, *rest = chunks
    if not rest:
        text = first
    else:
        middle = "".join(f"(?>.*?{chunk})" for chunk in rest[:-1] if chunk)
        text = f"{first}{middle}.*{rest[-1]}"
    return re.compile(text, re.DOTALL | (re.IGNORECASE if ignore_case else 0))

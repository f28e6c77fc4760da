"""What a stock machine is asked, as one script that only reads: recipes/facts.yml, for base and recipe."""

from __future__ import annotations

import shlex
from typing import Any

import jinja2

from instant_env.bake.recipe import Base, ResolvedRecipe, environment
from instant_env.errors import UsageError
from instant_env.foreign import read_yaml
from instant_env.settings import ROOT

FILE = ROOT / "recipes" / "facts.yml"
#: Begins the line before an answer. No command prints such a line.
_MARK = "@@ instant-env facts: "
#: More than the longest answer, scriptlets of 40 packages, takes; a runaway one is cut.
_ANSWER_BYTES = 400_000


def questions(base: Base, recipe: ResolvedRecipe) -> dict[str, str]:
    """Shell commands by name. ``recipe`` is the one whose removals are tried, without being done."""
    content: dict[str, Any] = read_yaml(FILE)
    values = {
        "base": base,
        "remove": shlex.join(sorted(recipe.remove)) or "nothing-to-remove",
        "options": content["kernel_options"],
    }
    try:
        return {
            name: environment().from_string(command).render(values)
            for name, command in (content["all"] | content[base.family]).items()
        }
    except jinja2.TemplateError as error:
        raise UsageError(f"{FILE}: {error.message}") from error


def script(commands: dict[str, str]) -> str:
    """One script that answers all of them. A command that fails, or is not there, is an answer, too."""
    lines = ["#!/bin/sh", "export LC_ALL=C SYSTEMD_COLORS=0 SYSTEMD_PAGER=cat", "PATH=$PATH:/usr/sbin:/sbin"]
    for name, command in commands.items():
        lines.append(f"printf '\\n%s\\n' {shlex.quote(_MARK + name)}")
        lines.append(f"( {command}\n) </dev/null 2>&1 | head -c {_ANSWER_BYTES}")
    return "\n".join(lines) + "\n"


def answers(output: str) -> dict[str, str]:
    """The answers by name, of what the script printed."""
    texts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in output.splitlines():
        if line.startswith(_MARK):
            lines = texts.setdefault(line.removeprefix(_MARK), [])
        else:
            lines.append(line)
    return {name: "\n".join(lines).strip("\n") for name, lines in texts.items()}

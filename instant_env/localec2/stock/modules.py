"""Kernel modules: pick some with what they need, and index them as depmod does.

Everything is read from the modules themselves (the strings of their section .modinfo), so nothing of the
kernel's architecture has to run, and depmod is not needed.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from instant_env.debian.command import BuildError

_DEPENDS = re.compile(rb"(?<![\w.])depends=([^\0]*)\0")
_ALIAS = re.compile(rb"(?<![\w.])alias=([^\0]+)\0")


def install(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy modules and what they need from ``source`` (a /lib/modules/<release>) to ``target``, with indexes.

    A wanted module that is not there counts as built in when modules.builtin says so. Raises BuildError
    otherwise.
    """
    files = {_name(path): path for path in source.rglob("*.ko")}
    built_in = {_name(Path(line)) for line in (source / "modules.builtin").read_text().splitlines()}
    needs: dict[str, list[str]] = {}

    def visit(name: str) -> list[str]:
        """What ``name`` needs, the nearest first: the order of modules.dep."""
        if name not in needs:
            if name not in files:
                raise BuildError(f"the kernel has no module {name}")
            words = ",".join(_strings(_DEPENDS, files[name])).split(",")
            direct = [_canonical(word) for word in words if word]
            below = [other for part in direct for other in visit(part)]
            # What several need is loaded before all of them: its last mention counts.
            every = [*direct, *below]
            needs[name] = [part for index, part in enumerate(every) if part not in every[index + 1 :]]
        return needs[name]

    for name in map(_canonical, names):
        if name in files or name not in built_in:
            visit(name)
    dependencies, aliases = [], ["# Aliases extracted from modules themselves."]
    for name, below in sorted(needs.items()):
        relative = files[name].relative_to(source)
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[name], copy)
        dependencies.append(f"{relative}:" + "".join(f" {files[part].relative_to(source)}" for part in below))
        aliases += [f"alias {pattern} {name}" for pattern in _strings(_ALIAS, files[name])]
    (target / "modules.dep").write_text("\n".join([*dependencies, ""]))
    (target / "modules.alias").write_text("\n".join([*aliases, ""]))


def _strings(pattern: re.Pattern[bytes], path: Path) -> list[str]:
    return [match.decode() for match in pattern.findall(path.read_bytes())]


def _name(path: Path) -> str:
    return _canonical(path.name.partition(".")[0])


def _canonical(name: str) -> str:
    """File names use both dash and underscore."""
    return name.replace("-", "_")

"""An imitation of Amazon Linux 2023's grubby, as far as the recipes use it: ``python3 grubby.py OPTION...``.

It does what Fedora's 8.40 does, the bash program that edits BLS entries (branches f33 to f37, read; nothing
is copied), the harm included. AL2023 was made from Fedora 34 to 36; its exact build is not known.

- ``--args`` take the place of all arguments of their names, in the order given; ``--remove-args`` takes a
  name, or a name with its value.
- Where GRUB_CMDLINE_LINUX is not empty, ``--update-kernel=ALL`` writes one and the same line over **every**
  line of /etc/default/grub that begins with that word, GRUB_CMDLINE_LINUX_DEFAULT's included.
  ``--no-etc-grub-update``, since 8.40-43, is the option against it.
- It keeps ``kernelopts`` in grubenv, where there is one, and leaves entries alone that name it.
- Fedora 36's last builds and later ones keep /etc/kernel/cmdline, and make it.

``AL2023_ROOT`` is put before all paths; ``GRUBBY_ERA`` is f33 (the default), f34, f35, f36 or f37.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ERAS = ("f33", "f34", "f35", "f36", "f37")
USAGE = """Usage: grubby [OPTION...]
      --args=args                 new arguments for kernel being updated
      --remove-args=STRING        remove kernel arguments
      --update-kernel=kernel-path updated information for the specified kernel
      --no-etc-grub-update        don't update the GRUB_CMDLINE_LINUX variable in /etc/default/grub
      --version                   show the version
      --help                      show this help message
"""


def without(arguments: list[str], name: str) -> list[str]:
    """The arguments without those of a name, whatever their value; or without one given with its value."""
    return [one for one in arguments if one != name and ("=" in name or one.partition("=")[0] != name)]


def updated(text: str, removed: list[str], added: list[str]) -> str:
    arguments = text.split()
    for name in (*removed, *(one.partition("=")[0] for one in added)):
        arguments = without(arguments, name)
    return " ".join([*arguments, *added])


def shell_value(file: Path, name: str) -> str:
    """The value that a shell gives to a variable of the file."""
    script = f'. "$1" && printf %s "${name}"'
    result = subprocess.run(["sh", "-c", script, "sh", file], capture_output=True, text=True, check=True)
    return result.stdout


def update_all(root: Path, removed: list[str], added: list[str], *, defaults_too: bool, era: str) -> None:
    """What ``--update-kernel=ALL`` does."""
    defaults = root / "etc/default/grub"
    if defaults_too and defaults.is_file() and (value := shell_value(defaults, "GRUB_CMDLINE_LINUX")):
        line = f'GRUB_CMDLINE_LINUX="{updated(value, removed, added)}"'
        text = re.sub("^GRUB_CMDLINE_LINUX.*", lambda _: line, defaults.read_text(), flags=re.MULTILINE)
        defaults.write_text(text)
    environment = root / "boot/grub2/grubenv"
    if environment.is_file():
        text = re.sub(
            "^kernelopts=(.*)", lambda match: f"kernelopts={updated(match[1], removed, added)}",
            environment.read_text(), flags=re.MULTILINE,
        )  # fmt: skip
        environment.write_text(text)
    options = ""
    for entry in sorted((root / "boot/loader/entries").glob("*.conf")):
        text = entry.read_text()
        (options,) = re.findall("^options (.*)", text, re.MULTILINE)
        if "$kernelopts" not in options:
            options = updated(options, removed, added)
            line = f"options {options}"
            entry.write_text(
                "\n".join(line if one.startswith("options ") else one for one in text.split("\n"))
            )
    if era >= "f36":
        file = root / "etc/kernel/cmdline"
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text() if file.is_file() else options
        file.write_text(updated(before, removed, added) + "\n")


def main(arguments: list[str]) -> int:
    root, era = Path(os.environ.get("AL2023_ROOT", "/")), os.environ.get("GRUBBY_ERA", "f33")
    given: dict[str, str] = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in re.findall(r"^ +(--[a-z-]+)", USAGE, re.MULTILINE):
            print(f"grubby: {argument}: unknown option, or not imitated", file=sys.stderr)
            return 1
        given[name] = value
    if "--help" in given:
        print(USAGE, end="")
        return 0
    if "--version" in given:
        print("grubby version 8.40")
        return 0
    if era not in ERAS or given.get("--update-kernel") != "ALL":
        print("grubby: only --update-kernel=ALL is imitated", file=sys.stderr)
        return 1
    removed, added = given.get("--remove-args", "").split(), given.get("--args", "").split()
    update_all(root, removed, added, defaults_too="--no-etc-grub-update" not in given, era=era)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

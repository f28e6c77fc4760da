"""An imitation of Amazon Linux 2023's grub2-mkconfig: ``python3 grub2_mkconfig.py -o FILE``.

It does what Fedora's 2.06-61 does, which AL2023's is built on (scripts read; nothing is copied):

- The ``options`` of **every** BLS entry are written again, as
  ``root=UUID=... ro $GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT``. Fedora's change not to came in July
  2023 (rhboot/grub2 #126), after 2.06-61; amazon-eks-ami #2746 met it on AL2023 in 2026.
- FILE gets ``blscfg`` unless GRUB_ENABLE_BLSCFG says otherwise; then it gets menu entries, and the entries of
  /boot/loader are ignored at boot.
- /etc/default/grub is sourced by a shell.

``AL2023_ROOT`` is put before the paths that it reads, but not before FILE. ``AL2023_ROOT_UUID`` is the root's
UUID; without it, findmnt is asked.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

NAMES = (
    "GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT", "GRUB_ENABLE_BLSCFG", "GRUB_TIMEOUT",
    "GRUB_TIMEOUT_STYLE",
)  # fmt: skip


def settings(file: Path) -> dict[str, str]:
    """The values that a shell gives to our variables."""
    script = "".join(f'printf "%s\\n" "${name}"\n' for name in NAMES)
    source = f'if [ -f "$1" ]; then . "$1"; fi\n{script}'
    result = subprocess.run(["sh", "-c", source, "sh", file], capture_output=True, text=True, check=True)
    return dict(zip(NAMES, result.stdout.split("\n"), strict=False))


def root_uuid() -> str:
    if uuid := os.environ.get("AL2023_ROOT_UUID"):
        return uuid
    return subprocess.run(
        ["findmnt", "-no", "UUID", "/"], capture_output=True, text=True, check=True
    ).stdout.strip()


def header(values: dict[str, str]) -> str:
    """The menu's timeout, as GRUB 2.06's 00_header has it for a style of its own, and without one."""
    timeout, style = values["GRUB_TIMEOUT"] or "5", values["GRUB_TIMEOUT_STYLE"]
    if not style:
        return f"set timeout={timeout}\n"
    return (
        f"if [ x$feature_timeout_style = xy ] ; then\n  set timeout_style={style}\n  set timeout={timeout}\n"
        f"elif sleep --interruptible {timeout} ; then\n  set timeout=0\nfi\n"
    )


def main(arguments: list[str]) -> int:
    root = Path(os.environ.get("AL2023_ROOT", "/"))
    if len(arguments) != 2 or arguments[0] != "-o":
        print("grub2-mkconfig: only -o FILE is imitated", file=sys.stderr)
        return 1
    values = settings(root / "etc/default/grub")
    words = (values["GRUB_CMDLINE_LINUX"] + " " + values["GRUB_CMDLINE_LINUX_DEFAULT"]).split()
    command_line = " ".join([f"root=UUID={root_uuid()}", "ro", *words])
    menu = ""
    for entry in sorted((root / "boot/loader/entries").glob("*.conf")):
        text = re.sub(
            "^options.*", lambda _: f"options {command_line}", entry.read_text(), flags=re.MULTILINE
        )
        entry.write_text(text)
        kernel = re.findall("^linux (.*)", text, re.MULTILINE)[0]
        menu += f"menuentry '{entry.stem}' {{\n\tlinux {kernel} {command_line}\n}}\n"
    by_entries = values["GRUB_ENABLE_BLSCFG"] in ("", "true")
    entries = "insmod blscfg\nblscfg\n" if by_entries else menu
    Path(arguments[1]).write_text(header(values) + entries)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A directory that stands for a machine's root: scripts as rendered run on it, their paths moved there."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Directories that are moved below one of the test's own. Programs are this machine's, or the test's.
MOVED = (
    "/etc/dnf", "/etc/yum", "/etc/default", "/etc/selinux", "/run/instant-bake", "/boot", "/lib/modules",
    "/usr/libexec/openssh", "/usr/local", "/var/tmp", "/home", "/etc/systemd", "/etc/profile.d",  # noqa: S108
)  # fmt: skip
#: dnf and chown want to be root; an ordinary user is one in a user namespace.
AS_ROOT = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]


@dataclass
class Machine:
    """A directory that stands for the builder's root, and programs that stand before the real ones."""

    root: Path
    repository: Path | None = None
    #: Directories, and files, that are moved besides MOVED.
    also: tuple[str, ...] = ()

    @property
    def programs(self) -> Path:
        return self.root.parent / "programs"

    def program(self, name: str, body: str) -> None:
        self.programs.mkdir(exist_ok=True)
        (self.programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.programs / name).chmod(0o755)

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def moved(self, script: str) -> Path:
        """The script as a file, its paths moved."""
        for directory in (*MOVED, *self.also):
            script = re.sub(rf"(?<![\w/.]){directory}(?=[/\s\"'])", str(self.root) + directory, script)
        (self.root / "run/instant-bake").mkdir(parents=True, exist_ok=True)
        file = self.root.parent / "script.sh"
        file.write_text(script)
        return file

    def run(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run_file(self.moved(script), **environment)

    def run_file(self, file: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script that was moved, and perhaps changed since."""
        path = f"{self.programs}:{os.environ['PATH']}"
        return subprocess.run(
            [*AS_ROOT, "sh", file],
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def installed(self) -> set[str]:
        result = subprocess.run(
            ["rpm", f"--root={self.root}", "-qa", "--queryformat", "%{NAME}\n"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return set(result.stdout.split())

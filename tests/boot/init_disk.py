"""A disk whose PID 1 is instant-init, made from the debian-12 base without mounting anything.

debugfs writes into the ext4 of the root partition in place, so an ordinary user can do it, too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from instant_env.arch import Arch
from instant_env.localec2 import stock
from instant_env.localec2.stock.disk import ROOT_START, SECTOR
from instant_env.settings import load
from instant_env.toolchain import go_build

ROOT_DEVICE = "/dev/nvme0n1p1"
#: In the stock image the login user is made by cloud-init, which does not run here. The home is not made:
#: that is instant-init's to do.
USER = "admin"
PASSWD = f"{USER}:x:1000:1000:Debian:/home/{USER}:/bin/bash\n"
SHADOW = f"{USER}:*:19000:0:99999:7:::\n"
GROUP = f"{USER}:x:1000:\n"
SUDOERS = f"{USER} ALL=(ALL) NOPASSWD:ALL\n"


class Disk:
    """A raw disk in ``directory`` and the kernel taken out of it."""

    def __init__(self, directory: Path) -> None:
        image = stock.build("debian-12", Arch.X86_64, load().cache_dir, print)
        self.path = directory / "disk.raw"
        self.kernel = directory / "vmlinuz"
        self._scratch = directory / "scratch"
        subprocess.run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image.disk, self.path],
            check=True,
            timeout=120,
        )
        names = [
            line.split("/")[5] for line in self.debugfs("ls -p /boot").splitlines() if "/vmlinuz-" in line
        ]
        self.debugfs(f"dump /boot/{names[-1]} {self.kernel}")
        for path, line in {"/etc/passwd": PASSWD, "/etc/shadow": SHADOW, "/etc/group": GROUP}.items():
            self.write(path, self.read(path) + line, 0o640 if path == "/etc/shadow" else 0o644)
        self.write("/etc/sudoers.d/90-test", SUDOERS, 0o440)
        self.configure(USER)
        binary = directory / "instant-init"
        shutil.copyfile(go_build("init", Arch.X86_64), binary)
        self.put(binary, "/usr/sbin/instant-init", 0o755)

    def configure(self, login_user: str) -> None:
        """Write the image's configuration of instant-init."""
        self.write("/etc/instant-init.json", json.dumps({"login_user": login_user}), 0o644)

    def debugfs(self, *commands: str) -> str:
        """Run commands of debugfs on the root partition; they answer on stdout and complain on stderr."""
        result = subprocess.run(
            ["debugfs", "-w", "-f", "-", f"{self.path}?offset={ROOT_START * SECTOR}"],
            input="\n".join(commands), capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        complaints = [line for line in result.stderr.splitlines() if not line.startswith("debugfs 1.")]
        assert not complaints, f"{commands}: {complaints}"
        # Each command is echoed after a prompt.
        return "".join(
            line for line in result.stdout.splitlines(keepends=True) if not line.startswith("debugfs: ")
        )

    def read(self, path: str) -> str:
        self.debugfs(f"dump {path} {self._scratch}")
        return self._scratch.read_text()

    def write(self, path: str, text: str, mode: int) -> None:
        self._scratch.write_text(text)
        self.put(self._scratch, path, mode)

    def put(self, source: Path, path: str, mode: int) -> None:
        """Copy a file into the image, owned by root."""
        folder, name = path.rsplit("/", 1)
        if name in (
            line.split("/")[5] for line in self.debugfs(f"ls -p {folder}").splitlines() if "/" in line
        ):
            self.debugfs(f"rm {path}")
        self.debugfs(
            f"write {source} {path}",
            f"sif {path} mode 0{0o100000 | mode:o}",
            f"sif {path} uid 0",
            f"sif {path} gid 0",
        )

    def check(self) -> str:
        """The state of the file system as dumpe2fs tells it; fails when fsck finds anything to repair."""
        device = f"{self.path}?offset={ROOT_START * SECTOR}"
        subprocess.run(["e2fsck", "-fn", device], check=True, capture_output=True, timeout=60)
        header = subprocess.run(
            ["dumpe2fs", "-h", device], check=True, capture_output=True, text=True, timeout=60
        ).stdout
        features = next(line for line in header.splitlines() if line.startswith("Filesystem features:"))
        state = next(line for line in header.splitlines() if line.startswith("Filesystem state:"))
        return state.split(":")[1].strip() + (", needs recovery" if "needs_recovery" in features else "")

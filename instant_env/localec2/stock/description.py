"""What a base is made of, for debian.py to build. Data, no actions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from instant_env.arch import Arch
from instant_env.localec2.stock import disk as disks
from instant_env.localec2.stock import xfs
from instant_env.localec2.stock.debian_contents import File
from instant_env.localec2.stock.disk import DEBIAN, Geometry, Identifiers


@dataclass(frozen=True)
class Description:
    """A base of Debian's packages, as localec2 registers it. Paths on the ESP are relative to it."""

    base: str
    arch: Arch
    summary: str
    name_stem: str
    owner_id: str
    ssm_parameter: str
    sources: str  # lines of sources.list
    packages: tuple[str, ...]
    early_files: tuple[File, ...]  # in place before the packages are configured
    late_files: Callable[[Identifiers], tuple[File, ...]]  # one of them is SCRATCH/finish, which runs last
    loader_files: dict[str, str]  # path on the ESP: path in the root tree
    grub_cfg: Callable[[Identifiers], str]  # beside GRUB, in each of the folders of EFI
    grub_cfg_folders: tuple[str, ...]
    loader_texts: dict[str, str] = field(default_factory=dict)  # path on the ESP: text
    filesystem: Literal["ext4", "xfs"] = "ext4"
    geometry: Geometry = DEBIAN
    #: Run in the chroot once the essential packages are there.
    essential_commands: tuple[str, ...] = ()
    #: Unpacked before the late files; their names have a digest of what is in them.
    archives: tuple[Path, ...] = ()

    def digest(self, format_number: int) -> str:
        """16 hexadecimal digits over everything that decides what is built, except the packages' versions.

        Those are Debian's at the time of the build, and kept in the manifest beside the image: asking the
        mirror each time would make every command depend on the network.
        """
        # The identifiers follow from the digest, so the digest sees the files with others in their place.
        ids = Identifiers.from_digest("placeholder")
        files = [*self.early_files, *self.late_files(ids)]
        table = disks.partition_table(self.arch, ids, self.geometry)
        root: Any = disks.make_root_command(Path("disk"), Path("root"), ids, self.geometry)
        if self.filesystem == "xfs":
            root = xfs.FEATURES
        inputs = {
            "format": format_number,
            "sources": self.sources,
            "packages": self.packages,
            "files": [(file.path, file.mode, file.text) for file in files],
            "esp": [self.loader_files, self.grub_cfg(ids)],
            "disk": [table, root],
        }
        if self.loader_texts or self.archives:
            inputs["more"] = [self.loader_texts, [path.name for path in self.archives]]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]

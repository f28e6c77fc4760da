"""The processor architectures we bake and boot, under the names EC2 gives them."""

from __future__ import annotations

from enum import StrEnum

from instant_env.errors import UsageError


class Arch(StrEnum):
    """EC2's name of the architecture; the properties give everyone else's."""

    X86_64 = "x86_64"
    ARM64 = "arm64"

    @classmethod
    def parse(cls, text: str) -> Arch:
        """Accept EC2's, Debian's and the kernel's names; raise UsageError for anything else."""
        aliases = {"x86_64": cls.X86_64, "amd64": cls.X86_64, "arm64": cls.ARM64, "aarch64": cls.ARM64}
        try:
            return aliases[text.strip().lower()]
        except KeyError:
            raise UsageError(f"unknown architecture {text!r}", hint="use x86_64 or arm64") from None

    @property
    def debian(self) -> str:
        """Debian's and Go's name of it (they agree)."""
        return {Arch.X86_64: "amd64", Arch.ARM64: "arm64"}[self]

    @property
    def machine(self) -> str:
        """The kernel's name, as ``uname -m`` prints it."""
        return {Arch.X86_64: "x86_64", Arch.ARM64: "aarch64"}[self]

    @property
    def efi(self) -> str:
        """The removable-media loader that UEFI firmware starts by default (UEFI 2.10, section 3.5.1.1)."""
        return {Arch.X86_64: "BOOTX64.EFI", Arch.ARM64: "BOOTAA64.EFI"}[self]

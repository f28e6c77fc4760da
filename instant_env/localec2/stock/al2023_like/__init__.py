"""The al2023-like base: a stand-in for Amazon Linux 2023 that boots, for the dnf half of the recipes.

Debian 12's programs laid out as AL2023's, on AL2023's partitions, with AL2023's way to boot (GRUB, an entry
of the Boot Loader Specification, kernel 6.1 with XFS and NVMe built in), and an rpm database with AL2023's
names whose packages own real files, so that dnf removes what is in use. docs/al2023.md has a table of what
this proves and what only AWS can. x86_64 only.
"""

from __future__ import annotations

from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian.command import BuildError
from instant_env.debian.mirrors import KEYRING, SUITE, Mirrors
from instant_env.localec2.stock import debian
from instant_env.localec2.stock.al2023_like import contents, kernel
from instant_env.localec2.stock.description import Description
from instant_env.localec2.stock.model import StockImage
from instant_env.progress import Progress

BASE = "al2023-like"
#: Nobody's account: Amazon's would be a lie.
OWNER_ID = "000000002023"
_HERE = Path(__file__).parent


def build(arch: Arch, cache_dir: Path, progress: Progress) -> StockImage:
    """The stand-in: from the cache, or built now, its kernel too.

    Raises MissingToolError for programs that are not there, BuildError for everything else.
    """
    if arch is not Arch.X86_64:
        raise BuildError(
            f"{BASE} does not exist for {arch}",
            hint="use --arch x86_64; AL2023's arm64 kernels (EFI_ZBOOT) need a loader that Debian has not",
        )
    mirrors = Mirrors.from_environment()
    description = describe(kernel.archive(cache_dir), mirrors)
    if cached := debian.cached_of(description, cache_dir):
        return cached  # whether or not its kernel is still there
    kernel.build(cache_dir, mirrors, progress)
    return debian.build_described(description, cache_dir, progress)


def describe(kernel_archive: Path, mirrors: Mirrors) -> Description:
    """What it is made of, with that kernel."""
    backports = f"deb [signed-by={KEYRING}] {mirrors.archive} {SUITE}-backports main\n"
    return Description(
        base=BASE,
        arch=Arch.X86_64,
        summary="Stand-in for Amazon Linux 2023, kernel 6.1, x86_64; not made by Amazon",
        name_stem=f"{BASE}-x86_64",
        owner_id=OWNER_ID,
        ssm_parameter=f"/aws/service/instant-env/{BASE}/x86_64",
        sources=mirrors.sources() + backports,
        packages=contents.PACKAGES,
        early_files=contents.EARLY_FILES,
        late_files=contents.late_files,
        loader_files={"EFI/BOOT/BOOTX64.EFI": "usr/lib/al2023-like/BOOTX64.EFI"},
        loader_texts={"EFI/amzn/blscfg.cfg": (_HERE / "blscfg.cfg").read_text(encoding="utf-8")},
        grub_cfg=contents.esp_grub_cfg,
        grub_cfg_folders=("amzn",),
        filesystem="xfs",
        geometry=contents.GEOMETRY,
        archives=(kernel_archive,),
    )

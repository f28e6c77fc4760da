"""The stand-in for Amazon Linux 2023 without building it: what goes in, and that it is like its original.

`make test-al2023` builds and boots it.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.bake.recipe import load_base, resolve
from instant_env.debian.command import BuildError
from instant_env.debian.mirrors import Mirrors
from instant_env.localec2 import stock
from instant_env.localec2.stock import al2023_like, disk
from instant_env.localec2.stock.al2023_like import contents, kernel, rpm_database
from instant_env.progress import Progress
from instant_env.settings import ROOT

pytest_plugins = ["support.stock_site"]

RECIPES = ROOT / "recipes"
IDS = disk.Identifiers.from_digest("test")
FILES = {file.path: file for file in contents.late_files(IDS)}


def test_it_has_the_facts_of_its_original() -> None:
    """What a recipe reads of a base is AL2023's; what says where it comes from is not."""
    own = {"base", "description", "architectures", "ssm_parameter", "owners", "hosts", "facts"}
    original, like = load_base(RECIPES, "al2023"), load_base(RECIPES, "al2023-like")
    assert original.model_dump(exclude=own) == like.model_dump(exclude=own)
    assert not set(original.owners) & set(like.owners)
    assert not like.hosts, "it has no repository"


def test_each_package_that_a_recipe_names_is_there_and_has_what_it_requires() -> None:
    table = {package["name"]: package for package in contents.package_table()}
    for name in ("minimal", "custom-init", "devbox", "container-host"):
        recipe = resolve(RECIPES, name, "dnf")
        assert set(recipe.keep) <= set(table)
        assert set(recipe.remove) - set(table) <= {"ec2-utils"}, "which has another name by now"
    assert {name for package in table.values() for name in package["requires"]} <= set(table)
    assert table["grub2-efi-x64-ec2"]["protected"]


def test_a_file_of_debian_belongs_to_one_package() -> None:
    owners = [package for packages in contents.OWNS.values() for package in packages]
    assert len(owners) == len(set(owners))
    # Everything else that is owned by name lies in the tree, or is made by finish.sh, Debian or the kernel.
    for path in contents.PATHS["amazon-ec2-net-utils"]:
        assert path in FILES


def test_no_package_owns_a_directory_or_a_link_to_one(tmp_path: Path) -> None:
    """/lib is such a link, and listed by all packages of Debian that have a unit of systemd."""
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/unit").touch()
    (tmp_path / "usr/lib/alias").symlink_to("/dev/null")
    (tmp_path / "usr/lib/dangling").symlink_to("nowhere")
    (tmp_path / "lib").symlink_to("usr/lib")
    paths = ["lib", "usr", "usr/lib", "lib/unit", "lib/alias", "lib/dangling", "lib/absent"]
    owned = [rpm_database.real(str(tmp_path / path)) for path in paths]
    assert owned == [
        *[None] * 3, *(str(tmp_path / "usr/lib" / name) for name in ("unit", "alias", "dangling")), None,
    ]  # fmt: skip


def test_the_script_that_finishes_it_passes_shellcheck(tmp_path: Path) -> None:
    script = tmp_path / "finish"
    script.write_text(FILES["/tmp/stock/finish"].text)  # noqa: S108 (a key)
    assert f"root_uuid={IDS.root_filesystem}" in script.read_text()
    subprocess.run(["shellcheck", script], check=True)


def test_the_partitions_are_those_of_an_ami() -> None:
    lines = disk.partition_table(Arch.X86_64, IDS, contents.GEOMETRY).splitlines()
    places = {
        int(match[1]): (int(match[2]), int(match[3]))
        for line in lines
        if (match := re.match(r"(\d+) : start=(\d+), size=(\d+)", line))
    }
    assert (places[127], places[128]) == ((22528, 2048), (2048, 20480))
    assert places[1][0] == 24576
    assert f"UUID={IDS.root_filesystem} / xfs" in FILES["/etc/fstab"].text


def test_it_says_that_it_is_a_stand_in() -> None:
    assert "stand-in" in FILES["/usr/lib/os-release"].text.lower()
    assert "not made by Amazon" in al2023_like.describe(Path("k"), Mirrors("a", "b")).summary


def test_the_kernels_configuration_has_what_decides_a_boot() -> None:
    """Of a configuration that savedefconfig wrote, what is missing has Debian's source's default."""
    lines = kernel.CONFIG.read_text().splitlines()
    assert {"CONFIG_XFS_FS=y", "CONFIG_BLK_DEV_NVME=y", "CONFIG_DEVTMPFS_MOUNT=y"} <= set(lines)
    for name in kernel.BUILT_IN:
        assert f"# CONFIG_{name} is not set" not in lines
        assert f"CONFIG_{name}=m" not in lines
    assert {"CONFIG_EXT4_FS=m", "CONFIG_VIRTIO_NET=m", "CONFIG_VETH=m"} <= set(lines)


def test_a_kernel_that_could_not_boot_without_an_initramfs_is_not_built() -> None:
    good = [f"CONFIG_{name}=y" for name in kernel.BUILT_IN] + [f"CONFIG_{name}=m" for name in kernel.MODULES]
    kernel.check("\n".join(good))
    with pytest.raises(BuildError, match="lacks CONFIG_XFS_FS=y"):
        kernel.check("\n".join(line for line in good if line != "CONFIG_XFS_FS=y") + "\nCONFIG_XFS_FS=m")


def test_there_is_none_for_arm64(tmp_path: Path, progress: Progress) -> None:
    with pytest.raises(BuildError, match="al2023-like does not exist for arm64") as caught:
        stock.build("al2023-like", Arch.ARM64, tmp_path, progress)
    assert "EFI_ZBOOT" in str(caught.value.hint)


def test_another_kernel_makes_another_image() -> None:
    mirrors = Mirrors("http://one/debian", "http://one/debian-security")
    one, other = (al2023_like.describe(Path(f"kernel-{name}.tar"), mirrors).digest(1) for name in "ab")
    assert one != other

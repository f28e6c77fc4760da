"""A directory with AL2023's boot files, on which the recipes' scripts run.

It has /boot, /etc/default/grub and /etc/selinux after published facts (docs/al2023.md). grubby and
grub2-mkconfig are the imitations of the base al2023-like; what looks at disks answers with constants.
"""

from __future__ import annotations

import sys
from pathlib import Path

from instant_env.arch import Arch
from instant_env.bake.parameters import settle
from instant_env.bake.recipe import ResolvedRecipe, load_base, render_script, resolve
from instant_env.localec2.stock.al2023_like import grub2_mkconfig, grubby
from instant_env.settings import ROOT
from support.moved_machine import Machine

RECIPES = ROOT / "recipes"
BASE = load_base(RECIPES, "al2023")
RELEASE = "6.1.170-213.321.amzn2023.x86_64"
UUID = "afcd3653-0000-0000-0000-000000000000"
PARTUUID = "11112222-3333-4444-5555-666677778888"
ARGUMENTS = (
    "console=tty0 console=ttyS0,115200n8 nvme_core.io_timeout=4294967295 rd.emergency=poweroff rd.shell=0"
    " selinux=1 security=selinux quiet"
)
OPTIONS = f"root=UUID={UUID} ro {ARGUMENTS}"
#: /etc/default/grub, as two how-tos for AL2023 quote it: everything in _DEFAULT, and no line beside it. No
#: transcript shows the whole file.
DEFAULTS = f"""GRUB_CMDLINE_LINUX_DEFAULT="{ARGUMENTS}"
GRUB_TIMEOUT=0
GRUB_DISABLE_RECOVERY="true"
GRUB_TERMINAL="ec2-console"
GRUB_X86_USE_32BIT="true"
"""
#: Other forms that it may have.
FORMS = {
    "only _DEFAULT": DEFAULTS,
    "an empty GRUB_CMDLINE_LINUX, too": DEFAULTS + 'GRUB_CMDLINE_LINUX=""\n',
    "both": DEFAULTS.replace(" quiet", "") + 'GRUB_CMDLINE_LINUX="quiet"\n',
    "only GRUB_CMDLINE_LINUX": DEFAULTS.replace("LINUX_DEFAULT", "LINUX"),
    "in single quotes": DEFAULTS.replace(f'"{ARGUMENTS}"', f"'{ARGUMENTS}'"),
}


def render(step: str, recipe: ResolvedRecipe, **parameters: str) -> str:
    """A step's script for x86_64."""
    values = settle(recipe.name, recipe.parameters, parameters, Arch.X86_64)
    (resolved,) = (one for one in recipe.steps if one.spec.name == step)
    return render_script(resolved, recipe, BASE, Arch.X86_64, values)


def with_boot_files(root: Path, *, defaults: str = DEFAULTS, era: str = "f33") -> Machine:
    """The machine as stock AL2023 has it."""
    machine = Machine(root)
    machine.write(
        f"boot/loader/entries/0123-{RELEASE}.conf",
        f"title Amazon Linux ({RELEASE}) 2023\nversion {RELEASE}\nlinux /boot/vmlinuz-{RELEASE}\n"
        f"initrd /boot/initramfs-{RELEASE}.img\noptions {OPTIONS}\ngrub_users $grub_users\n",
    )
    for name in ("vmlinuz-" + RELEASE, f"initramfs-{RELEASE}.img"):
        machine.write(f"boot/{name}", "x")
    machine.write("boot/grub2/grub.cfg", "set timeout=5\nblscfg\n")
    built_in = ("BLK_DEV_NVME", "XFS_FS", "EFI_STUB", "DEVTMPFS", "EFI_PARTITION")
    machine.write(f"boot/config-{RELEASE}", "".join(f"CONFIG_{name}=y\n" for name in built_in))
    (root / "lib/modules" / RELEASE).mkdir(parents=True)
    machine.write("etc/default/grub", defaults)
    machine.write("etc/selinux/config", "# comment\nSELINUX=permissive\nSELINUXTYPE=targeted\n")
    environment = f"AL2023_ROOT={root} AL2023_ROOT_UUID={UUID} GRUBBY_ERA={era}"
    for name, module in (("grubby", grubby), ("grub2-mkconfig", grub2_mkconfig)):
        machine.program(name, f'{environment} exec {sys.executable} {module.__file__} "$@"')
    machine.program("findmnt", "echo /dev/nvme0n1p1")
    machine.program("blkid", f"echo {PARTUUID}")
    for name in ("mount", "umount", "mknod"):
        machine.program(name, "exit 0")
    return machine


def run(machine: Machine, recipe: str, *steps: str, **parameters: str) -> str:
    """Run steps, which must succeed; return what they print."""
    output = ""
    for step in steps:
        result = machine.run(render(step, resolve(RECIPES, recipe, "dnf"), **parameters))
        assert result.returncode == 0, f"{step}: {result.stderr}"
        output += result.stdout
    return output


def entry(machine: Machine) -> str:
    """The text of the only boot entry."""
    (file,) = (machine.root / "boot/loader/entries").iterdir()
    return file.read_text()


def options(machine: Machine) -> list[str]:
    """The kernel arguments of the only boot entry."""
    return dict(line.split(" ", 1) for line in entry(machine).splitlines())["options"].split()

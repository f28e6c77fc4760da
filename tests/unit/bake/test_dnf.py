"""The dnf side of the recipes: the scripts as rendered, run with the real dnf on packages that have AL2023's
names.

It shows what the solver does with our lists and our script. It does not show AL2023: see al2023_rpms.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support import al2023_rpms
from support.moved_machine import AS_ROOT, Machine

from instant_env.arch import Arch
from instant_env.bake.parameters import settle
from instant_env.bake.recipe import Base, ResolvedRecipe, load_base, render_script, resolve
from instant_env.requirements import find_program
from instant_env.settings import ROOT

RECIPES = ROOT / "recipes"
BASE = load_base(RECIPES, "al2023")


def render(step: str, recipe: ResolvedRecipe, base: Base = BASE, **given: str) -> str:
    values = settle(recipe.name, recipe.parameters, given, Arch.X86_64)
    (found,) = (one for one in recipe.steps if one.spec.name == step)
    return render_script(found, recipe, base, Arch.X86_64, values)


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """What the lists name, and all that it requires, installed as asked for by the real dnf."""
    if find_program("dnf") is None or find_program("rpmbuild") is None:
        pytest.fail(
            "dnf or rpmbuild is missing: make setup installs them, `invoke doctor` says how", pytrace=False
        )
    directory = tmp_path_factory.mktemp("al2023")
    recipe = resolve(RECIPES, "minimal", "dnf")
    packages = al2023_rpms.closure(
        {*recipe.remove, *recipe.keep, *al2023_rpms.REQUIRES, *al2023_rpms.PROTECTED}
    )
    al2023_rpms.build(directory / "repository", packages)
    al2023_rpms.install(directory / "root", directory / "repository", sorted(packages))
    return Machine(directory / "root", directory / "repository")


@pytest.fixture
def machine(stock: Machine, tmp_path: Path) -> Machine:
    """A copy of the stock machine, on which dnf and rpm are the real ones."""
    assert stock.repository is not None
    shutil.copytree(stock.root, tmp_path / "root", symlinks=True)
    found = Machine(tmp_path / "root", stock.repository)
    options = " ".join(al2023_rpms.dnf_options(found.root, stock.repository))
    found.program("dnf", f'exec {find_program("dnf")} {options} "$@"')
    found.program("rpm", f'exec {find_program("rpm")} --root={found.root} "$@"')
    return found


def child(tmp_path: Path, **lists: dict[str, str]) -> ResolvedRecipe:
    """A recipe on top of `minimal` with lists of its own for dnf."""
    recipes = tmp_path / "recipes"
    shutil.copytree(RECIPES, recipes)
    (recipes / "child").mkdir()
    text = {"recipe": "child", "description": "x", "extends": "minimal"}
    (recipes / "child/recipe.yml").write_text(
        yaml.safe_dump({**text, **{key: {"dnf": value} for key, value in lists.items()}})
    )
    return resolve(recipes, "child", "dnf")


def test_every_name_is_one_of_the_amis_packages() -> None:
    """And all that stays is in the minimal AMI, which is a base too."""
    for name in ("minimal", "custom-init", "devbox", "container-host"):
        recipe = resolve(RECIPES, name, "dnf")
        assert set(recipe.remove) <= set(al2023_rpms.names(minimal=False))
        assert set(recipe.keep) <= set(al2023_rpms.names(minimal=True))
        assert all(recipe.remove.values()), "each with its reason"
        assert all(recipe.keep.values()), "each with its reason"


@pytest.mark.slow
def test_strip_removes_its_list_and_what_only_that_needed(machine: Machine) -> None:
    recipe = resolve(RECIPES, "minimal", "dnf")
    before = machine.installed()
    result = machine.run(render("strip", recipe))
    assert result.returncode == 0, result.stdout + result.stderr
    after = machine.installed()
    assert not set(recipe.remove) & after
    assert set(recipe.keep) <= after
    # Everything here counts as asked for, so nothing goes along that is not named.
    assert before - after == set(recipe.remove)
    again = machine.run(render("strip", recipe))
    assert again.returncode == 0, again.stderr
    assert machine.installed() == after
    # And sshd with what it executes is proved file by file.
    (machine.root / "usr/libexec/openssh/sshd-session").unlink()
    result = machine.run(render("strip", recipe))
    assert result.returncode == 1
    assert "/usr/libexec/openssh/sshd-session" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_what_was_only_a_dependency_goes_and_what_is_kept_does_not(machine: Machine) -> None:
    """Where dependencies are marked as such, a kept package must not go as one that nobody needs."""
    dependencies = ["python3-jsonpatch", "net-tools", "gdisk", "chrony", "openssh-server", "sudo"]
    marked = subprocess.run(
        [*AS_ROOT, machine.programs / "dnf", "-q", "mark", "remove", *dependencies],
        capture_output=True,
        check=False,
    )
    assert marked.returncode == 0, marked.stderr
    before = machine.installed()
    result = machine.run(render("strip", resolve(RECIPES, "minimal", "dnf")))
    assert result.returncode == 0, result.stdout + result.stderr
    gone = before - machine.installed()
    assert {"python3-jsonpatch", "net-tools", "gdisk"} <= gone
    assert not {"chrony", "openssh-server", "sudo"} & gone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("pam", "openssh-server"),  # by way of systemd, too, which protects itself
        ("grub2-tools-minimal", "grub2-tools"),  # which no file protects: it is on our list
    ],
)
def test_a_transaction_that_touches_a_kept_package_is_not_run(
    machine: Machine, tmp_path: Path, package: str, message: str
) -> None:
    before = machine.installed()
    assert package in before
    result = machine.run(render("strip", child(tmp_path, remove={package: "to see what happens"})))
    assert result.returncode == 1
    assert re.search(message, result.stderr), result.stderr
    assert "strip: " in result.stderr.splitlines()[-1]
    assert machine.installed() == before


@pytest.mark.slow
def test_a_protected_package_goes_only_by_name(machine: Machine, tmp_path: Path) -> None:
    """`setup` has a file in protected.d, and nothing here needs it."""
    recipe = child(tmp_path, remove={"setup": "to see what happens"})
    before = machine.installed()
    result = machine.run(render("strip", recipe))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "setup" in before - machine.installed()


@pytest.mark.slow
def test_a_base_without_a_kept_package_is_refused_before_anything(machine: Machine, tmp_path: Path) -> None:
    before = machine.installed()
    result = machine.run(render("strip", child(tmp_path, keep={"telnet-server": "nostalgia"})))
    assert result.returncode == 1
    assert "the base lacks telnet-server, which has to stay (nostalgia)" in result.stderr
    assert machine.installed() == before


RELEASE = "6.1.170-213.321.amzn2023.x86_64"
OPTIONS = (
    "root=UUID=afcd3653-0000-0000-0000-000000000000 ro console=tty0 console=ttyS0,115200n8"
    " nvme_core.io_timeout=4294967295 rd.emergency=poweroff rd.shell=0 selinux=1 security=selinux quiet"
)
#: grubby's way with entries as far as the recipes use it: --args go in place of those of the same name.
GRUBBY = r"""
for argument; do
    case "$argument" in
    --update-kernel=ALL) ;;
    --remove-args=*) remove="${argument#*=}" ;;
    --args=*) add="${argument#*=}" ;;
    *) echo "grubby: $argument is not imitated" >&2; exit 1 ;;
    esac
done
for entry in "$BOOT"/loader/entries/*.conf; do
    options="$(sed -n 's/^options //p' "$entry")"
    kept=""
    for option in $options; do
        for name in $remove $add; do
            if [ "${option%%=*}" = "${name%%=*}" ]; then continue 2; fi
        done
        kept="$kept $option"
    done
    sed -i "s|^options .*|options${kept}${add:+ $add}|" "$entry"
done
"""


@pytest.fixture
def booted(tmp_path: Path) -> Machine:
    """/boot, /etc/default/grub and /etc/selinux/config as the published facts have them; grubby and what
    looks at disks are imitated."""
    found = Machine(tmp_path / "root")
    found.write(
        f"boot/loader/entries/0123-{RELEASE}.conf",
        f"title Amazon Linux ({RELEASE}) 2023\nversion {RELEASE}\nlinux /boot/vmlinuz-{RELEASE}\n"
        f"initrd /boot/initramfs-{RELEASE}.img\noptions {OPTIONS}\ngrub_users $grub_users\n",
    )
    for name in ("vmlinuz-" + RELEASE, f"initramfs-{RELEASE}.img", "grub2/grub.cfg"):
        found.write(f"boot/{name}", "x")
    built_in = ("BLK_DEV_NVME", "XFS_FS", "EFI_STUB", "DEVTMPFS", "EFI_PARTITION")
    found.write(f"boot/config-{RELEASE}", "".join(f"CONFIG_{name}=y\n" for name in built_in))
    (found.root / "lib/modules" / RELEASE).mkdir(parents=True)
    found.write(
        "etc/default/grub",
        'GRUB_CMDLINE_LINUX_DEFAULT="console=tty0 console=ttyS0,115200n8 nvme_core.io_timeout=4294967295'
        ' rd.emergency=poweroff rd.shell=0 selinux=1 security=selinux quiet"\n'
        'GRUB_CMDLINE_LINUX=""\nGRUB_TIMEOUT=5\n',
    )
    found.write("etc/selinux/config", "# comment\nSELINUX=permissive\nSELINUXTYPE=targeted\n")
    found.program("grubby", f"BOOT={found.root}/boot remove= add=\n{GRUBBY}")
    found.program("grub2-mkconfig", f'echo made >"{found.root}/boot/grub2/grub.cfg"')
    found.program("findmnt", "echo /dev/nvme0n1p1")
    found.program("blkid", "echo 11112222-3333-4444-5555-666677778888")
    for name in ("mount", "umount", "mknod"):
        found.program(name, "exit 0")
    return found


def entry(machine: Machine) -> str:
    (file,) = (machine.root / "boot/loader/entries").iterdir()
    return file.read_text()


def test_minimal_takes_the_menu_away_and_leaves_the_rest(booted: Machine) -> None:
    recipe, before = resolve(RECIPES, "minimal", "dnf"), entry(booted)
    for step in ("selinux", "loader"):
        result = booted.run(render(step, recipe))
        assert result.returncode == 0, result.stderr
    assert entry(booted) == before
    defaults = (booted.root / "etc/default/grub").read_text().splitlines()
    assert {"GRUB_TIMEOUT=0", "GRUB_TIMEOUT_STYLE=hidden", 'GRUB_CMDLINE_LINUX=""'} <= set(defaults)
    assert "GRUB_TIMEOUT=5" not in defaults
    assert (booted.root / "boot/grub2/grub.cfg").read_text() == "made\n"
    assert "SELINUX=permissive" in (booted.root / "etc/selinux/config").read_text()


def test_selinux_is_set_in_both_places(booted: Machine) -> None:
    result = booted.run(render("selinux", resolve(RECIPES, "minimal", "dnf"), selinux="disabled"))
    assert result.returncode == 0, result.stderr
    assert "\nSELINUX=disabled\n" in (booted.root / "etc/selinux/config").read_text()
    options = entry(booted).splitlines()[4].split()
    assert "selinux=0" in options
    assert not {"selinux=1", "security=selinux"} & set(options)
    defaults = (booted.root / "etc/default/grub").read_text()
    assert "selinux=1" not in defaults
    assert "security=selinux" not in defaults
    assert 'GRUB_CMDLINE_LINUX=" selinux=0"' in defaults


def test_custom_init_boots_by_grub_without_initramfs(booted: Machine) -> None:
    recipe = resolve(RECIPES, "custom-init", "dnf")
    for step in ("selinux", "loader", "boot"):
        result = booted.run(render(step, recipe))
        assert result.returncode == 0, f"{step}: {result.stderr}"
    lines = dict(line.split(" ", 1) for line in entry(booted).splitlines())
    assert "initrd" not in lines
    assert lines["linux"] == f"/boot/vmlinuz-{RELEASE}"
    options = lines["options"].split()
    assert "root=PARTUUID=11112222-3333-4444-5555-666677778888" in options
    assert {"rw", "rootwait", "init=/usr/sbin/instant-init", "selinux=0", "console=tty0"} <= set(options)
    assert not [one for one in options if one in ("ro", "rd.shell=0") or one.startswith("root=UUID")]
    assert [one for one in options if one.startswith("console=")][-1] == "console=ttyS0,115200n8"
    assert len(options) == len(set(options))
    assert not list((booted.root / "boot").glob("initramfs-*"))
    defaults = (booted.root / "etc/default/grub").read_text()
    assert re.search(r'^GRUB_CMDLINE_LINUX=".*init=/usr/sbin/instant-init.*"$', defaults, re.MULTILINE)
    assert "rd.emergency" not in defaults


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        (f"boot/config-{RELEASE}", "CONFIG_XFS_FS=y", "CONFIG_XFS_FS=m", "CONFIG_XFS_FS is not built into"),
        (
            f"boot/loader/entries/0123-{RELEASE}.conf",
            "linux /boot/vmlinuz-6",
            "linux /boot/vmlinuz-7",
            "which is not in",
        ),
    ],
)
def test_a_kernel_that_cannot_is_refused(
    booted: Machine, path: str, old: str, new: str, message: str
) -> None:
    file = booted.root / path
    file.write_text(file.read_text().replace(old, new))
    result = booted.run(render("boot", resolve(RECIPES, "custom-init", "dnf")))
    assert result.returncode == 1
    assert message in result.stderr
    assert list((booted.root / "boot").glob("initramfs-*")), "nothing is taken before it is known to work"

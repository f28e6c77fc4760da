"""What the recipes do to AL2023's GRUB: the scripts as rendered, on every form of /etc/default/grub.

grubby and grub2-mkconfig are imitations that do what the real ones do (support.al2023).
"""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import uuid
from pathlib import Path

import pytest
from support.al2023.machine import (
    ARGUMENTS,
    DEFAULTS,
    FORMS,
    OPTIONS,
    PARTUUID,
    RECIPES,
    RELEASE,
    entry,
    options,
    render,
    run,
    with_boot_files,
)
from support.moved_machine import Machine

from instant_env.bake.recipe import resolve
from instant_env.localec2.stock.al2023_like import grubby


@pytest.fixture
def booted(tmp_path: Path) -> Machine:
    return with_boot_files(tmp_path / "root")


@pytest.fixture(params=list(FORMS))
def any_form(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    """The machine with each form of /etc/default/grub."""
    return with_boot_files(tmp_path / "root", defaults=FORMS[request.param])


def defaults(machine: Machine) -> dict[str, str]:
    """The variables of /etc/default/grub, each of which stands there once."""
    lines = (machine.root / "etc/default/grub").read_text().splitlines()
    pairs = [line.split("=", 1) for line in lines]
    assert len(dict(pairs)) == len(pairs), lines
    return {name: shlex.split(value)[0] if value != '""' else "" for name, value in pairs}


def arguments_of(machine: Machine) -> list[str]:
    """The kernel arguments that the file gives to a new entry."""
    values = defaults(machine)
    both = (values.get("GRUB_CMDLINE_LINUX", ""), values.get("GRUB_CMDLINE_LINUX_DEFAULT", ""))
    return " ".join(both).split()


def test_minimal_takes_the_menu_away_and_leaves_the_rest(any_form: Machine) -> None:
    run(any_form, "minimal", "selinux", "loader")
    assert sorted(options(any_form)) == sorted(OPTIONS.split())
    values = defaults(any_form)
    assert values["GRUB_TIMEOUT"] == "0"
    assert values["GRUB_TIMEOUT_STYLE"] == "hidden"
    assert sorted(arguments_of(any_form)) == sorted(ARGUMENTS.split())
    configuration = (any_form.root / "boot/grub2/grub.cfg").read_text()
    assert "set timeout=0\n" in configuration
    assert "set timeout=5\n" not in configuration
    assert "SELINUX=permissive" in (any_form.root / "etc/selinux/config").read_text()


def test_selinux_is_set_in_every_place(any_form: Machine) -> None:
    """The step `loader` comes after it, and grub2-mkconfig writes the entries from the file."""
    run(any_form, "minimal", "selinux", "loader", selinux="disabled")
    assert "\nSELINUX=disabled\n" in (any_form.root / "etc/selinux/config").read_text()
    for arguments in (options(any_form), arguments_of(any_form)):
        assert arguments.count("selinux=0") == 1
        assert not {"selinux=1", "security=selinux"} & set(arguments)


@pytest.mark.parametrize(
    ("form", "era"), [*zip(FORMS, grubby.ERAS, strict=True), ("both", "f37"), ("only _DEFAULT", "f36")]
)
def test_custom_init_boots_by_grub_without_initramfs(tmp_path: Path, form: str, era: str) -> None:
    machine = with_boot_files(tmp_path / "root", defaults=FORMS[form], era=era)
    machine.write("boot/grub2/grubenv", f"# GRUB Environment Block\nkernelopts={OPTIONS}\n")
    run(machine, "custom-init", "selinux", "loader", "boot")
    lines = dict(line.split(" ", 1) for line in entry(machine).splitlines())
    assert "initrd" not in lines
    assert lines["linux"] == f"/boot/vmlinuz-{RELEASE}"
    assert not list((machine.root / "boot").glob("initramfs-*"))
    for arguments in (options(machine), arguments_of(machine)):
        assert f"root=PARTUUID={PARTUUID}" in arguments
        # Process 1 ignores the sleep key without it; the same name as in the EFI binary of other bases.
        digest = hashlib.sha256(f"{PARTUUID} hibernation".encode()).hexdigest()
        assert f"resume=PARTUUID={uuid.UUID(digest[:32])}" in arguments
        assert {"rw", "rootwait", "init=/usr/sbin/instant-init", "selinux=0", "console=tty0"} <= set(
            arguments
        )
        assert [one for one in arguments if one.startswith("console=")][-1] == "console=ttyS0,115200n8"
        assert not [one for one in arguments if one == "ro" or one.startswith(("rd.", "root=UUID"))]
        assert len(arguments) == len(set(arguments))


def test_grub2_mkconfig_run_by_hand_leaves_a_machine_that_boots(booted: Machine) -> None:
    """It writes root= and ro in front; what comes last holds (Linux, init/do_mounts.c)."""
    run(booted, "custom-init", "selinux", "loader", "boot")
    subprocess.run(
        [booted.programs / "grub2-mkconfig", "-o", booted.root / "boot/grub2/grub.cfg"], check=True
    )
    arguments = options(booted)
    assert [one for one in arguments if one.startswith("root=")][-1] == f"root=PARTUUID={PARTUUID}"
    assert [one for one in arguments if one in ("ro", "rw")][-1] == "rw"
    assert "init=/usr/sbin/instant-init" in arguments


def test_an_entry_keeps_what_the_file_does_not_have(booted: Machine) -> None:
    """As where an image's maker edited the entries: grub2-mkconfig would take it away."""
    file = next((booted.root / "boot/loader/entries").iterdir())
    file.write_text(file.read_text().replace(" quiet\n", " quiet net.ifnames=0\n"))
    before = entry(booted)
    output = run(booted, "minimal", "selinux", "loader")
    assert entry(booted) == before
    assert "\nnote: /etc/default/grub does not have what 0123-" in output.replace(str(booted.root), "")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("", "does not read the entries"),
        ("echo 'set timeout=0' >\"$2\"", "does not read the entries"),
        ("printf 'set timeout=5\\nblscfg\\n' >\"$2\"", "has a timeout"),
        ("printf 'set timeout=0\\nblscfg\\n' >\"$2\"; rm {entries}/*.conf", "has taken .*conf away"),
        ("exit 3", ""),
    ],
)
def test_what_grub_will_do_is_looked_at(booted: Machine, program: str, message: str) -> None:
    if program:
        booted.program("grub2-mkconfig", program.format(entries=booted.root / "boot/loader/entries"))
    else:
        booted.write("etc/default/grub", DEFAULTS + "GRUB_ENABLE_BLSCFG=false\n")
    result = booted.run(render("loader", resolve(RECIPES, "minimal", "dnf")))
    assert result.returncode != 0
    assert re.search(message, result.stderr)


def test_the_order_of_consoles_counts(booted: Machine) -> None:
    """The last one is /dev/console: the same arguments in another order are another boot."""
    turned = OPTIONS.replace("console=tty0 console=ttyS0,115200n8", "console=ttyS0,115200n8 console=tty0")
    edit = f"sed -i 's|^options.*|options {turned}|' {booted.root}/boot/loader/entries/*.conf"
    booted.program("grub2-mkconfig", f"{edit}; printf 'set timeout=0\\nblscfg\\n' >\"$2\"")
    run(booted, "minimal", "loader")
    assert options(booted) == OPTIONS.split()


def test_a_machine_without_the_file_gets_one(booted: Machine) -> None:
    (booted.root / "etc/default/grub").unlink()
    run(booted, "custom-init", "selinux", "loader", "boot")
    assert "init=/usr/sbin/instant-init" in arguments_of(booted)
    assert "nvme_core.io_timeout=4294967295" in options(booted)


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


@pytest.mark.parametrize("era", grubby.ERAS)
def test_grubby_is_imitated_with_its_harm(tmp_path: Path, era: str) -> None:
    """Otherwise nothing here would show that the recipes undo it."""
    machine = with_boot_files(tmp_path / "root", defaults=FORMS["both"], era=era)
    add = [str(machine.programs / "grubby"), "--update-kernel=ALL", "--args=a=1"]
    subprocess.run([*add, "--no-etc-grub-update"], check=True)
    assert (machine.root / "etc/default/grub").read_text() == FORMS["both"]
    subprocess.run(add, check=True)
    lines = (machine.root / "etc/default/grub").read_text().splitlines()
    assert lines[0] == lines[-1] == 'GRUB_CMDLINE_LINUX="quiet a=1"'
    assert options(machine).count("a=1") == 1
    assert (machine.root / "etc/kernel/cmdline").is_file() == (era >= "f36")

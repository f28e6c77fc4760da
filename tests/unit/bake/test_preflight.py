"""The steps that look and change nothing: preflight on AL2023 as it may be, prove on what became of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.al2023.machine import BASE, DEFAULTS, RECIPES, RELEASE, UUID, render, with_boot_files
from support.moved_machine import Machine

from instant_env.bake.recipe import load_base, resolve
from instant_env.settings import ROOT

#: What the two steps read besides the boot files.
MOVED = (
    "/etc/os-release", "/etc/ssh", "/sys/firmware", "/sys/class/tty", "/usr/sbin", "/etc/pam.d",
    "/etc/shadow", "/usr/lib", "/lib", "/usr/lib64", "/run/systemd", "/run/sshd",
)  # fmt: skip
KERNEL = "6.1.177-224.371.amzn2023.x86_64"
SSHD_SAYS = """permitrootlogin no
passwordauthentication no
pubkeyauthentication yes
authorizedkeyscommand /usr/sbin/instant-init login-keys %u
"""


@pytest.fixture
def stock(tmp_path: Path) -> Machine:
    """AL2023 as published: nothing to refuse."""
    machine = with_boot_files(tmp_path / "root")
    machine.also = MOVED
    machine.write("etc/os-release", 'NAME="Amazon Linux"\nID="amzn"\nVERSION_ID="2023"\n')
    machine.write("etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n")
    (machine.root / "sys/firmware/efi").mkdir(parents=True)
    machine.write("sys/class/tty/console/active", "tty0 ttyS0\n")
    for path in (*BASE.ssh_helpers, "/usr/sbin/sshd"):
        machine.write(path.lstrip("/"), "#!/bin/sh\n").chmod(0o755)
    machine.program("findmnt", 'case "$*" in *FSTYPE*SIZE*) echo vfat ;; *) echo xfs ;; esac')
    machine.program("uname", f'case "$1" in -m) echo x86_64 ;; *) echo {KERNEL} ;; esac')
    machine.program("rpm", 'case "$*" in *VERSION*) printf 2023.12.20261012 ;; esac')
    for name in ("mountpoint", "getent", "dnf"):
        machine.program(name, "exit 0")
    return machine


def preflight(machine: Machine, recipe: str = "minimal", **parameters: str) -> tuple[int, str, str]:
    result = machine.run(render("preflight", resolve(RECIPES, recipe, "dnf"), **parameters))
    root = str(machine.root)
    return result.returncode, result.stdout.replace(root, ""), result.stderr.replace(root, "")


def test_a_base_as_published_is_taken_and_its_facts_are_in_the_log(stock: Machine) -> None:
    status, output, errors = preflight(stock)
    assert (status, errors) == (0, "")
    assert "note:" not in output
    for fact in (
        f"fact: the kernel: {KERNEL}",
        "fact: the release: 2023.12.20261012",
        "fact: the consoles: tty0 ttyS0",
        "fact: /etc/default/grub: " + "|".join(DEFAULTS.splitlines()),
        "fact: SELinux: permissive",
    ):
        assert fact in output.splitlines()
    assert re.search(rf"fact: /boot/loader/entries/.*: linux /boot/vmlinuz-{RELEASE}\|", output)


def edit(path: str, old: str, new: str) -> Callable[[Machine], None]:
    def change(machine: Machine) -> None:
        for file in machine.root.glob(path):
            assert old in file.read_text()
            file.write_text(file.read_text().replace(old, new))

    return change


def remove(path: str) -> Callable[[Machine], None]:
    return lambda machine: (machine.root / path).unlink()


BREAKS: dict[str, Callable[[Machine], None]] = {
    "the root file system is ext4, expected xfs": lambda it: it.program("findmnt", "echo ext4"),
    'its version (VERSION_ID) is 2, expected 2023': edit("etc/os-release", '"2023"', '"2"'),
    "sshd-session, which sshd executes (there from release 2023.12.20260803 on)": remove(
        "usr/libexec/openssh/sshd-session"
    ),
    "missing packages, which have to stay: openssh-server": lambda it: it.program(
        "rpm", 'case "$*" in *" openssh-server") exit 1 ;; esac'
    ),
    "kernel arguments in a form that cannot be edited": edit(
        "etc/default/grub", ' quiet"', " quiet\\\n more\""
    ),
    "names no root, its arguments are elsewhere: linux": edit(
        "boot/loader/entries/*", f"root=UUID={UUID}", "$kernelopts"
    ),
    "the kernel's last console is a screen (console=... names it last): ttyS0 tty0": edit(
        "sys/class/tty/console/active", "tty0 ttyS0", "ttyS0 tty0"
    ),
    "SELinux is enforcing in /etc/selinux/config": edit("etc/selinux/config", "permissive", "enforcing"),
}  # fmt: skip
NOTES: dict[str, Callable[[Machine], None]] = {
    "the kernel is 6.18.48": lambda it: it.program("uname", '[ "$1" = -m ] && echo x86_64 || echo 6.18.48'),
    "sshd_config does not include sshd_config.d": edit("etc/ssh/sshd_config", "Include", "#Include"),
    "SELinux is disabled in /etc/selinux/config, expected permissive": edit(
        "etc/selinux/config", "permissive", "disabled"
    ),
    "no group wheel": lambda it: it.program("getent", '[ "$2" != wheel ]'),
    "grub.cfg does not read the entries": edit("boot/grub2/grub.cfg", "blscfg", "menuentry"),
}


@pytest.mark.parametrize("message", BREAKS)
def test_what_would_break_is_refused_with_what_was_found(stock: Machine, message: str) -> None:
    BREAKS[message](stock)
    status, _, errors = preflight(stock)
    assert status == 1
    assert message in errors


@pytest.mark.parametrize("message", NOTES)
def test_what_would_not_break_is_noted(stock: Machine, message: str) -> None:
    NOTES[message](stock)
    status, output, errors = preflight(stock)
    assert (status, errors) == (0, "")
    assert output.partition("\nnote: ")[2].startswith(message)


def test_every_difference_is_named_at_once(stock: Machine) -> None:
    for change in (*BREAKS.values(), *NOTES.values()):
        if change is not NOTES["SELinux is disabled in /etc/selinux/config, expected permissive"]:
            change(stock)
    status, output, errors = preflight(stock)
    assert status == 1
    for message in BREAKS:
        assert message in errors
    for message in NOTES:
        assert message in output or message.startswith("SELinux")
    (line,) = errors.splitlines()
    assert line.startswith(
        "preflight: this base differs from what recipes/bases/al2023.yml says (facts of 2026-10-14, release "
        "2023.12.20260831; this one is release "
    )


def test_enforcing_is_taken_where_the_recipe_changes_it(stock: Machine) -> None:
    BREAKS["SELinux is enforcing in /etc/selinux/config"](stock)
    assert preflight(stock, selinux="permissive")[0] == 0
    assert preflight(stock, "custom-init")[0] == 0


@pytest.mark.parametrize("form", ["", 'GRUB_CMDLINE_LINUX="quiet"\n', "GRUB_CMDLINE_LINUX=quiet\n", DEFAULTS])
def test_every_form_that_can_be_edited_is_taken(stock: Machine, form: str) -> None:
    stock.write("etc/default/grub", form)
    assert preflight(stock)[0] == 0


def test_the_include_line_is_put_where_it_is_missing(stock: Machine) -> None:
    stock.write("etc/ssh/sshd_config", "# edited\nX11Forwarding yes\n")
    for _ in range(2):
        result = stock.run(render("sshd", resolve(RECIPES, "minimal", "dnf")))
        assert result.returncode == 0, result.stderr
    text = (stock.root / "etc/ssh/sshd_config").read_text().replace(str(stock.root), "")
    assert text == "Include /etc/ssh/sshd_config.d/*.conf\n# edited\nX11Forwarding yes\n"


@pytest.fixture
def finished(stock: Machine) -> Machine:
    """AL2023 with a recipe's steps done, as far as prove looks."""
    stock.write("usr/sbin/sshd", f"#!/bin/sh\ncat <<'END'\n{SSHD_SAYS}END\n").chmod(0o755)
    stock.write("usr/sbin/instant-init", "#!/bin/sh\n").chmod(0o755)
    stock.write("etc/shadow", "root:*:1::::::\nec2-user:*:1::::::\n")
    stock.program("ssh-keygen", "exit 0")
    stock.program("sudo", "echo NOPASSWD")
    stock.write("boot/efi/EFI/BOOT/BOOTX64.EFI", "MZ")
    stock.write(
        "etc/pam.d/sshd",
        "#%PAM-1.0\nauth substack password-auth\naccount required pam_nologin.so\n"
        "-session required pam_gone.so\n"
        "session [success=ok default=bad] pam_selinux.so close\n",
    )
    stock.write("etc/pam.d/password-auth", "auth sufficient pam_unix.so nullok\n@include nothing\n")
    for module in ("pam_nologin.so", "pam_selinux.so", "pam_unix.so"):
        stock.write(f"usr/lib64/security/{module}", "x")
    return stock


def prove(machine: Machine) -> tuple[int, str, str]:
    script = render("prove", resolve(RECIPES, "minimal", "dnf"))
    # What sshd says is no path of this machine.
    kept = script.replace("authorizedkeyscommand /usr/sbin/", "authorizedkeyscommand @sbin@/")
    file = machine.moved(kept)
    file.write_text(file.read_text().replace("@sbin@", "/usr/sbin"))
    result = machine.run_file(file)
    root = str(machine.root)
    return result.returncode, result.stdout.replace(root, ""), result.stderr.replace(root, "")


def test_a_finished_machine_is_proved(finished: Machine) -> None:
    assert prove(finished) == (0, "", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("usr/lib64/security/pam_selinux.so"), "PAM names pam_selinux.so as control, and it is not"),
        (
            edit("etc/pam.d/password-auth", "@include", "account required /usr/lib64/security/pam_sss.so\n#"),
            "PAM names /usr/lib64/security/pam_sss.so as required, and it is not there",
        ),
        (remove("boot/efi/EFI/BOOT/BOOTX64.EFI"), "no /boot/efi/EFI/BOOT/BOOTX64.EFI, which starts GRUB"),
        (
            lambda machine: machine.write(
                "usr/lib/systemd/system/sshd.service.d/ec2-instance-connect.conf",
                "[Service]\nExecStart=/usr/sbin/sshd -D -o AuthorizedKeysCommand=/opt/aws/bin/eic_run\n",
            ),
            "ec2-instance-connect.conf has an AuthorizedKeysCommand of its own",
        ),
        (edit("usr/sbin/sshd", "permitrootlogin no", "permitrootlogin yes"), "sshd does not say: permitroot"),
    ],
)
def test_what_a_login_would_stumble_over_is_found(
    finished: Machine, change: Callable[[Machine], object], message: str
) -> None:
    change(finished)
    status, _, errors = prove(finished)
    assert status == 1
    assert message in errors


def test_a_module_that_does_not_count_is_noted(finished: Machine) -> None:
    (finished.root / "usr/lib64/security/pam_unix.so").unlink()
    status, output, _ = prove(finished)
    assert (status, output) == (0, "note: PAM names pam_unix.so as sufficient, and it is not there\n")


@pytest.mark.parametrize("name", ["al2023", "debian-12"])
def test_a_bases_facts_have_a_date(name: str) -> None:
    assert load_base(RECIPES, name).facts.as_of is not None


@pytest.mark.parametrize("family", ["apt", "dnf"])
def test_the_network_file_is_there_before_packages_go_and_is_for_physical_interfaces(family: str) -> None:
    recipe = resolve(RECIPES, "minimal", family)  # type: ignore[arg-type]
    names = [step.spec.name for step in recipe.steps]
    assert names.index("network") < names.index("strip")
    script = render("network", resolve(RECIPES, "minimal", "dnf"))
    assert "\n[Match]\nType=ether\nKind=!*\n\n" in script


def test_every_match_of_networkd_is_for_physical_interfaces() -> None:
    """Of all recipes and of the stand-ins for bases: by kind, or by the drivers of cards."""
    files = [*RECIPES.rglob("*.j2"), *(ROOT / "instant_env" / "localec2" / "stock").rglob("*.network")]
    matches = [
        (path, part.partition("\n[")[0])
        for path in files
        for part in path.read_text().split("\n[Match]\n" if path.suffix == ".j2" else "[Match]\n")[1:]
    ]
    assert {path.name for path, _ in matches} >= {"network.sh.j2", "80-ec2.network"}
    for path, match in matches:
        assert "Kind=!*" in match or match.startswith("Driver="), path

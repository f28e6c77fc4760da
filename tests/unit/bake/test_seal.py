"""The end of every bake: the script as it is, with files of the test's own in place of the kernel's."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from instant_env.bake.recipe import load_base
from instant_env.bake.seal import READ_ONLY_TIMEOUT_S, SEAL_FAILED, SEALED, power_off_lines, seal_script
from instant_env.settings import ROOT

WRITABLE = """/dev/nvme0n1p1 / xfs rw,noatime 0 0
/dev/nvme0n1p128 /boot/efi vfat ro 0 0
tmpfs /run tmpfs rw 0 0
"""
#: Of the audit's rules, which a Go test compares with the code.
AUDIT = ROOT / "docs" / "audit.md"
READ_ONLY = WRITABLE.replace("xfs rw,", "xfs ro,")


class Kernel:
    """A directory with /proc/sysrq-trigger, /proc/mounts, and programs that stand before the real ones.

    ``sleep`` is counted, and makes the file systems read-only when it was called ``remounts_after`` times.
    """

    def __init__(self, directory: Path, *, remounts_after: int = -1) -> None:
        self.directory = directory
        self.keys, self.mounts, self.log = (directory / name for name in ("keys", "mounts", "log"))
        self.mounts.write_text(WRITABLE)
        self.log.write_text("")
        (directory / "read-only").write_text(READ_ONLY)
        due = f'[ "$(grep -c ^sleep {self.log})" = {remounts_after} ]'
        turn = f"if {due}; then cp {directory}/read-only {self.mounts}; fi"
        self.program("sleep", f'echo "sleep $1" >>{self.log}\n{turn}')
        self.program("systemctl", f'echo "systemctl $*" >>{self.log}')

    def program(self, name: str, body: str) -> None:
        (self.directory / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.directory / name).chmod(0o755)

    def run(self, lines: str) -> subprocess.CompletedProcess[str]:
        """Run them with the seal's own trap before. What they print goes into the log, too, in order."""
        script = f"set -eu\nexec >>{self.log} 2>&1\ntrap 'echo \"{SEAL_FAILED}\"' EXIT\n{lines}"
        # The keys go to the log, too.
        script = script.replace(">/proc/sysrq-trigger", f">>{self.log}")
        script = script.replace("/proc/mounts", str(self.mounts))
        path = f"{self.directory}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        return subprocess.run(["sh", "-c", script], env=environment, text=True, check=False)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.mark.parametrize("remounts_after", [1, 7, READ_ONLY_TIMEOUT_S])
def test_the_power_goes_when_no_file_system_is_writable_any_more(tmp_path: Path, remounts_after: int) -> None:
    kernel = Kernel(tmp_path, remounts_after=remounts_after)
    assert kernel.run(power_off_lines()).returncode == 0
    waited = ["sleep 1"] * remounts_after
    end = ["sleep 1", SEALED, "sleep 1", "o", "sleep 30", "systemctl poweroff --force --force"]
    assert kernel.lines() == ["s", "u", *waited, *end]


def test_a_file_system_that_stays_writable_is_a_failure_that_stays(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    assert kernel.run(power_off_lines()).returncode == 1
    lines = kernel.lines()
    assert lines[-3:-1] == [
        WRITABLE.splitlines()[1],
        f"seal: a file system is still writable after {READ_ONLY_TIMEOUT_S} s",
    ]
    assert lines[-1] == SEAL_FAILED
    assert lines.count("sleep 1") == READ_ONLY_TIMEOUT_S
    assert "o" not in lines
    assert SEALED not in lines


@pytest.mark.parametrize("broken", ["awk", "sleep"])
def test_a_program_that_fails_does_not_pass_for_read_only(tmp_path: Path, broken: str) -> None:
    kernel = Kernel(tmp_path)
    kernel.program(broken, "exit 126")
    assert kernel.run(power_off_lines()).returncode != 0
    assert SEALED not in kernel.lines()
    assert "o" not in kernel.lines()


def test_directories_of_logs_stay() -> None:
    """auditd does not make its own, and ends with an error where it is missing (EC2 transcript of 2024-07-16,
    haxorof/ansible-role-docker-ce #175)."""
    script = seal_script(load_base(ROOT / "recipes", "al2023"))
    removals = [line for line in script.splitlines() if line.startswith("rm -rf ")]
    words = " ".join(removals).split()
    assert [word for word in words if word.startswith("/var/log")] == ["/var/log/journal/*"]


@pytest.mark.parametrize("ends_after", [0, 3, 99])
def test_auditd_is_ended_by_a_signal_before_its_logs_go(tmp_path: Path, ends_after: int) -> None:
    """Its unit refuses to be stopped (RefuseManualStop), and what is not ended writes on."""
    script = seal_script(load_base(ROOT / "recipes", "al2023"))
    part = script.partition("# Its unit refuses")[2].partition("\nrm -rf")[0]
    kernel = Kernel(tmp_path)
    active = f'[ "$(grep -c ^sleep {kernel.log})" -lt {ends_after} ]'
    kernel.program("systemctl", f'case "$*" in *is-active*) {active} ;; *) echo "$*" >>{kernel.log} ;; esac')
    kernel.run("#" + part)
    expected = ["kill auditd.service", *["sleep 1"] * min(ends_after, 10)] if ends_after else []
    assert kernel.lines() == [*expected, SEAL_FAILED], "the trap of the test's own"


def test_no_identity_of_a_daemon_that_the_audit_names_is_left(tmp_path: Path) -> None:
    """The seal's own lines, in a tree that has each place of the audit's rule, and what stays beside them."""
    rule = next(line for line in AUDIT.read_text().splitlines() if line.startswith("| daemon-identity | `"))
    places = re.findall(r"`([^`]+)`", rule)
    assert "etc/docker/key.json" in places
    for place in places:
        name = place.replace("io.containerd.*introspection*", "io.containerd.grpc.v1.introspection")
        path = tmp_path / name.replace("**", "docker-state.json").replace("*", "runc-overlayfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for name in (
        "etc/docker/daemon.json", "var/lib/docker/overlay2/0/diff/a",
        "var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    script = seal_script(load_base(ROOT / "recipes", "debian-12"))
    removals = [
        line for line in script.splitlines() if re.match("rm -rf .*(docker|containerd|buildkit)", line)
    ]
    assert removals
    subprocess.run(["sh", "-euc", "\n".join(removals).replace(" /", f" {tmp_path}/")], check=True)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["a", "daemon.json", "meta.db"]


@pytest.mark.parametrize("names", [(), ("etc/machine-id", "etc/hosts", "etc/resolv.conf", "etc/hostname")])
def test_what_names_the_builder_goes_where_it_is(tmp_path: Path, names: tuple[str, ...]) -> None:
    """None of these files has to be there: a base may leave /etc/hosts to nss-myhostname(8)."""
    (tmp_path / "etc").mkdir()
    for name in names:
        (tmp_path / name).write_text("127.0.0.1 localhost\n127.0.1.1 ip-172-31-2-68.ec2.internal\n")
    part = seal_script(load_base(ROOT / "recipes", "al2023")).partition("if [ -s /etc/machine-id ]")
    lines = (part[1] + part[2]).partition("\n\n")[0]
    assert "/etc/hosts" in lines
    subprocess.run(["sh", "-euc", re.sub("(?<=[ >:])/(etc|var)/", rf"{tmp_path}/\1/", lines)], check=True)
    texts = {path.name: path.read_text() for path in (tmp_path / "etc").iterdir()}
    if names:
        assert texts.pop("hosts") == "127.0.0.1 localhost\n"
    assert texts.pop("hostname") == ""
    assert set(texts.values()) <= {""}

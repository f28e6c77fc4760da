"""`invoke doctor` and the set-up script: what they say about machines that lack something."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from instant_env import requirements
from instant_env.arch import Arch
from instant_env.cli import doctor
from instant_env.cli.doctor import Status
from instant_env.localec2.qemu import command_line
from instant_env.localec2.stock import disk
from instant_env.requirements import Manager, Requirement, Scope
from instant_env.settings import ROOT, AcceleratorChoice, load

ABSENT = Requirement(
    name="absent",
    needed_for="nothing",
    scope=Scope.LOCAL,
    programs=("ie-absent",),
    apt="one two",
    dnf="three",
)


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH that holds nothing but what a test puts there."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(requirements, "SBIN", ())
    return directory


def program(directory: Path, name: str, body: str = "exit 0") -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The table


def test_every_requirement_has_a_debian_package_and_a_way_to_look() -> None:
    for row in requirements.TABLE:
        assert row.packages(Manager.APT), row.name
        assert row.programs or row.files or row.modules, row.name


def test_the_table_needs_only_the_standard_library() -> None:
    """Set-up imports it before anything is installed: -I -S leaves nothing but Python itself."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import instant_env.requirements"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_a_requirement_needs_all_programs_and_one_group_of_files(bare_path: Path, tmp_path: Path) -> None:
    row = Requirement(
        name="x", needed_for="x", scope=Scope.LOCAL, apt="x",
        programs=("ie-a", "ie-b"),
        files=((str(tmp_path / "yes"), str(tmp_path / "no")), (str(tmp_path / "yes"), str(tmp_path / "too"))),
    )  # fmt: skip
    program(bare_path, "ie-a")
    (tmp_path / "yes").touch()
    (tmp_path / "too").touch()
    assert row.where() is None
    program(bare_path, "ie-b")
    found = row.where()
    assert found is not None
    assert str(tmp_path / "yes") in found
    (tmp_path / "too").unlink()
    assert row.where() is None


def test_the_table_looks_for_what_is_used() -> None:
    """A path that only the table knows would let the doctor call a machine ready on which nothing boots."""
    rows = {row.name: row for row in requirements.TABLE}
    assert rows["UEFI firmware"].files == command_line._FIRMWARE[Arch.X86_64]
    assert rows["UEFI firmware for arm64"].files == command_line._FIRMWARE[Arch.ARM64]
    assert rows["QEMU for arm64"].programs == (command_line._SYSTEM[Arch.ARM64],)
    programs = {name for row in requirements.TABLE for name in row.programs}
    assert set(disk.TOOLS) <= programs


def test_root_does_not_need_what_only_others_need() -> None:
    names = {row.name for row in requirements.applicable(root=True)}
    assert {row.name for row in requirements.applicable(root=False)} - names == {"uidmap"}


def test_a_browser_is_for_tests_and_not_for_ubuntu(bootstrap: ModuleType) -> None:
    def names(distribution: str) -> set[str]:
        return {row.name for row in requirements.applicable(distribution=distribution)}

    assert names("debian") - names("ubuntu") == {"Chromium"}
    everything, demo = bootstrap.wanted([]), bootstrap.wanted(["--without-tests"])
    assert {row.name for row in everything} - {row.name for row in demo} >= {"Chromium", "shellcheck"}
    assert {row.scope for row in everything} - {row.scope for row in demo} == {Scope.TESTS}
    # What one target of its own needs is not installed for everybody.
    stand_in = bootstrap.wanted(["--stand-in"])
    assert {row.scope for row in stand_in} - {row.scope for row in everything} == {Scope.STAND_IN}


def test_what_only_the_stand_in_needs_has_its_own_command(
    bare_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(bare_path, "apt-get")
    row = dataclasses.replace(ABSENT, scope=Scope.STAND_IN)
    report = doctor.check(load(environ={}), table=[row])
    assert report.install == ""
    (item,) = (item for item in report.items if item.name == row.name)
    assert item.status is Status.WARNING
    assert "make test-al2023" in item.hint
    assert item.hint.endswith("apt-get install --no-install-recommends one two")


def test_only_other_machines_emulate_programs_for_arm64() -> None:
    names = {host: {row.name for row in requirements.applicable(host=host)} for host in ("x86_64", "aarch64")}
    assert names["x86_64"] - names["aarch64"] == {"QEMU's user emulation", "a kernel's build"}


def test_a_machine_that_cannot_run_arm64_programs_is_told_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    other = Arch.ARM64 if os.uname().machine == "x86_64" else Arch.X86_64
    item = doctor.foreign_item(other, tmp_path)
    assert item.status is doctor.Status.WARNING  # x86_64 works without
    assert "mount -t binfmt_misc" in item.hint
    assert doctor.foreign_item(Arch.parse(os.uname().machine), tmp_path).status is doctor.Status.OK


@pytest.mark.parametrize(
    ("manager", "root", "expected"),
    [
        (Manager.APT, True, "apt-get update && apt-get install --no-install-recommends a b"),
        (Manager.APT, False, "sudo apt-get update && sudo apt-get install --no-install-recommends a b"),
        (Manager.DNF, False, "sudo dnf install --setopt=install_weak_deps=False a b"),
        (Manager.BREW, False, "brew install a b"),
    ],
)
def test_install_command(manager: Manager, root: bool, expected: str) -> None:
    assert requirements.install_command(manager, ["a", "b"], root=root) == expected


def test_homebrew_is_not_taken_for_the_manager_of_a_debian_machine(bare_path: Path) -> None:
    assert requirements.detect_manager() is None
    program(bare_path, "brew")
    assert requirements.detect_manager() is Manager.BREW
    program(bare_path, "apt-get")
    assert requirements.detect_manager() is Manager.APT


# The report


def test_a_missing_program_fails_the_report_with_the_exact_command(bare_path: Path) -> None:
    program(bare_path, "apt-get")
    report = doctor.check(load(environ={}), table=[ABSENT])
    assert not report.ok
    assert report.install.endswith("apt-get install --no-install-recommends one two")
    assert report.install in report.render()
    line = next(line for line in report.render().splitlines() if "absent" in line)
    assert line.startswith("missing")
    assert "nothing" in line


def test_a_manager_without_the_package_says_so(bare_path: Path) -> None:
    program(bare_path, "brew")
    report = doctor.check(load(environ={}), table=[ABSENT])
    assert report.install == ""
    assert "brew has no package" in report.render()


def test_what_only_local_machines_need_does_not_fail_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    report = doctor.check(load({"cloud": "aws"}, environ={}), table=[ABSENT])
    statuses = {item.name: item.status for item in report.items}
    assert statuses["absent"] is Status.WARNING
    assert statuses["AWS credentials"] is Status.OK
    assert "KVM" not in statuses
    assert report.ok


def test_an_unknown_aws_profile_is_a_line_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    item = doctor.credentials_item("no-such-profile")
    assert item.status is Status.MISSING
    assert "no-such-profile" in item.detail


def test_the_report_is_json_with_the_verdict_in_it() -> None:
    data = json.loads(doctor.check(load(environ={})).model_dump_json())
    assert data["ok"] is all(item["status"] != "missing" for item in data["items"])
    assert {"name", "status", "detail", "needed_for", "hint"} == set(data["items"][0])


# The machine


def test_kvm_may_be_absent_unless_insisted_on(tmp_path: Path) -> None:
    absent = tmp_path / "kvm"
    assert doctor.kvm_item(AcceleratorChoice.AUTO, absent).status is Status.WARNING
    assert doctor.kvm_item(AcceleratorChoice.KVM, absent).status is Status.MISSING
    absent.touch()
    present = doctor.kvm_item(AcceleratorChoice.AUTO, absent)
    assert present.status is Status.OK
    assert "probe guest" in present.detail


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_kvm_without_permission_names_the_group(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)
    assert "usermod" in doctor.kvm_item(AcceleratorChoice.AUTO, device).hint


def test_a_taken_ssh_port_is_told_from_a_forbidden_one() -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))  # noqa: S104  (the case in question: sshd listens on all addresses)
        server.listen()
        port = server.getsockname()[1]
        item = doctor.ssh_port_item(port)
    assert item.status is Status.WARNING
    assert "another server" in item.hint
    assert doctor.ssh_port_item(port).status is Status.OK


def test_a_forbidden_ssh_port_names_the_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", forbidden)
    assert "sysctl net.ipv4.ip_unprivileged_port_start=22" in doctor.ssh_port_item(22).hint


def test_disk_space_is_looked_up_where_the_directory_will_be_made(tmp_path: Path) -> None:
    assert doctor.disk_item(tmp_path / "not" / "yet", needed_gib=0).status is Status.OK
    short = doctor.disk_item(tmp_path, needed_gib=10**9)
    assert short.status is Status.WARNING
    assert "cache_dir" in short.hint


def test_subordinate_ids_are_needed_in_both_files(tmp_path: Path) -> None:
    subuid, subgid = tmp_path / "subuid", tmp_path / "subgid"
    subuid.write_text("someone:100000:65536\n", encoding="utf-8")
    assert not doctor.has_subordinate_ids("someone", (subuid, subgid))
    subgid.write_text("someone:100000:65536\n", encoding="utf-8")
    assert doctor.has_subordinate_ids("someone", (subuid, subgid))
    assert not doctor.has_subordinate_ids("someoneelse", (subuid, subgid))


# Set-up


def test_setup_installs_only_what_is_missing(
    bootstrap: ModuleType, bare_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    log = bare_path / "log"
    present = Requirement(name="p", needed_for="p", scope=Scope.LOCAL, apt="present", programs=("apt-get",))
    program(
        bare_path,
        "apt-get",
        textwrap.dedent(f"""
            echo "$DEBIAN_FRONTEND $@" >>{log}
            case "$*" in *" install "*) /bin/cp {bare_path}/apt-get {bare_path}/ie-absent ;; esac
        """),
    )
    program(bare_path, "env", 'exec /usr/bin/env "$@"')
    assert bootstrap.install_system_packages([present, ABSENT])
    lines = log.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("noninteractive")
    assert lines[1].endswith("install --yes --no-install-recommends one two")
    assert bootstrap.install_system_packages([present, ABSENT])
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2, "nothing to do the second time"


def test_setup_without_rights_names_packages_and_command_in_one_line(
    bootstrap: ModuleType,
    bare_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program(bare_path, "apt-get", "exit 9")
    assert not bootstrap.install_system_packages([ABSENT])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "sudo apt-get install --no-install-recommends one two" in said[0]


def test_setup_stops_where_it_cannot_go_on(bootstrap: ModuleType, bare_path: Path) -> None:
    core = Requirement(name="core", needed_for="x", scope=Scope.CORE, apt="x", programs=("ie-absent",))
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.install_system_packages([core])
    assert caught.value.exit_code == 3


def test_a_failed_install_shows_the_command_and_its_last_words(
    bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(bootstrap.SetupError, match=r"trying failed \(exit code 7\): sh -c"):
        bootstrap.run(["sh", "-c", "echo E: no such package; exit 7"], "trying")
    assert "E: no such package" in capsys.readouterr().err


@pytest.mark.slow
def test_a_moved_venv_is_noticed(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_at(venv: Path) -> bool:
        monkeypatch.setattr(bootstrap, "VENV", venv)
        monkeypatch.setattr(bootstrap, "PYTHON", venv / "bin" / "python")
        return bool(bootstrap.venv_works())

    assert not look_at(tmp_path / "one")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "one"], check=True)
    assert look_at(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert not look_at(tmp_path / "two")
    (tmp_path / "two" / "bin" / "python").unlink()
    assert not look_at(tmp_path / "two")

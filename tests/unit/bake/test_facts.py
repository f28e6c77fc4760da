"""`invoke facts`: what it makes and leaves, what its file may not hold, and how facts are compared."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from support.al2023.machine import BASE, DEFAULTS, OPTIONS, RECIPES
from support.pretend_bakery import NOTHING, Bakery, Calls

from instant_env.bake import bake as bake_module
from instant_env.bake import builder
from instant_env.bake.builder import FIRST_BOOT_TIMEOUT_S
from instant_env.bake.execute import StepError
from instant_env.bake.facts.collect import collect, plan
from instant_env.bake.facts.compare import Verdict, compare
from instant_env.bake.facts.questions import answers, questions, script
from instant_env.bake.facts.redaction import redacted
from instant_env.bake.recipe import Facts, load_base, resolve
from instant_env.cli.facts.task import facts as facts_verb
from instant_env.cloud import session
from instant_env.settings import CloudName

pytest_plugins = ("support.pretend_bakery",)

ACCOUNT, ADDRESS, INSTANCE = "123456789012", "10.1.2.3", "i-0123456789abcdef0"
FIRST_BOOT = (
    "status: done\nboot_status_code: enabled-by-generator\nls: cannot access '/run/cloud-init-selinux'"
)


def read_by(bakery: Bakery, **texts: str) -> None:
    """The guest answers what it is asked, with these texts by name."""
    reply = "".join(f"\n@@ instant-env facts: {name}\n{text}\n" for name, text in texts.items())
    bakery.guest.answers.append(("sh /run/instant-bake/facts.sh", reply, 0))
    bakery.guest.answers.append(("first.sh 2>&1", "fact: x: 1\nnote: the kernel is new\n", 0))


def test_a_stock_machine_is_read_and_ended(bakery: Bakery) -> None:
    texts = {"fstab": f"# {ACCOUNT} {INSTANCE}", "sshd-settings": f"listenaddress {ADDRESS}:22"}
    read_by(bakery, **texts, **{"first-boot": FIRST_BOOT})
    calls = Calls(bakery.cloud)
    planned = plan(bakery.cloud, bakery.settings, bakery.request(), lambda _: None)
    record = collect(bakery.cloud, bakery.settings, planned, lambda _: None)
    assert bakery.leftovers() == NOTHING
    assert bakery.images() == []
    assert record["answers"]["sshd-settings"] == "listenaddress ADDRESS:22"
    text = json.dumps(record)
    for secret in (ACCOUNT, ADDRESS, INSTANCE):
        assert secret not in text
    by_name = {one["name"]: one for one in record["comparisons"]}
    assert by_name["preflight"]["verdict"] == "holds"
    assert by_name["preflight"]["finding"].endswith("the kernel is new")
    assert by_name["first boot"]["verdict"] == "holds"
    assert by_name["kernel"]["verdict"] == "unknown", "it was not answered"
    assert record["base_image"]["id"] == planned.image.id
    (launch,) = (parameters for action, parameters in calls.requests if action == "RunInstances")
    data = base64.b64decode(launch["UserData"]).decode()
    assert "--on-active=1800s" in data
    assert json.loads(data.partition("\n")[2])["power_state"] == {"mode": "reboot", "condition": False}
    changes = set(calls.changing)
    assert changes <= {
        "ImportKeyPair", "CreateSecurityGroup", "AuthorizeSecurityGroupIngress", "RunInstances",
        "TerminateInstances", "DeleteSecurityGroup", "DeleteKeyPair",
    }, "nothing of the account is changed"  # fmt: skip


@pytest.mark.parametrize("failing", ["facts.sh", "cloud-init status --wait", "mount -t tmpfs"])
def test_whatever_fails_the_machine_is_ended(bakery: Bakery, failing: str) -> None:
    bakery.guest.answers.append((failing, "", 1))
    planned = plan(bakery.cloud, bakery.settings, bakery.request(), lambda _: None)
    with pytest.raises(StepError):
        collect(bakery.cloud, bakery.settings, planned, lambda _: None)
    assert bakery.leftovers() == NOTHING


def test_an_interrupt_ends_the_machine(bakery: Bakery) -> None:
    planned = plan(bakery.cloud, bakery.settings, bakery.request(), lambda _: None)

    def progress(line: str) -> None:
        if line == "reading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(bakery.cloud, bakery.settings, planned, progress)
    assert bakery.leftovers() == NOTHING


@pytest.fixture
def at_hand(bakery: Bakery, monkeypatch: pytest.MonkeyPatch) -> Bakery:
    """The verb finds this cloud and these settings."""
    monkeypatch.setattr(session, "connect", lambda *_: bakery.cloud)
    monkeypatch.setattr("instant_env.cli.facts.task.read_settings", lambda **_: bakery.settings)
    return bakery


def test_the_verb_writes_a_file_and_prints_what_differs(
    at_hand: Bakery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_by(at_hand, **{"first-boot": "status: running"})
    path = tmp_path / "facts.json"
    facts_verb(Context(), base="pretend", recipe="pretend", output=str(path))
    lines = capsys.readouterr().out.splitlines()
    assert "differs  first boot is over, and does not reboot: running" in lines
    assert lines[-1].endswith(str(path))
    record = json.loads(path.read_text())
    facts_verb(Context(), base="pretend", recipe="pretend", output=str(path), json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("file") == str(path)
    assert set(printed) == set(record)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_makes_nothing_and_says_what_it_would(
    at_hand: Bakery, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    calls = Calls(at_hand.cloud)
    facts_verb(Context(), base="pretend", recipe="pretend", dry_run=True, json=as_json)
    assert calls.changing == []
    output = capsys.readouterr().out
    if as_json:
        assert json.loads(output)["cost"] == {"likely_usd": 0.0, "worst_usd": 0.0}
    else:
        assert "costs   nothing: a machine of localec2" in output.splitlines()
        assert "instance instant-env-builder-" in output


@pytest.mark.slow
def test_it_costs_cents(bakery: Bakery, monkeypatch: pytest.MonkeyPatch) -> None:
    """m7i.large at $0.1008 an hour, beside it 2 GiB of gp3."""
    monkeypatch.setattr("instant_env.cloud.prices._price_from_api", lambda *_: None)
    planned = plan(bakery.cloud, bakery.settings, bakery.request(), lambda _: None)
    aws = dataclasses.replace(bakery.cloud, name=CloudName.AWS)
    likely, worst = planned.cost(aws)
    hour = 0.1008 + 2 * 0.08 / 730
    assert likely == pytest.approx(hour / 15)
    assert worst == pytest.approx(hour / 2)


def test_a_script_answers_whatever_its_commands_do() -> None:
    text = script({"a": "echo 1; echo 2 >&2", "b": "no-such-program", "c": "exit 3", "d": "cat; echo last"})
    result = subprocess.run(["sh"], input=text, capture_output=True, text=True, check=True)
    found = answers(result.stdout)
    assert found["a"] == "1\n2"
    assert "not found" in found["b"]
    assert (found["c"], found["d"]) == ("", "last")


@pytest.mark.parametrize("name", ["al2023", "debian-12"])
def test_questions_are_a_script_that_shells_take(name: str, tmp_path: Path) -> None:
    base = load_base(RECIPES, name)
    asked = questions(base, resolve(RECIPES, "minimal", base.family))
    file = tmp_path / "facts.sh"
    file.write_text(script(asked))
    # Globs and lists are to be split; what is missing is an answer.
    excluded = "--exclude=SC2046,SC2103,SC2164,SC2010,SC2012"
    result = subprocess.run(["shellcheck", excluded, file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"arn:aws:iam::{ACCOUNT}:role/x", "arn:aws:iam::ACCOUNT:role/x"),
        (f"owner {ACCOUNT}", "owner ACCOUNT"),
        ("nvme_core.io_timeout=4294967295", "nvme_core.io_timeout=4294967295"),
        ("rpm 4.16.1.3-29.amzn2023.0.6 x86_64", "rpm 4.16.1.3-29.amzn2023.0.6 x86_64"),
        ("server 169.254.169.123 prefer", "server 169.254.169.123 prefer"),
        ("inet 172.31.5.6/20", "inet ADDRESS/20"),
        ("ip-172-31-5-6.ec2.internal", "ip-ADDRESS.ec2.internal"),
        ("0a:ff:c1:22:33:44", "MAC"),
        ("vol0123456789abcdef0", "vol-ID"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1 me@home", "KEY"),
        ("AKIAIOSFODNN7EXAMPLE", "ACCESS-KEY-ID"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "KEY\n"),
    ],
)
def test_what_identifies_somebody_is_replaced(text: str, expected: str) -> None:
    assert redacted(text) == expected


#: A machine of AL2023 as the recipes want it.
STOCK = {
    "release": "system-release 2023.12.20260831",
    "first-boot": FIRST_BOOT,
    "sshd-includes": "Include /etc/ssh/sshd_config.d/*.conf",
    "removal": (
        "Dependencies resolved.\n====\n Package  Arch  Version  Repository  Size\n====\nRemoving:\n"
        " words    noarch   3.0   @System   4 M\nRemoving unused dependencies:\n"
        " net-tools  x86_64  2  @System  1 M\n"
        "\nTransaction Summary\n====\nRemove 2 Packages\n\nOperation aborted.\n"
    ),
    "kernel-options": "".join(
        f"CONFIG_{name}=y\n" for name in ("BLK_DEV_NVME", "XFS_FS", "EFI_STUB", "DEVTMPFS", "EFI_PARTITION")
    ),
    "grub-defaults": DEFAULTS,
    "boot-entries": f"/boot/loader/entries/a.conf:title x\n/boot/loader/entries/a.conf:options {OPTIONS}",
    "grub-configuration": "3:set timeout=0\n99:insmod blscfg\n100:blscfg",
    "grub-writes-entries": "/etc/grub.d/10_linux:100:update_bls_cmdline()",
    "grubby": "grubby version 8.40\nUsage: grubby [OPTION...]",
    "pam-owners": "pam_unix.so pam\npam_systemd.so systemd-pam",
    "resolver": "/run/systemd/resolve/resolv.conf",
    "units-failed": "",
    "boot-times": "Startup finished in 2s\n 1.203s a.service\n  900ms b.service\n1min 2.5s x.service",
}


def compared(**changes: str) -> dict[str, tuple[str, str]]:
    found = STOCK | {name.replace("_", "-"): text for name, text in changes.items()}
    lines = compare(found, BASE, resolve(RECIPES, "minimal", "dnf"))
    return {one.name: (one.verdict.value, one.finding) for one in lines}


def test_a_machine_as_the_recipes_want_it_holds() -> None:
    lines = compared()
    assert {verdict for verdict, _ in lines.values()} == {Verdict.HOLDS, Verdict.LOOK}
    assert lines["removal"] == ("holds", "1 besides: net-tools")
    assert lines["grub2-mkconfig"] == ("look", "always")
    marked = compared(removal=STOCK["removal"].replace("net-tools", "chrony"))["removal"]
    assert marked == ("holds", "only a dependency so far, and kept: chrony; 1 besides: chrony")
    assert lines["boot times"][1] == "1.203s a.service; 900ms b.service; 1min 2.5s x.service"


@pytest.mark.parametrize(
    ("name", "change", "finding"),
    [
        ("release", {"release": "system-release 2023.13.20270101"}, "2023.13.20270101"),
        ("first boot", {"first_boot": FIRST_BOOT + "\n/run/cloud-init-selinux-reboot"}, "wants to reboot"),
        ("sshd", {"sshd_includes": ""}, "no line"),
        (
            "removal",
            {"removal": STOCK["removal"].replace(" words ", " chrony ")},
            "chrony of what has to stay",
        ),
        ("removal", {"removal": STOCK["removal"].replace(" words ", " shim-x64 ")}, "shim-x64 of what has"),
        ("removal", {"removal": "Error: protected packages: grub2"}, "Error: protected packages: grub2"),
        ("kernel", {"kernel_options": "CONFIG_XFS_FS=m\n"}, "XFS_FS=m"),
        ("kernel arguments", {"grub_defaults": 'GRUB_CMDLINE_LINUX="a \\\n b"'}, "GRUB_CMDLINE_LINUX="),
        ("boot entries", {"boot_entries": "/boot/loader/entries/a.conf:options $kernelopts"}, "$kernelopts"),
        ("GRUB", {"grub_configuration": "3:set timeout=0\n9:menuentry x"}, "set timeout=0"),
        ("PAM", {"pam_owners": "pam_sss.so sssd-client"}, "sssd-client"),
        ("resolv.conf", {"resolver": ""}, "no link"),
        ("units", {"units_failed": "auditd.service loaded failed failed"}, "auditd.service"),
    ],
)
def test_what_differs_is_said_with_what_was_found(name: str, change: dict[str, str], finding: str) -> None:
    lines = compared(**change)
    assert lines[name][0] == Verdict.DIFFERS
    assert finding in lines[name][1]
    assert [one for one, (verdict, _) in lines.items() if verdict == Verdict.DIFFERS] == [name]


def test_a_bake_waits_for_the_end_of_the_first_boot(bakery: Bakery) -> None:
    """sshd answers long before; strip removes cloud-init."""
    calls = Calls(bakery.cloud)
    bakery.bake()
    commands = bakery.guest.commands
    (wait,) = (n for n, command in enumerate(commands) if "cloud-init status --wait" in command)
    first = next(n for n, command in enumerate(commands) if "first.sh" in command)
    assert wait < first
    assert f"timeout {FIRST_BOOT_TIMEOUT_S} " in commands[wait]
    builder: dict[str, Any] = next(values for action, values in calls.requests if action == "RunInstances")
    data = json.loads(base64.b64decode(builder["UserData"]).decode().partition("\n")[2])
    assert data["power_state"] == {"mode": "reboot", "condition": False}


def test_a_first_boot_without_an_end_ends_the_bake(bakery: Bakery) -> None:
    bakery.guest.answers.append(("cloud-init status --wait", "", 1))
    with pytest.raises(StepError, match="the first boot did not end within"):
        bakery.bake()
    assert bakery.leftovers() == NOTHING


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (1, 0), (2, 0), (124, 1)])
def test_errors_of_the_bases_own_modules_do_not_count(tmp_path: Path, status: int, expected: int) -> None:
    """cloud-init's exit status; 124 is timeout(1)'s."""
    (tmp_path / "timeout").write_text(f"#!/bin/sh\nexit {status}\n")
    (tmp_path / "cloud-init").write_text("#!/bin/sh\n")
    for name in ("timeout", "cloud-init"):
        (tmp_path / name).chmod(0o755)
    commands: list[str] = []

    def run(_connection: object, arguments: list[str], _log: object, **_: Any) -> str:
        commands.append(arguments[-1])
        return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "run_as_root", run)
        builder.wait_for_first_boot(None, None, lambda _: None)  # type: ignore[arg-type]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    result = subprocess.run(["sh", "-c", commands[0]], env=environment, check=False)
    assert result.returncode == expected


def test_a_newer_ami_than_the_facts_is_said_plainly(bakery: Bakery) -> None:
    path = bakery.settings.recipes_dir / "bases" / "pretend.yml"
    text = path.read_text()
    for date, is_newer in (("2020-01-02", True), ("2999-01-02", False)):
        path.write_text(f"{text}facts:\n  as_of: {date}\n")
        lines: list[str] = []
        bake_module.prepare(bakery.cloud, bakery.settings, bakery.request(), lines.append)
        notes = [line for line in lines if "newer than the facts in recipes/bases/pretend.yml" in line]
        assert len(notes) == is_newer
    assert Facts().as_of is None


def test_apts_dry_run_is_read() -> None:
    base, recipe = load_base(RECIPES, "debian-12"), resolve(RECIPES, "minimal", "apt")
    text = (
        "The following packages were automatically installed and are no longer required:\n  eject iproute2\n"
        "  udev\nUse 'apt autoremove' to remove them.\nPurg cloud-init [22.4]\n"
    )

    def removal(text: str) -> tuple[str, str]:
        (line,) = (one for one in compare({"removal": text}, base, recipe) if one.name == "removal")
        return line.verdict.value, line.finding

    kept = "only a dependency so far, and kept: iproute2, udev"
    assert removal(text) == ("holds", f"{kept}; 3 besides: eject, iproute2, udev")
    assert removal(text + "Purg sudo [1]\n")[0] == "differs"
    assert removal("E: Unable to lock") == ("differs", "E: Unable to lock")


def test_what_a_script_notes_is_shown(bakery: Bakery) -> None:
    bakery.guest.answers.append(("first.sh", "fact: 1\nnote: the kernel is 6.18\n", 0))
    lines: list[str] = []
    bakery.bake(lines.append)
    assert "note: the kernel is 6.18" in lines
    assert "fact: 1" not in lines

"""A stock image's lease: the key and a timer by cloud-config, and the timer's own program."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from support.patience import until

from instant_env.cloud.instances import Market
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.tags import Role
from instant_env.launch.cloud_config import EARLY_UNIT, END_FILE, PROGRAM, UNIT, cloud_config, timer_command
from instant_env.launch.techniques import LaunchSpec, find_technique
from instant_env.public_key import PublicKey
from instant_env.user_data import MAX_BYTES, UserData, format_time

KEY = PublicKey.parse(f"{KeyPair.generate().public_key.bare} a\u00fc: comment")
END = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)


def files(text: str) -> dict[str, str]:
    return {one["path"]: one["content"] for one in yaml.safe_load(text)["write_files"]}


def test_the_document_is_what_cloud_init_reads() -> None:
    text = cloud_config(KEY, END)
    assert text.startswith("#cloud-config\n")
    assert len(text) <= MAX_BYTES
    document = yaml.safe_load(text)
    assert document["ssh_authorized_keys"] == [KEY.bare]
    assert files(text)[END_FILE] == "2026-12-01T12:00:00Z\n"
    assert f"ExecStart=/usr/bin/python3 {PROGRAM} {END_FILE}\n" in files(text)[f"/etc/systemd/system/{UNIT}"]
    assert document["runcmd"][-1] == ["systemctl", "enable", "--now", UNIT]


def cold_user_data(key_name: str, *, ttl_s: int | None = None, end: datetime = END) -> str | None:
    spec = LaunchSpec(
        run_id="r", name="n", role=Role.LEASE, instance_type="m7i.large", key_name=key_name,
        security_group_id="", market=Market.ON_DEMAND, expires_at=end, user_data=UserData(ttl_s=ttl_s),
        client_token="t", public_key=KEY,
    )  # fmt: skip
    return find_technique("cold").user_data(spec)


def test_cold_has_a_timer_and_without_a_key_pair_its_key_as_well() -> None:
    """The baseline of measurements stays what everybody launches, but for the one command."""
    text = cold_user_data("operators", ttl_s=2700)
    assert text is not None
    (command,) = boot_commands(text)
    assert "--on-active=2700s" in command
    assert yaml.safe_load(text).keys() == {"bootcmd"}
    assert cold_user_data("") == cloud_config(KEY, END)


def boot_commands(text: str) -> list[list[str]]:
    """What cloud-init runs before anything else of the document, at every start."""
    commands: list[list[str]] = yaml.safe_load(text)["bootcmd"]
    return commands


def test_a_lease_of_cold_has_a_timer_before_its_own_program_runs() -> None:
    """runcmd comes last in a boot; a machine that does not get so far would run for ever."""
    (command,) = boot_commands(cloud_config(KEY, END))
    assert "--on-calendar=2026-12-01 12:00:00 UTC" in command
    assert f"--unit={EARLY_UNIT}" in command
    # A tag may put the end off: then the early timer must be gone.
    unit = files(cloud_config(KEY, END))[f"/etc/systemd/system/{UNIT}"]
    assert f"ExecStartPre=-/usr/bin/systemctl stop {EARLY_UNIT}.timer\n" in unit


def test_the_early_timer_waits_for_nothing_that_waits_for_it() -> None:
    """cloud-init runs before sysinit.target, on which units depend by default: the boot would stand still."""
    command = timer_command("u", "--on-active=1s")
    assert command[:2] == ["systemd-run", "--quiet"]
    assert {"--timer-property=DefaultDependencies=no", "--property=DefaultDependencies=no"} <= set(command)
    assert command[-3:-1] == ["sh", "-c"]
    assert command[-1].startswith("systemctl poweroff;")
    assert command[-1].endswith("systemctl poweroff --force --force")


@dataclass
class Metadata:
    """A metadata service: ``tag`` None is 404, and an empty one an answer of 500. Its clock may differ."""

    tag: str | None = None
    shift: timedelta = timedelta()
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def serving(self) -> Iterator[Metadata]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def date_time_string(self, timestamp: float | None = None) -> str:  # noqa: ARG002
                return format_datetime(datetime.now(UTC) + service.shift, usegmt=True)

            def do_PUT(self) -> None:
                self._answer("token")

            def do_GET(self) -> None:
                assert self.headers["X-aws-ec2-metadata-token"] == "token"
                service.asked.append(self.path)
                self._answer(service.tag)

            def _answer(self, text: str | None) -> None:
                self.send_response(404 if text is None else 200 if text else 500)
                self.end_headers()
                self.wfile.write((text or "").encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


@contextmanager
def timer(directory: Path, metadata: Metadata, end: datetime, answer_limit_s: float = 600) -> Iterator[Path]:
    """The program that the document has, with short pauses, and a systemctl that writes what it was told."""
    program = files(cloud_config(KEY, end))[PROGRAM]
    shorter = {"PAUSE_S = 5.0": 0.05, "PATIENCE_S = 30.0": 0.0, "ANSWER_LIMIT_S = 30.0": answer_limit_s}
    for line, value in shorter.items():
        assert f"\n{line}\n" in program
        program = program.replace(line, f"{line.partition('=')[0]}= {value}")
    (directory / "timer.py").write_text(program)
    (directory / "end").write_text(format_time(end) + "\n")
    said = directory / "said"
    (directory / "systemctl").write_text(f'#!/bin/sh\necho "$@" >>{said}\n')
    (directory / "systemctl").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{directory}:{os.environ['PATH']}",
        "http_proxy": "http://127.0.0.1:1",
    }
    with subprocess.Popen(
        [sys.executable, directory / "timer.py", directory / "end", metadata.url], env=environment
    ) as process:
        try:
            yield said
        finally:
            process.kill()


def later(**difference: float) -> datetime:
    return datetime.now(UTC) + timedelta(**difference)


def test_the_tag_moves_the_end_and_powers_the_machine_off(tmp_path: Path) -> None:
    with (
        Metadata(tag=format_time(later(hours=2))).serving() as metadata,
        timer(tmp_path, metadata, later(hours=1)) as said,
    ):
        until(lambda: len(metadata.asked) > 2)
        assert not said.exists()
        metadata.tag = "soon"  # a slip changes nothing
        asked = len(metadata.asked)
        until(lambda: len(metadata.asked) > asked + 2)
        assert not said.exists()
        metadata.tag = format_time(later(seconds=-1))
        until(lambda: said.exists() and len(said.read_text().splitlines()) == 3)
        assert said.read_text().splitlines() == ["poweroff", "poweroff --force", "poweroff --force --force"]


@pytest.mark.parametrize("tag", [None, ""])
def test_without_a_tag_the_end_of_the_launch_counts(tmp_path: Path, tag: str | None) -> None:
    """At once where there is no tag, and after a while where the service does not answer."""
    metadata = Metadata(tag=tag)
    with metadata.serving(), timer(tmp_path, metadata, later(hours=-1), 0.5) as said:
        until(said.exists)


def test_a_start_after_the_old_end_waits_for_the_tag(tmp_path: Path) -> None:
    metadata = Metadata(tag="")
    with metadata.serving(), timer(tmp_path, metadata, later(hours=-1)) as said:
        until(lambda: len(metadata.asked) > 3)
        assert not said.exists()
        metadata.tag = format_time(later(hours=1))  # extended before the start
        asked = len(metadata.asked)
        until(lambda: len(metadata.asked) > asked + 3)
        assert not said.exists()


def test_the_services_clock_counts(tmp_path: Path) -> None:
    metadata = Metadata(tag=format_time(later(minutes=30)), shift=timedelta(hours=1))
    with metadata.serving(), timer(tmp_path, metadata, later(hours=12)) as said:
        until(said.exists)

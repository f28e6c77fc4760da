"""User data for stock images: a timer that ends the machine, and for a lease the key as well.

cloud-init reads it (its documentation, "User-data formats" and "Module reference"). A lease's key does not
come by a key pair of EC2, which takes neither ECDSA nor FIDO keys. JSON is YAML, and a library writes it from
typed values.

The timer is armed by ``bootcmd``, at each start and before sshd: nothing of ours comes earlier on such a
machine, and one whose first boot does not come to its end has it, too. It is a unit of systemd's own manager:
a process for a moment, and none while it waits.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instant_env.public_key import PublicKey
from instant_env.user_data import format_time

PROGRAM = "/usr/local/lib/instant-env/cold_timer.py"
END_FILE = "/etc/instant-env/expires-at"
UNIT = "instant-env-timer.service"
#: The timer that ``bootcmd`` arms.
EARLY_UNIT = "instant-env-early-timer"
#: An orderly shutdown that takes longer is cut short.
_PATIENCE_S = 60
_UNIT_TEXT = f"""\
[Unit]
Description=Power off when the time of this machine is over

[Service]
ExecStartPre=-/usr/bin/systemctl stop {EARLY_UNIT}.timer
ExecStart=/usr/bin/python3 {PROGRAM} {END_FILE}
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


def timer_command(unit: str, *when: str) -> list[str]:
    """The command that arms a timer of this name, which powers the machine off ``when`` systemd-run's options
    say.

    Timer and service have no default dependencies: those on sysinit.target would have the command wait for a
    boot that waits for it, as cloud-init runs before that target (systemd.timer(5), "Default Dependencies"),
    and would keep the service from a machine whose boot hangs. Nor does the shutdown that the service begins
    stop it.
    """
    power_off = f"systemctl poweroff; sleep {_PATIENCE_S}; systemctl poweroff --force --force"
    free = "DefaultDependencies=no"
    return [
        "systemd-run", "--quiet", f"--unit={unit}", f"--timer-property={free}", f"--property={free}", *when,
        "sh", "-c", power_off,
    ]  # fmt: skip


def timer_config(ttl_s: int, **more: Any) -> str:
    """The timer: the machine ends ``ttl_s`` seconds after each start of its system. ``more`` are further keys
    of a cloud-config."""
    return _document({"bootcmd": [timer_command(EARLY_UNIT, f"--on-active={ttl_s}s")], **more})


def cloud_config(public_key: PublicKey, expires_at: datetime) -> str:
    """The default user takes ``public_key``, and the machine ends at ``expires_at`` or at the time that its
    tag instant-env:expires-at has then, which needs tags in metadata.

    The text depends on the arguments alone: a repeated request with the same client token has to be the same.
    """
    # Until the unit below takes over, which follows the tag.
    at_launch = f"--on-calendar={expires_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    timer = (Path(__file__).parent / "cold_timer.py").read_text(encoding="ascii")
    document = {
        "bootcmd": [timer_command(EARLY_UNIT, at_launch)],
        "ssh_authorized_keys": [public_key.bare],
        "write_files": [
            _file(END_FILE, format_time(expires_at) + "\n"),
            _file(PROGRAM, timer),
            _file(f"/etc/systemd/system/{UNIT}", _UNIT_TEXT),
        ],
        "runcmd": [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", UNIT]],
    }
    return _document(document)


def _document(document: dict[str, Any]) -> str:
    return f"#cloud-config\n{json.dumps(document)}\n"


def _file(path: str, content: str) -> dict[str, Any]:
    return {"path": path, "content": content, "owner": "root:root", "permissions": "0644"}

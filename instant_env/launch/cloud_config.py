"""User data for a stock image that somebody holds a lease of: the key, and a timer that ends the machine.

cloud-init reads it (its documentation, "User-data formats" and "Module reference"). Not by a key pair of EC2,
which takes neither ECDSA nor FIDO keys. JSON is YAML, and a library writes it from typed values.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from instant_env.public_key import PublicKey
from instant_env.user_data import format_time

PROGRAM = "/usr/local/lib/instant-env/cold_timer.py"
END_FILE = "/etc/instant-env/expires-at"
UNIT = "instant-env-timer.service"
_UNIT_TEXT = f"""\
[Unit]
Description=Power off when the time of this machine is over

[Service]
ExecStart=/usr/bin/python3 {PROGRAM} {END_FILE}
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


def cloud_config(public_key: PublicKey, expires_at: datetime) -> str:
    """The default user takes ``public_key``, and the machine ends at ``expires_at`` or at the time that its
    tag instant-env:expires-at has then, which needs tags in metadata."""
    timer = (Path(__file__).parent / "cold_timer.py").read_text(encoding="ascii")
    document = {
        "ssh_authorized_keys": [public_key.bare],
        "write_files": [
            _file(END_FILE, format_time(expires_at) + "\n"),
            _file(PROGRAM, timer),
            _file(f"/etc/systemd/system/{UNIT}", _UNIT_TEXT),
        ],
        "runcmd": [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", UNIT]],
    }
    return f"#cloud-config\n{json.dumps(document)}\n"


def _file(path: str, content: str) -> dict[str, Any]:
    return {"path": path, "content": content, "owner": "root:root", "permissions": "0644"}

"""docs/service.md: its commands, run in order as a reader would, except those that boot machines."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import asyncssh
import pytest
import yaml
from support.service.served import serving

from instant_env.service.operations import Code
from instant_env.service_settings import ServiceSettings
from instant_env.settings import ROOT, Settings

PAGE = ROOT / "docs" / "service.md"
_BLOCK = re.compile(r"^```sh ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Between the blocks of one shell.
_MARK = "=== block"


def script(blocks: list[tuple[str, str]]) -> str:
    """One shell runs all blocks, since later ones use variables of earlier ones."""
    lines = ["set -eu -o pipefail"]
    for number, (kind, commands) in enumerate(blocks):
        lines.append(f"echo '{_MARK} {number}'")
        if kind == "fails":
            lines.append(f"if {{ {commands.strip()}\n}}; then echo 'it did not fail'; exit 9; fi")
        elif kind != "machines":
            lines.append(commands)
    return "\n".join(lines)


@pytest.mark.slow
def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert {kind for kind, _ in blocks} == {"", "fails", "machines"}
    ssh = tmp_path / ".ssh"
    ssh.mkdir()
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(ssh / "id_ed25519")
    key.write_public_key(ssh / "id_ed25519.pub")
    state = tmp_path / ".local" / "state" / "instant-env" / "service"
    state.mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("INSTANT_ENV_", "XDG_"))}  # fmt: skip
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = {**kept, "HOME": str(tmp_path), "PATH": path, "no_proxy": "127.0.0.1"}
    (tmp_path / "tasks.py").symlink_to(ROOT / "tasks.py")
    with serving() as service:
        (state / "url").write_text(service.url + "\n")
        (state / "token").write_text(service.fake.admin_secret + "\n")
        result = subprocess.run(
            ["bash", "-c", script(blocks)], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert f"{_MARK} {len(blocks) - 1}" in result.stdout
    output = result.stdout
    assert "StrictHostKeyChecking=yes" in output  # lease.new
    assert '"t4_by": "pk_ok"' in output  # the POST
    assert "event: ready" in output
    assert '"state":"ending"' in output  # the DELETE
    assert '"code": "invalid-request"' in output  # the refusal
    assert "is revoked" in output
    assert '"paused":true' in output


def test_every_code_has_a_section_and_every_setting_is_as_the_page_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    sections = re.findall(r"^### ([a-z-]+)$", text, re.MULTILINE)
    assert set(sections) == {str(code) for code in Code}
    example = re.search(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert example is not None
    settings = Settings.model_validate(yaml.safe_load(example[1])).service
    assert settings.pools is not None
    defaults = ServiceSettings()
    for name in ("ttl_s", "min_ttl_s", "max_ttl_s", "max_lifetime_s", "max_usd_per_hour", "max_leases",
                 "requests_per_minute", "event_streams"):  # fmt: skip
        assert getattr(settings, name) == getattr(defaults, name), name

"""What the audit finds fails the bake: on real bytes, by the tool and the judgement that a bake uses."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.bake.proof.verdict import VerifyError
from instant_env.bake.proof.verify import judge
from instant_env.requirements import find_program
from instant_env.toolchain import go_build


def test_a_deleted_key_fails_the_bake(tmp_path: Path) -> None:
    """In the free space of an ext4 made without root; the bytes alone are read, which needs none either."""
    tree, disk = tmp_path / "tree", tmp_path / "disk"
    tree.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tree / "key"], check=True)
    subprocess.run([find_program("mkfs.ext4") or "", "-q", "-d", tree, disk, "8M"], check=True)
    subprocess.run(
        [find_program("debugfs") or "", "-w", "-R", "rm key", disk], check=True, capture_output=True
    )
    listed = subprocess.run(
        [find_program("debugfs") or "", "-R", "ls /", disk], check=True, capture_output=True, text=True
    ).stdout
    assert "key.pub" in listed
    assert "key " not in listed
    tool = str(go_build("cmd/imagetool", Arch.parse(platform.machine())))
    command = [tool, "audit", "--device", str(disk), "--raw-only", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    with pytest.raises(
        VerifyError, match="the audit of ami-1 has 1 finding: private-key in free space at"
    ) as caught:
        judge(json.loads(result.stdout), "ami-1", tmp_path / "log")
    assert "for everyone who can launch the image" in caught.value.message
    assert caught.value.exit_code == 6
    assert str(tmp_path / "log") in caught.value.hint


def test_findings_that_were_cut_are_counted_and_none_is_no_error(tmp_path: Path) -> None:
    finding = {"rule": "log", "path": "/var/log/a", "reason": "why", "where": "file"}
    with pytest.raises(VerifyError, match=r"has 12 findings: log in /var/log/a \(why\)"):
        judge({"findings": [finding] * 2, "findings_dropped": 10}, "ami-1", tmp_path)
    judge({"findings": [], "findings_dropped": 0}, "ami-1", tmp_path)

"""Clients of AWS that are not this project's: installed once, at pinned versions, in the user's cache.

What cannot be installed (no network, no node, no apt) skips the test that wants it, with the reason.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from instant_env.settings import cache_home

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

#: What each client needs lies here: its pins and what it is to do.
CLIENTS = Path(__file__).parents[2] / "contract" / "clients"
#: Whether tests that take minutes (a long build, machines that boot) run, too: `make test-clients`.
ALL = os.environ.get("INSTANT_ENV_CLIENTS") == "1"
takes_minutes = pytest.mark.skipif(not ALL, reason="takes minutes: make test-clients")
INSTALL_TIMEOUT_S = 600
#: Variables that lead a client elsewhere, or belong to an installation of its own.
_FOREIGN = ("AWS_", "ANSIBLE_", "PACKER_", "PYTHON", "NODE_", "npm_", "GO", "XDG_", "VIRTUAL_ENV")


def needed(*programs: str) -> None:
    """Skip the test where one of these programs is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def step(command: Sequence[object], folder: Path, **variables: str) -> None:
    """One command of an installation. Skips the test when it fails."""
    arguments = [str(part) for part in command]
    try:
        result = subprocess.run(
            arguments, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True,
            check=False, timeout=INSTALL_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"`{' '.join(arguments[:3])}` did not end within {INSTALL_TIMEOUT_S} s")
    if result.returncode:
        words = (result.stderr.strip() or result.stdout.strip()).splitlines()[-3:]
        pytest.skip(f"`{' '.join(arguments[:3])}` failed: {' / '.join(words)}")


def installed(name: str, pins: Sequence[Path], install: Callable[[Path], None]) -> Path:
    """The folder where ``install`` put a client; another one for other contents of ``pins``."""
    digest = hashlib.sha256(sys.version.encode())
    for path in pins:
        digest.update(path.read_bytes())
    home = cache_home() / "clients" / f"{name}-{digest.hexdigest()[:12]}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may want the same
        if not (home / ".complete").exists():
            install(home)
            (home / ".complete").touch()
    return home


def python_client(name: str, more: Callable[[Path], None] | None = None) -> Path:
    """A virtual environment with what the client's requirements.txt pins; ``more`` adds to it."""
    requirements = CLIENTS / name / "requirements.txt"

    def install(home: Path) -> None:
        step([sys.executable, "-m", "venv", "--clear", home / "venv"], home)
        step([home / "venv" / "bin" / "pip", "install", "--quiet", "-r", requirements], home)
        if more is not None:
            more(home)

    return installed(name, [requirements], install)


def environment(contract: ContractCloud, home: Path, **more: str) -> dict[str, str]:
    """A client's environment: what `invoke local.env` prints, and a home directory without settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**own, "HOME": str(home), **contract.environment(), **more}


def output(command: Sequence[object], folder: Path, env: Mapping[str, str], timeout_s: float = 600) -> str:
    """What a client prints; fails with the end of it when the client does."""
    result = subprocess.run(
        [str(part) for part in command], cwd=folder, env=env, capture_output=True, text=True, check=False,
        timeout=timeout_s,
    )  # fmt: skip
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


#: Label of an error in an SDK's report -> its code, and its HTTP status.
ERRORS = {
    "missing": ("InvalidInstanceID.NotFound", 400),
    "malformed": ("InvalidInstanceID.Malformed", 400),
    "dry": ("DryRunOperation", 412),
    "image": ("InvalidAMIID.NotFound", 400),
    "duplicate": ("InvalidKeyPair.Duplicate", 400),
    "filter": ("InvalidParameterValue", 400),
    "unserved": ("UnsupportedOperation", 400),
    "stranger": ("AuthFailure", 401),
    "unserved STS": ("UnsupportedOperation", 400),
    "push": ("EC2InstanceNotFoundException", 400),
}


def check_report(contract: ContractCloud, name: str, report: Any) -> None:
    """What an SDK's program must have seen, whatever its language (`launch.mjs`, `main.go`)."""
    assert report["account"] == "123456789012"
    assert report["key"] == {
        "name": name, "type": "ed25519", "fingerprint": report["fingerprint"],
        "public": report["public_key"],
    }  # fmt: skip
    ids = sorted(report["launched"])
    assert len(ids) == 2
    assert sorted(report["selected"]) == ids, "by tags with a wildcard, and a state"
    assert report["states"] == ["running", "running"]
    assert report["volume_tags"] == [name, name]
    assert report["user_data"] == '#!/bin/sh\necho "ünïcode & <xml>"\n'
    assert report["tagged"] == ids
    assert report["untagged"] == []
    assert report["regions"] == [contract.cloud.region], "no region is listed where a client would be refused"
    types = report["types"]
    assert len(types) == len(set(types)) > report["page"], "pages neither overlap nor leave out anything"
    assert report["pages"] == -(-len(types) // report["page"])
    assert report["pushed"] is True
    errors = {label: (error["code"], error["status"]) for label, error in report["errors"].items()}
    assert errors == ERRORS
    assert all(error["request_id"] for error in report["errors"].values()), report["errors"]
    assert report["errors"]["push"]["typed"] is True
    assert report["ended"] == ["terminated", "terminated"]
    assert report["keys"] == []


def program_variables(contract: ContractCloud, name: str) -> dict[str, str]:
    """What an SDK's program reads from its environment beside the endpoint and the credentials."""
    tags = [tag for tag in contract.tags("instance")[0]["Tags"] if tag["Key"] != "Name"]
    return {
        "IMAGE": contract.image_id, "TYPE": contract.instance_type, "NAME": name, "TAGS": json.dumps(tags),
    }  # fmt: skip

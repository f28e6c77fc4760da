"""The AWS SDK for JavaScript v3, unmodified: one program from a key pair to termination."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import clients

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)

FOLDER = clients.CLIENTS / "javascript"
PINS = [FOLDER / "package.json", FOLDER / "package-lock.json"]


def install(home: Path) -> None:
    for path in PINS:
        shutil.copy(path, home)
    clients.step(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], home)


@pytest.mark.slow
def test_the_sdk_for_javascript(contract: ContractCloud, tmp_path: Path) -> None:
    if not contract.is_local:
        pytest.skip("its launch has no security group of ours")
    clients.needed("node", "npm")
    home = clients.installed("javascript", PINS, install)
    shutil.copy(FOLDER / "launch.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(home / "node_modules")
    name = contract.name("javascript")
    variables = clients.program_variables(contract, name)
    env = clients.environment(contract, tmp_path, **variables)
    clients.check_report(contract, name, json.loads(clients.output(["node", "launch.mjs"], tmp_path, env)))

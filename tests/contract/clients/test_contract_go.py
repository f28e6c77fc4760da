"""The AWS SDK for Go v2, unmodified: one program from a key pair to termination."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import clients

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)

FOLDER = clients.CLIENTS / "go"


def install(home: Path) -> None:
    # Whatever cgo would link is not needed, and a C compiler is not either.
    clients.step(["go", "build", "-mod=readonly", "-o", home / "client", "."], FOLDER, CGO_ENABLED="0")


@clients.takes_minutes
@pytest.mark.slow
def test_the_sdk_for_go(contract: ContractCloud, tmp_path: Path) -> None:
    if not contract.is_local:
        pytest.skip("its launch has no security group of ours")
    clients.needed("go")
    home = clients.installed("go", sorted(FOLDER.iterdir()), install)
    name = contract.name("go")
    env = clients.environment(contract, tmp_path, **clients.program_variables(contract, name))
    clients.check_report(contract, name, json.loads(clients.output([home / "client"], tmp_path, env)))

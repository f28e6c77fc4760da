"""What the caller's environment says of proxies, profiles and endpoints is for the world outside."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instant_env.cli.tables import shell_exports
from instant_env.cloud import network
from instant_env.cloud.session import connect
from instant_env.localec2 import starter
from instant_env.localec2.starter import Endpoint
from instant_env.settings import Settings

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

#: Nobody listens there.
NOWHERE = "http://127.0.0.1:9"
BROKEN = {
    "a proxy": {"http_proxy": NOWHERE, "https_proxy": NOWHERE},
    "a proxy in capitals": {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "ALL_PROXY": NOWHERE},
    "a profile that is not there": {"AWS_PROFILE": "nosuch", "AWS_DEFAULT_PROFILE": "nosuch"},
    "files that are no INI": {"AWS_CONFIG_FILE": "garbage", "AWS_SHARED_CREDENTIALS_FILE": "garbage"},
    "values that nothing has": {
        "AWS_DEFAULTS_MODE": "bogus", "AWS_RETRY_MODE": "bogus", "AWS_MAX_ATTEMPTS": "x",
        "AWS_STS_REGIONAL_ENDPOINTS": "bogus", "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true", "AWS_METADATA_SERVICE_TIMEOUT": "x",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "bogus", "AWS_ACCOUNT_ID_ENDPOINT_MODE": "bogus",
    },
    "other endpoints": {"AWS_ENDPOINT_URL": NOWHERE, "AWS_ENDPOINT_URL_EC2": NOWHERE, "AWS_REGION": "x"},
}  # fmt: skip


def endpoint_of(served: Served) -> Endpoint:
    record = served.state.server
    return Endpoint(
        url=served.server.url, region="us-east-1", access_key_id=record.access_key_id,
        secret_access_key=record.secret_access_key, ssh_port=22, pid=os.getpid(),
        state_dir=served.directory, accelerator="tcg", admin_token=record.admin_token,
        caller_ip_url=f"{served.server.url}/_localec2/caller-ip",
    )  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_nothing_of_the_environment_is_between_us_and_loopback(
    served: Served, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff\xfe [not an INI")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in BROKEN[name].items():
        monkeypatch.setenv(variable, str(garbage) if value == "garbage" else value)
    endpoint = endpoint_of(served)
    monkeypatch.setattr(starter, "up", lambda *_: endpoint)
    cloud = connect(Settings(state_dir=tmp_path))
    assert cloud.ec2.describe_instances()["Reservations"] == []
    assert cloud.ssm.describe_parameters()["Parameters"] == []
    assert cloud.client("sts").get_caller_identity()["Account"]
    assert starter.client(endpoint, "ec2").describe_volumes()["Volumes"] == []
    assert network.caller_cidr(cloud) == "127.0.0.1/32"


def test_the_exports_lead_past_a_proxy(served: Served) -> None:
    """And keep what was excepted from it before."""
    script = shell_exports(endpoint_of(served)) + '\necho "$no_proxy $NO_PROXY ${AWS_PROFILE-none}"'
    environment = {"no_proxy": "intra.example", "AWS_PROFILE": "work", "PATH": os.environ["PATH"]}
    result = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "127.0.0.1,localhost,intra.example 127.0.0.1,localhost none\n"

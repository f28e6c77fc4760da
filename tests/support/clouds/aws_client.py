"""localec2's API as the cloud named aws, with the client that AWS gets, and faults on demand."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config

from instant_env.cloud import session
from instant_env.cloud.session import Cloud
from instant_env.settings import CloudName, Settings

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


@dataclass
class Aws:
    """A cloud, and what it was asked: names of actions in their order."""

    cloud: Cloud
    served: Served
    calls: list[str] = field(default_factory=list)

    def fault(self, action: str, code: str, times: int = 1, message: str = "") -> None:
        """The next ``times`` calls of an action answer this."""
        self._inject(kind="error", action=action, code=code, times=times, message=message)

    def lose_answer(self, action: str) -> None:
        """The next call of an action is done, and the connection ends without an answer."""
        self._inject(kind="drop", action=action, when="after")

    def _inject(self, **fault: Any) -> None:
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.served.server.url}/_localec2/faults",
            data=json.dumps(fault).encode(),
            headers={"X-Localec2-Token": self.served.state.server.admin_token},
        )
        urllib.request.urlopen(request, timeout=60).close()  # noqa: S310 - loopback

    def count(self, action: str) -> int:
        return self.calls.count(action)


def aws_client(served: Served, directory: Path) -> Aws:
    """Repeats are botocore's as on AWS."""
    config = session._AWS_CONFIG.merge(Config(proxies={}))
    server = served.state.server
    cloud = Cloud(
        name=CloudName.AWS,
        settings=Settings(state_dir=directory),
        ec2=served.client("ec2", config=config),
        ssm=served.client("ssm", config=config),
        instance_connect=served.client("ec2-instance-connect", config=config),
        region="us-east-1",
        ssh_port=22,
        caller_ip_url=f"{served.server.url}/_localec2/caller-ip",
        accelerator="ec2",
        session=boto3.Session(server.access_key_id, server.secret_access_key, region_name="us-east-1"),
        endpoint_url=served.server.url,
    )
    it = Aws(cloud, served)

    def note(model: Any, **_: Any) -> None:
        it.calls.append(model.name)

    cloud.ec2.meta.events.register("before-call", note)
    return it


@pytest.fixture
def aws(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """With short pauses."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(float(seconds), 0.005)))
    return aws_client(served, tmp_path / "client")

"""`invoke serve` as a process of its own, over a localec2 whose tiny image stands for a baked custom-init."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from instant_env.cloud.images import parameter_name
from instant_env.cloud.tags import Role, tag_list
from instant_env.localec2 import starter
from instant_env.settings import ROOT
from support.patience import until
from support.tiny_cloud import INSTANCE_TYPES, TinyCloud

_START_S = 180
_STOP_S = 60
_WAITS = 6


def bake_tiny(cloud: TinyCloud) -> str:
    """A copy of the tiny image that looks as if the recipe custom-init had baked it from that one."""
    base = cloud.image_id
    image_id = cloud.ec2.copy_image(Name="custom-init", SourceImageId=base, SourceRegion="us-east-1")[
        "ImageId"
    ]
    cloud.ec2.get_waiter("image_available").wait(ImageIds=[image_id], WaiterConfig={"Delay": 1})
    about = {"recipe": "custom-init", "arch": cloud.arch.value, "login-user": "root", "base-ami": base}
    cloud.ec2.create_tags(Resources=[image_id], Tags=tag_list("r", Role.IMAGE, name="tiny", extra=about))
    starter.client(cloud.endpoint, "ssm").put_parameter(
        Name=parameter_name("custom-init", cloud.arch), Value=image_id, Type="String", Overwrite=True
    )
    return image_id


@dataclass
class Served:
    """A service that runs. ``output``: what it has printed."""

    process: subprocess.Popen[bytes]
    url: str
    state_dir: Path
    output: Path

    @property
    def headers(self) -> dict[str, str]:
        token = (self.state_dir / "service" / "token").read_text().strip()
        return {"Authorization": f"Bearer {token}"}

    def get(self, path: str, **more: Any) -> Any:
        return self._ask("GET", path, **more)

    def post(self, path: str, body: dict[str, Any], **more: Any) -> Any:
        return self._ask("POST", path, json=body, **more)

    def take(self, body: dict[str, Any], **headers: str) -> Any:
        """A lease that is on its way no more: one answer's wait is shorter than a slow boot."""
        lease = self.post("/v1/instances", body, headers={"Prefer": "wait=60", **headers})
        for _ in range(_WAITS):
            if lease["state"] not in ("requested", "provisioning"):
                return lease
            lease = self.get(f"/v1/instances/{lease['id']}/wait?seconds=60")
        raise AssertionError(f"{lease}\n{self.log()}")

    def delete(self, path: str) -> Any:
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        headers = self.headers | more.pop("headers", {})
        with httpx2.Client(base_url=self.url, timeout=300, trust_env=False) as client:
            answer = client.request(method, path, headers=headers, **more)
        assert answer.status_code < 400, answer.text
        return answer.json()

    def wait_for_pool(self, ready: int, timeout_s: float = 240) -> None:
        def is_full() -> bool:
            (pool,) = self.get("/v1/pools")["pools"]
            return bool(pool["ready"] == ready)

        assert until(is_full, timeout_s, 0.5), self.log()

    def log(self) -> str:
        return self.output.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(_STOP_S)

    def stop(self) -> int:
        """Ctrl-C. Returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(_STOP_S)


@contextmanager
def serving(cloud: TinyCloud, directory: Path, *, config: str = "") -> Iterator[Served]:
    """Start it, and end it in any case."""
    state_dir = cloud.settings.state_dir
    settings = directory / "instant-env.yml"
    settings.write_text(f"instance_type: {INSTANCE_TYPES[cloud.arch]}\n{config}")
    output = directory / f"serve-{os.urandom(4).hex()}.log"
    environ = {
        **os.environ, "INSTANT_ENV_STATE_DIR": str(state_dir), "INSTANT_ENV_CONFIG": str(settings),
        "HOME": str(directory),
    }  # fmt: skip
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "invoke"), "serve", "--listen", "127.0.0.1:0"],
            cwd=ROOT, env=environ, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        url_file = state_dir / "service" / "url"
        started = until(
            lambda: "take a machine" in output.read_text() or process.poll() is not None, _START_S, 0.2
        )
        assert started, output.read_text()
        assert process.poll() is None, output.read_text()
        yield Served(process, url_file.read_text().strip(), state_dir, output)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(_STOP_S)

"""Attempts side by side: none waits for a thread of ours, and together they keep to the account's quotas."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from support.harness_cloud import Ec2Faults, SshHost, cloud_in_process, register_image

from harness.plan.arguments import Request, read
from harness.run.runner import BenchResult, carry_out
from instant_env.arch import Arch
from instant_env.cloud.images import parameter_name
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, tag_list
from instant_env.launch.techniques.prealloc_eni import PreallocEni


def bench(cloud: Cloud, techniques: tuple[str, ...], iterations: int, parallel: int) -> BenchResult:
    about = {
        "recipe": "minimal",
        "base": "debian-12",
        "base-ami": register_image(cloud),
        "login-user": "admin",
    }
    ami = register_image(cloud, "minimal")
    cloud.ec2.create_tags(Resources=[ami], Tags=tag_list("b", Role.IMAGE, name="minimal", extra=about))
    name = parameter_name("minimal", Arch.X86_64)
    cloud.ssm.put_parameter(Name=name, Value=ami, Type="String", Overwrite=True)
    request = Request(techniques=techniques, iterations=iterations, parallel=parallel, seed=7, timeout_s=120)
    settings, planner = read(request, cloud.settings)
    return carry_out(settings, planner, progress=lambda _: None, open_cloud=lambda *_: cloud)


@pytest.mark.slow
def test_as_many_requests_are_under_way_as_there_are_attempts(tmp_path: Path) -> None:
    """asyncio has min(32, processors + 4) threads by itself: the others would wait, on the clock."""
    attempts = 12
    together = threading.Barrier(attempts)
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:

        def wait(**_: Any) -> None:
            together.wait(60)

        cloud.ec2.meta.events.register("before-parameter-build.ec2.RunInstances", wait)
        result = bench(cloud, ("minimal-ami",), iterations=attempts, parallel=attempts)
    assert [row.outcome for row in result.rows] == ["ok"] * attempts


@pytest.mark.slow
def test_techniques_that_need_elastic_ips_share_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreallocEni, "most_in_flight", 2)
    held, most = set[str](), list[int]()

    def allocated(parsed: dict[str, Any], **_: Any) -> None:
        held.add(parsed["AllocationId"])
        most.append(len(held))

    def released(params: dict[str, Any], **_: Any) -> None:
        held.discard(params["AllocationId"])

    slow = Ec2Faults(
        pending_s=3
    )  # two are launched a second, so without the quota four would be there at once
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, slow) as cloud:
        events = cloud.ec2.meta.events
        events.register("after-call.ec2.AllocateAddress", allocated)
        events.register("before-parameter-build.ec2.ReleaseAddress", released)
        # What moto gives is not where the servers are.
        events.register(
            "after-call.ec2.AllocateAddress", lambda parsed, **_: parsed.update(PublicIp="127.0.0.1")
        )
        result = bench(cloud, ("prealloc-eni", "minimal-ami+prealloc-eni"), iterations=3, parallel=6)
    assert [row.outcome for row in result.rows] == ["ok"] * 6
    assert max(most) == 2

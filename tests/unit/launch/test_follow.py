"""Launches followed to a login: RunInstances by moto, a real SSH login, and every way to fail."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.harness_cloud import Ec2Faults, SshHost, cloud_in_process, free_port, fresh_key, register_image

from instant_env.cloud.instances import Market, NoPublicAddress
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role
from instant_env.launch.follow import follow
from instant_env.launch.guest import GuestReadError, GuestReport, parse_disk_statistics
from instant_env.launch.launch import Launch
from instant_env.launch.login_check import LoginCheck, PrivateKeyLogin, PublicKeyQuery
from instant_env.launch.techniques import LaunchSpec, Prepared
from instant_env.launch.techniques.base import run_instance
from instant_env.launch.timeline import MarkName, Outcome
from instant_env.launch.watch import Running, Watched, Watcher
from instant_env.public_key import PublicKey
from instant_env.settings import CloudName
from instant_env.ssh.host_keys import HostKeys
from instant_env.ssh.probe_client import Prober, ProberError, probing
from instant_env.user_data import UserData

ORDER = LaunchSpec(
    run_id="r",
    name="n",
    role=Role.BENCH,
    instance_type="m7i.large",
    key_name="",
    security_group_id="",
    market=Market.ON_DEMAND,
    expires_at=datetime.now(UTC) + timedelta(hours=1),
    user_data=UserData(ttl_s=1800),
    client_token="token",
    public_key=fresh_key().public_key,
)


@dataclass
class Followed:
    """A launch that was followed, and what its login found."""

    launch: Launch
    login: LoginCheck
    guest: GuestReport | None = None


def follow_one(
    cloud: Cloud,
    *,
    timeout_s: float = 60,
    order: LaunchSpec = ORDER,
    public_key: PublicKey | None = None,
    host_keys: HostKeys | None = None,
    meanwhile: Callable[[asyncio.Task[None], Launch, Prober], None] | None = None,
) -> Followed:
    """Follow one launch to a login, or with ``public_key`` to sshd's word that it would let that key in.

    ``meanwhile`` gets its task and the rest half a second later.
    """
    image = register_image(cloud)
    key = fresh_key().for_asyncssh()

    async def work() -> Followed:
        async with Watcher(cloud) as watcher, probing() as prober:
            launch = Launch(
                cloud,
                watcher,
                prober,
                lambda: run_instance(cloud, Prepared(image, "admin"), order, user_data=None),
            )
            done = Followed(launch, PrivateKeyLogin("admin", key))
            if public_key is not None:
                done.login = PublicKeyQuery("admin", public_key, host_keys)
            task = asyncio.create_task(follow(launch, done.login, timeout_s=timeout_s))
            if meanwhile is not None:
                asyncio.get_running_loop().call_later(0.5, meanwhile, task, launch, prober)
            await asyncio.gather(task, return_exceptions=meanwhile is not None)
            if launch.outcome is Outcome.OK and isinstance(done.login, PrivateKeyLogin):
                done.guest = await done.login.report()
                done.login.close()
            return done

    return asyncio.run(work())


def test_ok_has_every_mark_in_order_with_resolutions(tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    marks = [{"name": "init_start", "boottime_ms": 812.4}, {"name": "sshd_started", "boottime_ms": 1500}]
    timeline.write_text(json.dumps({"version": 2, "clock": "CLOCK_BOOTTIME", "pid1": True, "marks": marks}))
    with (
        SshHost(timeline=timeline).serving() as ssh,
        cloud_in_process(tmp_path, ssh.port, Ec2Faults(pending_s=0.3)) as cloud,
    ):
        done = follow_one(cloud)
    assert (done.launch.outcome, done.launch.error, done.launch.notes) == (Outcome.OK, "", [])
    t1, t2 = done.launch.timeline.marks[MarkName.T1], done.launch.timeline.marks[MarkName.T2]
    tcp, t3, t4 = (done.launch.timeline.marks[name] for name in (MarkName.T3_TCP, MarkName.T3, MarkName.T4))
    assert 0 < t1.ms < t2.ms
    assert t2.ms - t1.ms >= 300
    assert tcp.ms < t3.ms < t4.ms
    assert 0 < t2.resolution_ms < 2_000, "polled as seldom as a machine that runs"
    assert ssh.usernames == ["admin"]
    assert done.launch.banner.startswith("SSH-2.0-AsyncSSH")
    assert done.login.host_key_fingerprint.startswith("SHA256:")
    assert done.guest is not None
    assert done.guest.pid1
    assert done.guest.marks_ms == {"init_start": 812.4, "sshd_started": 1500.0}
    assert done.guest.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_guest_tells_what_its_root_disk_read(tmp_path: Path) -> None:
    """The "guest" is this host: its own files are asked, as the shell does it."""
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        done = follow_one(cloud)
    assert done.guest is not None
    device = Path("/").stat().st_dev
    there = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not there.exists():  # a container's overlay has no disk
        assert done.guest.root_reads is None
        return
    disk = there.resolve().parent if (there / "partition").exists() else there
    now = parse_disk_statistics((disk / "stat").read_text())
    assert now is not None
    assert done.guest.root_reads is not None
    assert 0 < done.guest.root_reads[1] <= now[1]


@pytest.mark.parametrize("line", ["1", "1 2 x", "a b c"])
def test_disk_statistics_of_another_shape_are_an_error(line: str) -> None:
    with pytest.raises(GuestReadError):
        parse_disk_statistics(line)


def test_disk_statistics_count_sectors_of_512_bytes() -> None:
    assert parse_disk_statistics("     435      599    42294     1025       73") == (435, 42294 * 512)
    assert parse_disk_statistics("") is None


def test_running_began_after_the_last_question_that_was_answered_otherwise() -> None:
    async def work() -> None:
        watched = Watched("i-1", since_ns=100)
        for asked_ns, answered_ns, state in (
            (200, 210, "pending"), (300, 350, "pending"), (400, 420, "running"), (500, 510, "running"),
        ):  # fmt: skip
            description: Any = {"State": {"Name": state}}
            watched.see(description, asked_ns, answered_ns)
        assert watched.running.result() == Running(seen_ns=420, resolution_ns=120)

    asyncio.run(work())


def test_a_public_address_that_comes_after_running_is_waited_for(tmp_path: Path) -> None:
    """Until then there is only the private one, which is nowhere from outside of the VPC."""
    faults = Ec2Faults(pending_s=0.2, address_late_s=0.5)
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, faults) as cloud:
        done = follow_one(cloud, timeout_s=20)
    assert (done.launch.outcome, done.launch.error) == (Outcome.OK, "")
    assert done.launch.address == "127.0.0.1"
    t2, t3 = (done.launch.timeline.marks[name] for name in (MarkName.T2, MarkName.T3))
    assert t3.ms - t2.ms >= 100


def test_a_machine_without_a_public_address_fails_after_half_a_minute_and_not_at_the_deadline() -> None:
    instance: Any = {"State": {"Name": "running"}, "PrivateIpAddress": "172.31.0.9"}

    async def work() -> None:
        watched, within = Watched("i-1", since_ns=0), Watched("i-2", since_ns=0, private=True)
        for seen_s in (1, 2, 30):
            watched.see(instance, seen_s * 10**9, seen_s * 10**9)
            assert not watched.is_settled
        watched.see(instance, 32 * 10**9, 32 * 10**9)
        with pytest.raises(NoPublicAddress, match="i-1 has no public address 30 s after") as error:
            watched.address.result()
        assert "--ssh-private" in error.value.hint
        within.see(instance, 10**9, 10**9)
        assert within.address.result() == "172.31.0.9"

    asyncio.run(work())


def test_a_launch_without_a_public_address_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instant_env.launch.watch.ADDRESS_TIMEOUT_S", 0.2)
    with cloud_in_process(tmp_path, free_port(), Ec2Faults(address_late_s=3600)) as cloud:
        done = follow_one(cloud, timeout_s=30)
    assert done.launch.outcome is Outcome.LAUNCH_ERROR
    assert "has no public address" in done.launch.error
    assert MarkName.T2 in done.launch.timeline.marks


def test_guest_clock_is_joined_within_its_stated_error(tmp_path: Path) -> None:
    """The "guest" is this host, so the true answer is known."""
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        done = follow_one(cloud)
    assert done.guest is not None
    truth_ns = time.monotonic_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert abs(done.guest.boot_at_ns - truth_ns) / 1e6 <= done.guest.clock_error_ms + 1
    assert done.guest.clock_error_ms < 5_000
    assert done.guest.marks_ms == {}


def test_key_that_comes_late_is_retried_and_t4_says_how_exact_it_is(tmp_path: Path) -> None:
    late = SshHost(refusals=2)
    with late.serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        done = follow_one(cloud)
    assert done.launch.outcome is Outcome.OK
    assert done.login.keys_refused == 2
    t4 = done.launch.timeline.marks[MarkName.T4]
    assert t4.resolution_ms >= 500
    late_by_ms = t4.ms - done.launch.timeline.ms(late.refused_last_ns)
    assert 0 <= late_by_ms <= t4.resolution_ms + 10_000  # the handshake itself takes its time


@pytest.mark.slow
def test_key_never_accepted_is_auth_failed_and_stays_below_sshds_penalties(tmp_path: Path) -> None:
    stranger = SshHost(public_key=fresh_key().public_openssh)
    with stranger.serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        done = follow_one(cloud, timeout_s=5)
    assert done.launch.outcome is Outcome.AUTH_FAILED
    assert done.login.keys_refused == 3
    assert "refused the key" in done.launch.error
    assert MarkName.T3 in done.launch.timeline.marks
    assert MarkName.T4 not in done.launch.timeline.marks


def test_a_public_key_alone_proves_that_its_owner_would_be_let_in(tmp_path: Path) -> None:
    key = PublicKey.parse(fresh_key().public_openssh)
    host = SshHost(public_key=str(key))
    with host.serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        done = follow_one(cloud, public_key=key)
    assert (done.launch.outcome, done.launch.error) == (Outcome.OK, "")
    t3, t4 = (done.launch.timeline.marks[name] for name in (MarkName.T3, MarkName.T4))
    assert t3.ms < t4.ms
    assert done.login.host_key_fingerprint.startswith("SHA256:")


def test_a_server_with_another_host_key_fails_at_once_and_is_not_asked(tmp_path: Path) -> None:
    key = PublicKey.parse(fresh_key().public_openssh)
    host, other = SshHost(public_key=str(key)), SshHost()
    host_keys = HostKeys.parse(other.host_key.export_public_key().decode())
    with host.serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        done = follow_one(cloud, public_key=key, host_keys=host_keys)
    assert done.launch.outcome is Outcome.LAUNCH_ERROR
    assert "none of the machine's" in done.launch.error
    assert not ssh.usernames, "the server was told nobody's name"
    assert MarkName.T4 not in done.launch.timeline.marks


def test_a_public_key_that_sshd_does_not_know_yet_is_asked_for_again(tmp_path: Path) -> None:
    host = SshHost(refusals=1)
    with host.serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        done = follow_one(cloud, public_key=PublicKey.parse(fresh_key().public_openssh))
    assert done.launch.outcome is Outcome.OK
    assert done.login.keys_refused == 1
    assert done.launch.timeline.marks[MarkName.T4].resolution_ms >= 500


def test_nobody_listening_is_ssh_refused(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, free_port(), Ec2Faults()) as cloud:
        done = follow_one(cloud, timeout_s=2.0)
    assert done.launch.outcome is Outcome.SSH_REFUSED
    assert "as far as t2" in done.launch.error


def test_where_the_host_refuses_for_the_guest_it_is_a_timeout(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, free_port(), Ec2Faults()) as cloud:
        done = follow_one(dataclasses.replace(cloud, refusals_from_guest=False), timeout_s=2.0)
    assert done.launch.outcome is Outcome.TIMEOUT
    assert done.launch.probes.refused > 0


def test_silence_is_timeout(tmp_path: Path) -> None:
    # TEST-NET-1 (RFC 5737) answers nobody; or has no route at all, which is silence too.
    with cloud_in_process(tmp_path, 22, Ec2Faults(address="192.0.2.1")) as cloud:
        done = follow_one(cloud, timeout_s=2.0)
    assert done.launch.outcome in (Outcome.TIMEOUT, Outcome.SSH_REFUSED)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("InsufficientInstanceCapacity", Outcome.CAPACITY),
        ("InvalidAMIID.NotFound", Outcome.LAUNCH_ERROR),
        ("VcpuLimitExceeded", Outcome.LAUNCH_ERROR),
    ],
)
def test_refused_launch(tmp_path: Path, code: str, outcome: Outcome) -> None:
    with cloud_in_process(tmp_path, 22, Ec2Faults(launch_errors=[code])) as cloud:
        done = follow_one(cloud)
    assert done.launch.outcome is outcome
    assert code in done.launch.error
    assert ("L-1216C47A" in done.launch.error) == (code == "VcpuLimitExceeded"), "the quota is named"
    assert done.launch.instance_id == ""


def test_spot_without_capacity_is_launched_on_demand_with_another_token(tmp_path: Path) -> None:
    faults = Ec2Faults(launch_errors=["InsufficientInstanceCapacity"])
    with (
        SshHost().serving() as ssh,
        cloud_in_process(tmp_path, ssh.port, faults, name=CloudName.AWS) as cloud,
    ):
        done = follow_one(cloud, order=dataclasses.replace(ORDER, market=Market.SPOT))
    assert done.launch.outcome is Outcome.OK
    assert done.launch.market is Market.ON_DEMAND
    assert done.launch.notes == ["spot: InsufficientInstanceCapacity, on demand instead"]
    first, second = faults.run_bodies
    assert "InstanceMarketOptions" in first
    assert "InstanceMarketOptions" not in second
    assert first["ClientToken"] != second["ClientToken"]


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("Client.VolumeLimitExceeded", Outcome.LAUNCH_ERROR),
        ("Server.InternalError", Outcome.CAPACITY),
        ("Server.InsufficientInstanceCapacity", Outcome.CAPACITY),
        ("Server.SpotInstanceTermination", Outcome.INTERRUPTED),
    ],
)
def test_machine_that_ends_by_itself(tmp_path: Path, reason: str, outcome: Outcome) -> None:
    with cloud_in_process(tmp_path, 22, Ec2Faults(pending_s=0.2, ended={"*": reason})) as cloud:
        done = follow_one(cloud)
    assert done.launch.outcome is outcome
    assert reason in done.launch.error
    assert MarkName.T2 not in done.launch.timeline.marks


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("InvalidParameterValue", Outcome.LAUNCH_ERROR),
        ("InsufficientInstanceCapacity", Outcome.CAPACITY),
        ("InvalidGroup.NotFound", Outcome.INTERRUPTED),
        ("InvalidKeyPair.NotFound", Outcome.INTERRUPTED),
    ],
)
def test_a_refused_launch_says_something_of_the_launch_or_not(
    tmp_path: Path, code: str, outcome: Outcome
) -> None:
    """That EC2 does not know yet what the run has made is none of the launch's, and costs it no repeat."""
    faults = Ec2Faults(launch_errors=[code])
    with cloud_in_process(tmp_path, 22, faults) as cloud:
        done = follow_one(cloud)
    assert done.launch.outcome is outcome
    assert code in done.launch.error
    assert len(faults.run_bodies) == 1


def test_a_spot_machine_that_ends_for_its_key_names_the_grant(tmp_path: Path) -> None:
    faults = Ec2Faults(pending_s=0.2, ended={"*": "Client.InternalError"})
    with cloud_in_process(tmp_path, 22, faults, name=CloudName.AWS) as cloud:
        done = follow_one(cloud, order=dataclasses.replace(ORDER, market=Market.SPOT))
    assert done.launch.outcome is Outcome.LAUNCH_ERROR
    assert "aws kms create-grant" in done.launch.error
    with cloud_in_process(tmp_path, 22, faults) as cloud:
        assert "create-grant" not in follow_one(cloud).launch.error


def test_throttled_and_failing_polls_back_off_and_the_launch_goes_on(tmp_path: Path) -> None:
    faults = Ec2Faults(pending_s=0.2, describe_errors=["RequestLimitExceeded", "InternalError"])
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, faults) as cloud:
        done = follow_one(cloud)
    assert done.launch.outcome is Outcome.OK
    # The polls that were not made show in the resolution: it spans the back-off.
    assert done.launch.timeline.marks[MarkName.T2].resolution_ms >= 400
    assert faults.describes < 12


def test_polling_stops_being_eager_once_the_machine_runs(tmp_path: Path) -> None:
    faults = Ec2Faults()
    with cloud_in_process(tmp_path, free_port(), faults) as cloud:
        follow_one(cloud, timeout_s=1.5)
    assert faults.describes <= 4


def test_cancelled_launch_keeps_the_instance_id(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, free_port(), Ec2Faults()) as cloud:
        done = follow_one(cloud, meanwhile=_cancel)
    assert done.launch.outcome is Outcome.CANCELLED
    assert done.launch.instance_id.startswith("i-")


def _cancel(task: asyncio.Task[None], *_: object) -> None:
    task.cancel()


def test_prober_that_dies_is_the_launchs_error_and_the_callers(tmp_path: Path) -> None:
    launches: list[Launch] = []

    def kill(_: asyncio.Task[None], launch: Launch, prober: Prober) -> None:
        launches.append(launch)
        os.kill(prober.pid, signal.SIGKILL)

    with (
        cloud_in_process(tmp_path, free_port(), Ec2Faults()) as cloud,
        pytest.raises(ProberError, match="SIGKILL"),
    ):
        follow_one(cloud, meanwhile=kill)
    assert launches[0].outcome is Outcome.LAUNCH_ERROR
    assert launches[0].error == "ProberError: the prober has ended: SIGKILL"
    assert launches[0].instance_id.startswith("i-")

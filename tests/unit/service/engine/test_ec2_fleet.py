"""The fleet over EC2: what is asked of it, and what its answers and the machines' sshd become.

EC2 is moto in this process, the machine a real SSH server on loopback; hand-overs themselves are shown on
booted machines (tests/machines/service).
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.harness_cloud import Ec2Faults, SshHost, cloud_in_process, mock_session, register_image
from support.iam.calls import Recorder
from support.iam.check import check
from support.service.rig import KEY

from instant_env.arch import Arch
from instant_env.cloud.images import parameter_name
from instant_env.cloud.instances import Market
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import PREFIX, Role, read_tags, tag_list
from instant_env.launch.hand_over import AlreadyHandedOut, Contaminated
from instant_env.launch.launcher import Launcher
from instant_env.service.engine import ec2_fleet
from instant_env.service.engine.ec2_fleet import Ec2Fleet
from instant_env.service.engine.fleet import MachineFailed, Offer
from instant_env.service.records import EventKind, Lease, LeaseRequest, LeaseState, Machine, MachineState
from instant_env.service.server.group import ensure_group
from instant_env.ssh.host_keys import HostKeys

TYPE = "m7i.large"
SERVICE = "20261130T120000-00000001"
NOW = datetime.now(UTC).replace(microsecond=0)
PAIRS = frozenset({(Arch.X86_64, TYPE)})


@pytest.fixture
def host() -> Iterator[SshHost]:
    with SshHost().serving() as serving:
        yield serving


@pytest.fixture
def faults(host: SshHost) -> Ec2Faults:
    return Ec2Faults(console=host.console)


@pytest.fixture
def cloud(tmp_path: Path, host: SshHost, faults: Ec2Faults) -> Iterator[Cloud]:
    with cloud_in_process(tmp_path, host.port, faults) as made:
        yield made


@pytest.fixture
def image_id(cloud: Cloud) -> str:
    return bake(cloud)


def bake(cloud: Cloud) -> str:
    """An image of custom-init as far as its tags go, and what stands for its base."""
    base = register_image(cloud, "base")
    image = register_image(cloud, "custom-init")
    extra = {"recipe": "custom-init", "arch": "x86_64", "login-user": "admin", "base-ami": base}
    cloud.ec2.create_tags(Resources=[image], Tags=tag_list("r", Role.IMAGE, name="i", extra=extra))
    cloud.ssm.put_parameter(Name=parameter_name("custom-init", Arch.X86_64), Value=image, Type="String")
    return image


@asynccontextmanager
async def fleet_of(cloud: Cloud) -> AsyncIterator[Ec2Fleet]:
    async with Launcher(cloud, timeout_s=30) as launcher:
        fleet = Ec2Fleet(cloud, launcher, SERVICE, ensure_group(cloud, SERVICE, ["127.0.0.1/32"]))
        await fleet.catalogue(PAIRS)
        yield fleet
        await fleet.close()


def lease_of(technique: str = "custom-init") -> Lease:
    request = LeaseRequest(KEY, technique, Arch.X86_64, TYPE, Market.ON_DEMAND, 600)
    return Lease("ls-1", "tk-1", LeaseState.PROVISIONING, request, NOW, technique=technique, attempt=1)


def machine_of(image_id: str, **changes: Any) -> Machine:
    machine = Machine(
        id="mc-1", state=MachineState.LEASED, technique="custom-init", arch=Arch.X86_64, instance_type=TYPE,
        image_id=image_id, market=Market.ON_DEMAND, client_token="mc-1", created_at=NOW,
        expires_at=NOW + timedelta(hours=1), lease_id="ls-1",
    )  # fmt: skip
    return dataclasses.replace(machine, **changes)


class Told:
    """What a launch tells while it goes on."""

    def __init__(self) -> None:
        self.events: list[tuple[EventKind, Mapping[str, Any]]] = []
        self.ids: list[str] = []

    async def notice(self, kind: EventKind, data: Mapping[str, Any]) -> None:
        self.events.append((kind, data))

    async def named(self, instance_id: str) -> None:
        self.ids.append(instance_id)


async def nothing(*_: Any) -> None:
    """A notice that nobody reads."""


async def launched(cloud: Cloud, image_id: str, told: Told | None = None) -> tuple[Ec2Fleet, Any]:
    told = told or Told()
    async with fleet_of(cloud) as fleet:
        offer = Offer("custom-init", Arch.X86_64, TYPE, image_id, "admin", "custom-init")
        delivered = await fleet.launch(
            offer, machine_of(image_id), lease_of(), time.monotonic_ns() - 5_000_000, told.notice, told.named
        )
        return fleet, delivered


def test_the_catalogue_offers_what_is_baked_and_says_how_to_bake_the_rest(
    cloud: Cloud, image_id: str
) -> None:
    async def scenario() -> None:
        async with fleet_of(cloud) as fleet:
            catalogue = await fleet.catalogue(PAIRS)
            assert catalogue.offers["custom-init", Arch.X86_64, TYPE].image_id == image_id
            assert ("cold", Arch.X86_64, TYPE) in catalogue.offers
            assert "invoke bake --recipe minimal" in catalogue.missing["minimal-ami", Arch.X86_64]

    asyncio.run(scenario())


def test_a_launch_has_no_key_pair_and_no_role_and_is_found_by_its_tags(
    cloud: Cloud, image_id: str, faults: Ec2Faults
) -> None:
    told = Told()
    _, delivered = asyncio.run(launched(cloud, image_id, told))
    (body,) = faults.run_bodies
    assert "KeyName" not in body
    assert "IamInstanceProfile" not in body
    assert body["MetadataOptions"]["InstanceMetadataTags"] == "enabled"
    assert body["MetadataOptions"]["HttpTokens"] == "required"
    user_data = json.loads(base64.b64decode(body["UserData"]))["instant-env"]
    assert user_data["ssh_keys"] == [str(KEY)]
    for specification in body["TagSpecifications"]:
        tags = read_tags(specification["Tags"])
        assert tags[f"{PREFIX}role"] == "lease"
        assert (tags[f"{PREFIX}service"], tags[f"{PREFIX}machine"]) == (SERVICE, "mc-1")
        assert (tags[f"{PREFIX}lease"], tags[f"{PREFIX}owner"]) == ("ls-1", "tk-1")
        assert tags[f"{PREFIX}expires-at"] == f"{NOW + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
        assert "ssh-ed25519" not in str(tags)
    assert told.ids == [delivered.machine.instance_id]
    assert [kind for kind, _ in told.events] == [EventKind.LAUNCHED, EventKind.RUNNING, EventKind.SSH]


def test_times_count_from_the_request_and_t4_says_what_proved_it(
    cloud: Cloud, image_id: str, host: SshHost
) -> None:
    told = Told()
    _, delivered = asyncio.run(launched(cloud, image_id, told))
    timing = delivered.timing
    assert 5.0 < timing.t1_ms < timing.t2_ms
    assert timing.t3_ms <= timing.t4_ms
    assert timing.t4_by == "pk_ok"
    assert dict(told.events)[EventKind.LAUNCHED]["t1_ms"] == timing.t1_ms
    shown = host.host_key.export_public_key().decode().split()[:2]
    assert delivered.machine.host_keys == (" ".join(shown),)
    assert delivered.host_keys_known_by == "first-contact"


def test_a_repeated_launch_is_the_same_request(cloud: Cloud, image_id: str, faults: Ec2Faults) -> None:
    """EC2 answers a client token that it knows with the machine that it made, if all else is the same."""
    asyncio.run(launched(cloud, image_id))
    asyncio.run(launched(cloud, image_id))
    first, second = faults.run_bodies
    assert first == second
    assert first["ClientToken"] == "mc-1"


def test_a_launch_that_fails_says_why(cloud: Cloud, image_id: str, faults: Ec2Faults) -> None:
    faults.launch_errors = ["InsufficientInstanceCapacity"]
    with pytest.raises(MachineFailed, match="InsufficientInstanceCapacity") as failure:
        asyncio.run(launched(cloud, image_id))
    assert failure.value.capacity


def test_host_keys_come_from_the_console_and_must_be_those_that_were_seen(
    cloud: Cloud, image_id: str, faults: Ec2Faults
) -> None:
    async def scenario() -> None:
        fleet, delivered = await launched(cloud, image_id)
        keys = await fleet.console_host_keys(delivered.machine)
        assert keys == delivered.machine.host_keys
        other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
        with pytest.raises(MachineFailed, match="none of the machine's"):
            await fleet.console_host_keys(dataclasses.replace(delivered.machine, host_keys=(other,)))
        assert faults.console

    asyncio.run(scenario())


def test_the_promise_is_in_the_tags_and_the_service_sees_its_own_machines_alone(
    cloud: Cloud, image_id: str
) -> None:
    async def scenario() -> None:
        fleet, delivered = await launched(cloud, image_id)
        cloud.ec2.run_instances(ImageId=image_id, MinCount=1, MaxCount=1)
        ends_at = NOW + timedelta(minutes=7)
        await fleet.promise(delivered.machine, lease_of(), ends_at)
        (sighting,) = await fleet.sightings()
        assert (sighting.instance_id, sighting.machine_id, sighting.lease_id, sighting.owner) == (
            delivered.machine.instance_id, "mc-1", "ls-1", "tk-1",
        )  # fmt: skip
        assert (sighting.role, sighting.expires_at) == ("lease", ends_at)
        await fleet.terminate(sighting.instance_id)
        await fleet.terminate("i-0123456789abcdef0")  # unknown is gone
        (sighting,) = await fleet.sightings()
        assert sighting.is_gone

    asyncio.run(scenario())


def test_a_lifes_calls_stay_within_the_policy(cloud: Cloud, image_id: str) -> None:
    recorder = Recorder(cloud, mock_session().client("ec2"))

    async def scenario() -> None:
        ensure_group(cloud, SERVICE, ["192.0.2.0/24"])
        fleet, delivered = await launched(cloud, image_id)
        await fleet.promise(delivered.machine, lease_of(), NOW + timedelta(minutes=7))
        await fleet.console_host_keys(delivered.machine)
        await fleet.sightings()
        await fleet.terminate(delivered.machine.instance_id)

    asyncio.run(scenario())
    assert {"ec2:RunInstances", "ec2:CreateTags", "ec2:RevokeSecurityGroupIngress"} <= recorder.actions
    check("service", recorder.calls)


def test_ec2s_clock_is_compared_by_its_answers(cloud: Cloud) -> None:
    async def scenario() -> None:
        async with fleet_of(cloud) as fleet:
            await fleet.sightings()
            assert abs(fleet.clock_skew_s) < 60
            behind = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)

            def set_back(http_response: Any, **_: Any) -> None:
                http_response.headers["date"] = behind

            cloud.ec2.meta.events.register_first("after-call.ec2.DescribeInstances", set_back)
            await fleet.sightings()
            assert 3590 < fleet.clock_skew_s < 3900

    asyncio.run(scenario())


def test_machines_are_ended_without_waiting_for_their_systems(cloud: Cloud, image_id: str) -> None:
    bodies: list[Any] = []
    cloud.ec2.meta.events.register(
        "before-parameter-build.ec2.TerminateInstances", lambda params, **_: bodies.append(dict(params))
    )

    async def scenario() -> None:
        fleet, delivered = await launched(cloud, image_id)
        await fleet.terminate(delivered.machine.instance_id)

    asyncio.run(scenario())
    assert bodies[0]["SkipOsShutdown"] is True


class _Parked:
    """Nothing but whether it is open."""

    def __init__(self, *, alive: bool = True) -> None:
        self.alive = alive
        self.closed = False

    def close(self) -> None:
        self.closed = True


class TestAHandOver:
    """What becomes of its errors. ``deliver`` and ``park`` are pretended."""

    @pytest.fixture
    def attempts(self, monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
        errors: list[Exception | None] = []

        async def park(*_: Any, **__: Any) -> _Parked:
            return _Parked()

        async def deliver(*_: Any, **__: Any) -> None:
            if error := errors.pop(0):
                raise error

        monkeypatch.setattr(ec2_fleet, "park", park)
        monkeypatch.setattr(ec2_fleet, "deliver", deliver)
        return errors

    def hand_over(self, cloud: Cloud, image_id: str, host: SshHost, earlier: _Parked | None = None) -> Any:
        key = " ".join(host.host_key.export_public_key().decode().split()[:2])

        async def scenario() -> Any:
            async with fleet_of(cloud) as fleet:
                instance_id = cloud.ec2.run_instances(ImageId=image_id, MinCount=1, MaxCount=1)["Instances"][
                    0
                ]
                machine = machine_of(
                    image_id, technique="warm-running", pool="pool", instance_id=instance_id["InstanceId"],
                    address="127.0.0.1", username="admin", host_keys=(key,),
                )  # fmt: skip
                if earlier is not None:
                    fleet._parked[machine.id] = earlier  # type: ignore[assignment]
                return await fleet.hand_over(
                    machine, lease_of("warm-running"), time.monotonic_ns(), NOW + timedelta(hours=1), nothing
                )

        return asyncio.run(scenario())

    def test_one_that_was_done_before_a_restart_is_proved_and_not_done_again(
        self, cloud: Cloud, image_id: str, host: SshHost, attempts: list[Exception | None]
    ) -> None:
        attempts[:] = [AlreadyHandedOut("ls-1")]
        delivered = self.hand_over(cloud, image_id, host)
        assert delivered.timing.t4_by == "pk_ok"
        assert delivered.host_keys_known_by == "console"

    def test_of_a_connection_that_broke_nothing_stays(
        self, cloud: Cloud, image_id: str, host: SshHost, attempts: list[Exception | None]
    ) -> None:
        """The standing one beside it would be made anew on a machine that is somebody's."""
        broken = _Parked(alive=False)
        attempts[:] = [None]
        self.hand_over(cloud, image_id, host, broken)
        assert broken.closed

    def test_a_machine_of_another_lease_is_left_alone_and_its_tags_say_so(
        self, cloud: Cloud, image_id: str, host: SshHost, attempts: list[Exception | None]
    ) -> None:
        attempts[:] = [AlreadyHandedOut("ls-other")]
        with pytest.raises(MachineFailed) as failure:
            self.hand_over(cloud, image_id, host)
        assert failure.value.taken
        tags = [
            read_tags(machine.get("Tags"))
            for reservation in cloud.ec2.describe_instances()["Reservations"]
            for machine in reservation["Instances"]
        ]
        assert tags[-1][f"{PREFIX}lease"] == "ls-other"
        assert tags[-1][f"{PREFIX}role"] == "lease"

    def test_whatever_else_goes_wrong_the_machine_is_to_be_ended(
        self, cloud: Cloud, image_id: str, host: SshHost, attempts: list[Exception | None]
    ) -> None:
        for error in (
            Contaminated("half-way"), TimeoutError(), OSError("no route"),
            ClientError({"Error": {"Code": "Throttling"}}, "SendSSHPublicKey"),
        ):  # fmt: skip
            attempts[:] = [error]
            with pytest.raises(MachineFailed) as failure:
                self.hand_over(cloud, image_id, host)
            assert not failure.value.taken


def test_host_key_lines_are_read_back() -> None:
    keys = HostKeys((KEY,))
    assert ec2_fleet._host_keys(machine_of("ami-1", host_keys=(KEY.bare,))) == keys
    assert ec2_fleet._host_keys(machine_of("ami-1")) is None

"""What a technique is: one way of getting a machine, from "prepare" to "clean up".

``prepare`` runs once, ``fill`` before each attempt, ``launch`` on the clock, ``release`` after the attempt's
machine is gone. All but ``fill`` are synchronous, as boto3 is; callers with an event loop run them in a
worker thread. ``fill`` may wait for a machine for minutes, and can be cancelled.
"""

from __future__ import annotations

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from botocore.exceptions import ClientError

from instant_env.cloud.handover import HandOver
from instant_env.cloud.images import BakedImage
from instant_env.cloud.instances import LaunchOptions, LaunchRequest, Market, launch_and_tell
from instant_env.cloud.launching.refusals import CAPACITY_ERRORS, NO_SPOT_ERRORS
from instant_env.cloud.launching.repeats import joined
from instant_env.cloud.session import Cloud, error_code
from instant_env.cloud.tags import Role
from instant_env.errors import InstantEnvError, UsageError
from instant_env.launch.launched import Launched
from instant_env.launch.watch import Watcher
from instant_env.public_key import PublicKey
from instant_env.ssh.host_keys import HostKeys
from instant_env.ssh.probe_client import Prober
from instant_env.user_data import UserData

_PLAIN = LaunchOptions()


@dataclass(frozen=True)
class ComparedVolume:
    """What a root volume is like in the launches that one is compared with. ``kms_key_id`` None is the
    account's key."""

    encrypted: bool
    volume_type: str
    kms_key_id: str | None = None


@dataclass(frozen=True)
class Prepared:
    """What a launch needs, looked up or made ahead of the clock. ``username`` logs in; the rest is recorded.

    ``root_gib`` is the size of the AMI's root volume; ``root_device`` its name. ``compared_volume``: where
    the AMI's own root volume is not like those that it is compared with.
    """

    image_id: str
    username: str
    recipe: str = ""
    plan_hash: str = ""
    base_ami: str = ""
    note: str = ""
    root_device: str = ""
    root_gib: int = 0
    compared_volume: ComparedVolume | None = None


@dataclass(frozen=True)
class LaunchSpec:
    """One launch, as every technique gets it. ``user_data``: for our init, such as its own timer;
    a key that is handed over by user data replaces the keys in it. ``beside_user_data``: members of the same
    document that are not ours, and which the init ignores.

    ``public_key`` is the key that is to be let in; ``key_name`` names the key pair that EC2 gives to machines
    at launch. The two are the same key unless the technique hands a key over (``hands_over_key``).
    ``pool``: the name of the pool that a fill is for, in the machine's tags; empty for a slot that nobody has
    to find again. ``extra_tags``: further tags of ours, by their names without the prefix.
    """

    run_id: str
    name: str
    role: Role
    instance_type: str
    key_name: str
    security_group_id: str
    market: Market
    expires_at: datetime
    user_data: UserData
    client_token: str
    public_key: PublicKey
    options: LaunchOptions = _PLAIN
    hand_over: HandOver = HandOver.CONNECT
    beside_user_data: Mapping[str, str] = field(default_factory=dict)
    pool: str = ""
    extra_tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolSlot:
    """What ``fill`` made for one launch; empty for techniques that make nothing ahead.

    ``boot_id``: of its machine, as it ran then. ``host_keys``: of its machine, where the fill has read them
    from the console. ``filled_ns``: ``time.monotonic_ns()`` when it was ready; it is of this process's clock,
    so it does not count in comparisons.
    """

    instance_id: str = ""
    interface_id: str = ""
    allocation_id: str = ""
    address: str = ""
    boot_id: str = ""
    host_keys: HostKeys | None = None
    filled_ns: int = field(default=0, compare=False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was made ahead."""
        return not (self.instance_id or self.interface_id)

    @property
    def runs(self) -> bool:
        """Whether its machine runs: it has an address, and is neither stopped nor hibernated."""
        return bool(self.instance_id and self.address)


class FillError(InstantEnvError):
    """A slot could not be made."""


@dataclass(frozen=True)
class LaunchContext:
    """What slots are filled with: the shared poll, the prober, and how long a fill's launch may take."""

    cloud: Cloud
    watcher: Watcher
    prober: Prober
    timeout_s: float


class Technique(ABC):
    """One way of getting a machine."""

    name: str
    recipe: str | None
    """The recipe whose AMI it launches, None when it needs none of its own."""
    raced_by_default = False
    """Whether a run that names no technique includes it, when its AMI is there."""
    on_demand_only = False
    """Its machines are stopped and started, or stand for long: a one-time spot machine cannot."""
    hands_over_key = False
    """Its machines are there before the key is known: each attempt has a key of its own."""
    quota = ""
    """What an account has only so many of, and each attempt takes one; techniques that name it share it."""
    most_in_flight: int | None = None
    """How many attempts that quota allows at a time."""

    @abstractmethod
    def prepare(self, cloud: Cloud, images: Mapping[str, BakedImage]) -> Prepared:
        """Find or make what a launch needs; not on the clock. ``images``: our AMIs by recipe.

        Raises UsageError when something it needs is not there.
        """

    def user_data(self, spec: LaunchSpec) -> str | None:
        """The user data of its machines at launch."""
        return json.dumps(spec.user_data.document() | dict(spec.beside_user_data))

    async def fill(self, context: LaunchContext, prepared: Prepared, spec: LaunchSpec) -> PoolSlot:
        """Make one slot, before the clock starts. Raises FillError, and botocore's errors.

        What it made and did not return carries the run's tags and the pool's role.
        """
        del context, prepared, spec
        return PoolSlot(filled_ns=time.monotonic_ns())

    @abstractmethod
    def launch(self, cloud: Cloud, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot) -> Launched:
        """Ask for the machine: this is on the clock. botocore's errors are passed on."""

    def release(self, cloud: Cloud, slot: PoolSlot) -> None:  # noqa: B027 - most have nothing to undo
        """Undo ``fill``, after the machine is gone; machines themselves are the caller's to end."""


class BakedTechnique(Technique):
    """A plain RunInstances of one of our AMIs."""

    raced_by_default = True

    def prepare(self, cloud: Cloud, images: Mapping[str, BakedImage]) -> Prepared:
        del cloud  # the images say it all
        if self.recipe is None or self.recipe not in images:
            raise UsageError(
                f"{self.name} needs a {self.recipe} AMI", hint=f"run: invoke bake --recipe {self.recipe}"
            )
        image = images[self.recipe]
        return Prepared(
            image_id=image.id,
            username=image.login_user,
            recipe=image.recipe,
            plan_hash=image.plan_hash,
            base_ami=image.base_ami,
            root_device=image.root_device,
            root_gib=image.root_gib,
        )

    def launch(self, cloud: Cloud, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot) -> Launched:
        del slot
        return run_instance(cloud, prepared, spec, user_data=self.user_data(spec))


class Combined(Technique):
    """A way of getting machines that works with several images: it prepares as the image's technique does."""

    way: str

    def __init__(self, image: Technique, name: str) -> None:
        self.image = image
        self.name = name
        self.recipe = image.recipe

    def prepare(self, cloud: Cloud, images: Mapping[str, BakedImage]) -> Prepared:
        return self.image.prepare(cloud, images)

    def user_data(self, spec: LaunchSpec) -> str | None:
        return self.image.user_data(spec)


def launch_request(prepared: Prepared, spec: LaunchSpec, *, user_data: str | None) -> LaunchRequest:
    """The plain request of a spec."""
    return LaunchRequest(
        image_id=prepared.image_id,
        instance_type=spec.instance_type,
        run_id=spec.run_id,
        role=spec.role,
        name=spec.name,
        expires_at=spec.expires_at,
        client_token=spec.client_token,
        key_name=spec.key_name,
        security_group_id=spec.security_group_id,
        market=spec.market,
        user_data=user_data,
        extra_tags={**spec.extra_tags, **({"pool": spec.pool} if spec.pool else {})},
        options=spec.options,
        root_device=prepared.root_device,
    )


def run_instance(
    cloud: Cloud,
    prepared: Prepared,
    spec: LaunchSpec,
    *,
    user_data: str | None,
    interface_id: str | None = None,
) -> Launched:
    """RunInstances; a spot request that EC2 has no machine for is repeated on demand, and the note says so.

    The refused request's time stays in t1, because the caller has waited for it.
    """
    request = launch_request(prepared, spec, user_data=user_data)
    request = dataclasses.replace(request, interface_id=interface_id)
    refusal = no_spot = ""
    try:
        answer = launch_and_tell(cloud, request)
    except ClientError as error:
        code = error_code(error)
        if request.market is not Market.SPOT or code not in CAPACITY_ERRORS | NO_SPOT_ERRORS:
            raise
        no_spot = code if code in NO_SPOT_ERRORS else ""
        refusal = joined(*getattr(error, "__notes__", []), f"spot: {code}, on demand instead")
        # A client token stands for one set of parameters: the changed request needs another.
        request = dataclasses.replace(
            request, market=Market.ON_DEMAND, client_token=f"{request.client_token}-od"
        )
        answer = launch_and_tell(cloud, request)
    note = joined(refusal, answer.note)
    return Launched(answer.value, request.market, time.monotonic_ns(), note, no_spot=no_spot)

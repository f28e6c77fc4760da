"""What a technique is: one way of getting a machine, from "prepare" to "clean up".

The methods are synchronous, as boto3 is; callers with an event loop run them in a worker thread.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from botocore.exceptions import ClientError

from instant_env.cloud.images import BakedImage
from instant_env.cloud.instances import CAPACITY_ERRORS, LaunchRequest, Market, launch, ttl_user_data
from instant_env.cloud.session import Cloud, error_code
from instant_env.cloud.tags import Role
from instant_env.errors import UsageError


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` found or made, ahead of the clock. ``username`` logs in; the rest goes on record."""

    image_id: str
    username: str
    recipe: str = ""
    plan_hash: str = ""
    base_ami: str = ""
    note: str = ""


@dataclass(frozen=True)
class Order:
    """One launch, as every technique is told it. ``ttl_s``: the machine's own timer, where it has one."""

    run_id: str
    name: str
    role: Role
    instance_type: str
    key_name: str
    security_group_id: str
    market: Market
    expires_at: datetime
    ttl_s: int
    client_token: str


@dataclass(frozen=True)
class Launched:
    """A machine that EC2 has given an id. ``returned_ns``: ``time.monotonic_ns()`` when its answer came."""

    instance_id: str
    market: Market
    returned_ns: int
    note: str = ""


class Technique(ABC):
    """One way of getting a machine."""

    name: ClassVar[str]
    recipe: ClassVar[str | None]
    """The recipe whose AMI it launches, None when it needs none of its own."""

    @abstractmethod
    def prepare(self, cloud: Cloud, images: Mapping[str, BakedImage]) -> Prepared:
        """Find or make what a launch needs; not on the clock. ``images``: our AMIs by recipe.

        Raises UsageError when something it needs is not there.
        """

    @abstractmethod
    def launch(self, cloud: Cloud, prepared: Prepared, order: Order) -> Launched:
        """Ask for the machine: this is on the clock. botocore's errors are passed on."""

    def clean_up(self, cloud: Cloud, prepared: Prepared) -> None:  # noqa: B027 - most have nothing to undo
        """Undo ``prepare``. The machines themselves are the caller's to end."""


class BakedTechnique(Technique):
    """A plain RunInstances of one of our AMIs."""

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
        )

    def launch(self, cloud: Cloud, prepared: Prepared, order: Order) -> Launched:
        return run_instance(cloud, prepared.image_id, order, user_data=ttl_user_data(order.ttl_s))


def run_instance(cloud: Cloud, image_id: str, order: Order, *, user_data: str | None) -> Launched:
    """RunInstances; a spot request that finds no capacity is repeated on demand, and the note says so.

    The refused request's time stays in t1: whoever asked for the machine has waited for it.
    """
    request = LaunchRequest(
        image_id=image_id,
        instance_type=order.instance_type,
        run_id=order.run_id,
        role=order.role,
        name=order.name,
        expires_at=order.expires_at,
        client_token=order.client_token,
        key_name=order.key_name,
        security_group_id=order.security_group_id,
        market=order.market,
        user_data=user_data,
    )
    note = ""
    try:
        instance_id = launch(cloud, request)
    except ClientError as error:
        if request.market is not Market.SPOT or error_code(error) not in CAPACITY_ERRORS:
            raise
        note = f"spot: {error_code(error)}, on demand instead"
        # A client token stands for one set of parameters: the changed request needs another.
        request = dataclasses.replace(
            request, market=Market.ON_DEMAND, client_token=f"{request.client_token}-od"
        )
        instance_id = launch(cloud, request)
    return Launched(instance_id, request.market, time.monotonic_ns(), note)

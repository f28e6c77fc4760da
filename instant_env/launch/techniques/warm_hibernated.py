"""A pool of machines asleep."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping

from instant_env.cloud import handover
from instant_env.cloud.handover import HandOver
from instant_env.cloud.images import BakedImage
from instant_env.cloud.instances import Market, start
from instant_env.cloud.launching.repeats import joined
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError
from instant_env.launch import pool
from instant_env.launch.launched import Launched
from instant_env.launch.techniques.base import (
    Combined,
    LaunchContext,
    LaunchSpec,
    PoolSlot,
    Prepared,
)


class WarmHibernated(Combined):
    """StartInstances of a machine that hibernates.

    Does: start it, hand the key over once it runs (by tag: before). That it resumed is proved by its boot id.
    Needs: a pool of hibernated machines (their volumes are paid for, memory included), on demand, of a type
    and an image that can hibernate; and an image that takes keys while it runs. Saves: the whole boot after
    the loader, for reading the memory back.
    """

    way = "warm-hibernated"
    on_demand_only = True
    hands_over_key = True

    def prepare(self, cloud: Cloud, images: Mapping[str, BakedImage]) -> Prepared:
        image = images.get(self.recipe) if self.recipe else None
        if image is not None and not image.hibernates:
            raise UsageError(
                f"{self.name}: machines of {image.id} ({image.recipe}) cannot hibernate, as its tag says",
                hint="for example: --technique custom-init+warm-hibernated",
            )
        return super().prepare(cloud, images)

    async def fill(self, context: LaunchContext, prepared: Prepared, spec: LaunchSpec) -> PoolSlot:
        spec = pool.with_tags_for_keys(spec)
        options = await asyncio.to_thread(pool.with_memory, context.cloud, prepared, spec)
        slot = await pool.fill_running(
            context,
            prepared,
            dataclasses.replace(spec, options=options),
            user_data=self.user_data(spec),
            hibernation=True,
        )
        return await pool.stop_or_hibernate(context, slot, hibernate=True)

    def launch(self, cloud: Cloud, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot) -> Launched:
        by_tag = spec.hand_over is HandOver.TAG
        tagged = handover.by_tag(cloud, slot.instance_id, spec.public_key) if by_tag else ""
        started = start(cloud, slot.instance_id)
        returned_ns = time.monotonic_ns()

        def deliver() -> str:
            return handover.by_instance_connect(cloud, slot.instance_id, prepared.username, spec.public_key)

        return Launched(
            slot.instance_id,
            Market.ON_DEMAND,
            returned_ns,
            joined(tagged, started),
            restarted=True,
            deliver=None if by_tag else deliver,
            resumes=slot.boot_id,
        )

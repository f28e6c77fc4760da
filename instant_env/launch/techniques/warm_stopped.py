"""A pool of stopped machines."""

from __future__ import annotations

import time
from collections.abc import Mapping

from instant_env.cloud import handover
from instant_env.cloud.images import BakedImage
from instant_env.cloud.instances import Market, start
from instant_env.cloud.launching.repeats import joined
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError
from instant_env.launch import pool
from instant_env.launch.launched import Launched
from instant_env.launch.techniques.base import Combined, LaunchContext, LaunchSpec, PoolSlot, Prepared


class WarmStopped(Combined):
    """StartInstances of a machine that has booted before.

    Does: put the key into the user data of a stopped machine, start it; its key agent reads it there.
    Needs: a pool of stopped machines (their volumes are paid for), on demand, of an image whose init or key
    agent reads keys in user data at each start (a stock image does so at its first start alone), and whose
    sshd takes keys of Instance Connect, which prove the fill.
    Saves: making the volume and the interface; first touch of blocks that the snapshot still held; host keys.
    """

    way = "warm-stopped"
    on_demand_only = True
    hands_over_key = True

    def prepare(self, cloud: Cloud, images: Mapping[str, BakedImage]) -> Prepared:
        if self.recipe is None:
            raise UsageError(
                f"{self.name}: a stock image ignores changed user data on a restart",
                hint="for example: --technique minimal-ami+warm-stopped",
            )
        return super().prepare(cloud, images)

    async def fill(self, context: LaunchContext, prepared: Prepared, spec: LaunchSpec) -> PoolSlot:
        slot = await pool.fill_running(context, prepared, spec, user_data=self.user_data(spec))
        return await pool.stop_or_hibernate(context, slot)

    def launch(self, cloud: Cloud, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot) -> Launched:
        del prepared
        notes = [
            handover.in_user_data(cloud, slot.instance_id, spec.public_key, spec.user_data),
            start(cloud, slot.instance_id),
        ]
        return Launched(
            slot.instance_id, Market.ON_DEMAND, time.monotonic_ns(), joined(*notes), restarted=True
        )

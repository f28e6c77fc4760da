"""A pool of machines that run."""

from __future__ import annotations

import time

from instant_env.cloud import handover
from instant_env.cloud.handover import HandOver
from instant_env.cloud.instances import Market
from instant_env.cloud.session import Cloud
from instant_env.launch import pool
from instant_env.launch.launched import Launched
from instant_env.launch.parked import Parked
from instant_env.launch.techniques.base import (
    Combined,
    LaunchContext,
    LaunchSpec,
    PoolSlot,
    Prepared,
)


class WarmRunning(Combined):
    """Hand a key to a machine that runs.

    Does: SendSSHPublicKey of EC2 Instance Connect (or a tag), then log in.
    Needs: a pool of running machines, paid for like any other, of an image whose sshd asks for keys of
    Instance Connect, which also prove the fill; for a hand-over by tag, of one that asks for the tag.
    Saves: everything but the hand-over and the login. t1 is the answer to the hand-over, and t2 the same
    instant: the machine ran before.
    """

    way = "warm-running"
    on_demand_only = True
    hands_over_key = True

    async def fill(self, context: LaunchContext, prepared: Prepared, spec: LaunchSpec) -> PoolSlot:
        spec = pool.with_tags_for_keys(spec)
        return await pool.fill_running(context, prepared, spec, user_data=self.user_data(spec))

    async def fill_parked(
        self, context: LaunchContext, prepared: Prepared, spec: LaunchSpec
    ) -> tuple[PoolSlot, Parked]:
        """As :meth:`fill`, with the login that proved the machine parked on it."""
        return await pool.fill_parked(context, prepared, spec, user_data=self.user_data(spec))

    def launch(self, cloud: Cloud, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot) -> Launched:
        if spec.hand_over is HandOver.TAG:
            note = handover.by_tag(cloud, slot.instance_id, spec.public_key)
        else:
            note = handover.by_instance_connect(cloud, slot.instance_id, prepared.username, spec.public_key)
        return Launched(
            slot.instance_id,
            Market.ON_DEMAND,
            time.monotonic_ns(),
            note,
            address=slot.address,
            running=True,
        )

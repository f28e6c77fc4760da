"""A network interface with a public address, made ahead."""

from __future__ import annotations

import asyncio
import dataclasses
import time

from instant_env.cloud.interfaces import (
    ELASTIC_IP_QUOTA,
    PublicInterface,
    delete_public_interface,
    make_public_interface,
)
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role
from instant_env.launch.launched import Launched
from instant_env.launch.techniques.base import (
    Combined,
    LaunchContext,
    LaunchSpec,
    PoolSlot,
    Prepared,
    run_instance,
)


class PreallocEni(Combined):
    """RunInstances with a network interface that exists already, with its public address.

    Does: make an interface and an Elastic IP ahead, and launch the image with that interface attached.
    Needs: an Elastic IP for each launch in flight (five per region by default), and an idle one is paid for.
    Saves: making an interface and finding a public address within the launch; and the address is known before
    the machine is, so no launch waits for DescribeInstances.
    """

    way = "prealloc-eni"
    quota = "Elastic IPs"
    most_in_flight = ELASTIC_IP_QUOTA

    async def fill(self, context: LaunchContext, prepared: Prepared, spec: LaunchSpec) -> PoolSlot:
        del prepared
        # A thread cannot be stopped: after a cancellation the run deletes its interface, found by its tags.
        making = asyncio.create_task(asyncio.to_thread(self._make, context.cloud, spec))
        try:
            interface = await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.gather(making, return_exceptions=True)
            raise
        return PoolSlot(
            interface_id=interface.interface_id,
            allocation_id=interface.allocation_id,
            address=interface.address,
            filled_ns=time.monotonic_ns(),
        )

    @staticmethod
    def _make(cloud: Cloud, spec: LaunchSpec) -> PublicInterface:
        return make_public_interface(
            cloud,
            security_group_id=spec.security_group_id,
            run_id=spec.run_id,
            role=Role.POOL,
            name=spec.name,
            expires_at=spec.expires_at,
            subnet_id=spec.options.subnet_id,
        )

    def launch(self, cloud: Cloud, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot) -> Launched:
        launched = run_instance(
            cloud, prepared, spec, user_data=self.user_data(spec), interface_id=slot.interface_id
        )
        return dataclasses.replace(launched, address=slot.address)

    def release(self, cloud: Cloud, slot: PoolSlot) -> None:
        delete_public_interface(cloud, slot.interface_id, slot.allocation_id)

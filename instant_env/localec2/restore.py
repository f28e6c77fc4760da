"""From the disk to a working state: identity, records, and what a killed server left behind."""

from __future__ import annotations

import logging
import secrets
import shutil
import string

from instant_env.localec2.images import Images
from instant_env.localec2.layout import Layout
from instant_env.localec2.lifecycle import Lifecycle
from instant_env.localec2.machine import end_lost
from instant_env.localec2.network import BLOCKS
from instant_env.localec2.records import InstanceRecord, RecordStore, ServerRecord
from instant_env.localec2.state import State

log = logging.getLogger(__name__)

_KEY_ALPHABET = string.ascii_uppercase + "234567"


def identity(store: RecordStore) -> ServerRecord:
    """The server's record, made at the first start. The access key's prefix is none that AWS gives out."""
    if found := store.load_all(ServerRecord):
        return found[0]
    record = ServerRecord(
        access_key_id="LOCL" + "".join(secrets.choice(_KEY_ALPHABET) for _ in range(16)),
        secret_access_key=secrets.token_urlsafe(30), admin_token=secrets.token_urlsafe(30),
        network_seed=secrets.randbits(64), address_block=secrets.randbelow(BLOCKS),
    )  # fmt: skip
    store.save(record)
    return record


def end_lost_machines(layout: Layout, store: RecordStore) -> set[str]:
    """End machines that outlived their server, found by their monitors; returns their instances' ids.

    Both the sockets that records name and all that lie in the runtime directory: a machine can be started a
    moment before its server dies.
    """
    sockets = {layout.runtime() / path.name for path in layout.runtime().glob("*.qmp")}
    sockets |= {
        layout.runtime().parent.joinpath(r.qmp_socket) for r in store.load_all(InstanceRecord) if r.qmp_socket
    }
    ended = set()
    for socket in sockets:
        if end_lost(socket):
            log.warning("ended the lost machine %s", socket.stem)
            ended.add(socket.stem)
    return ended


def settle(state: State, lifecycle: Lifecycle, images: Images, lost: set[str]) -> None:
    """Make records true again after a server that did not end in order (lock held)."""
    for instance in list(state.instances.values()):
        instance.public_ip = None
        if instance.state in ("pending", "running", "stopping"):
            what = (
                "its machine was ended at the next start" if instance.id in lost else "its machine was gone"
            )
            state.set_instance_state(
                instance, "stopped", code="Server.InternalError", reason="Server.InternalError",
                message=f"localec2 ended unexpectedly; {what}",
            )  # fmt: skip
        elif instance.state == "shutting-down":
            lifecycle.finish_termination(instance.id)
    images.settle_interrupted()
    lifecycle.purge()
    _sweep(state, lifecycle)


def _sweep(state: State, lifecycle: Lifecycle) -> None:
    """Remove files that no record knows: a server died between making one and recording it."""
    for path in state.layout.volumes.glob("*.qcow2"):
        if path.stem not in state.volumes:
            path.unlink()
    for directory in state.layout.instances.iterdir():
        if directory.name not in state.instances:
            shutil.rmtree(directory, ignore_errors=True)
    for volume in list(state.volumes.values()):
        attachment = volume.attachment
        instance = state.instances.get(attachment.instance_id) if attachment else None
        if attachment and (instance is None or instance.state == "terminated"):
            volume.attachment = None
            if attachment.delete_on_termination:
                lifecycle.delete_volume(volume)
            else:
                state.save(volume)
    lifecycle.collect_snapshots()

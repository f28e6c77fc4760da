"""From the disk to a working state: identity, records, and what a killed server left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import string
import time
from pathlib import Path

from instant_env.errors import InstantEnvError
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.network.addresses import BLOCKS
from instant_env.localec2.qemu import disks
from instant_env.localec2.qemu.machine import end_lost
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.records.records import InstanceRecord, ServerRecord, VolumeRecord
from instant_env.localec2.records.store import RecordStore
from instant_env.localec2.state.moto_api import ACCOUNT_ID
from instant_env.localec2.state.state import State
from instant_env.localec2.volumes.images import Images
from instant_env.waiting import wait_until

log = logging.getLogger(__name__)

#: From SIGKILL to the end of a process that waits for a disk.
KILL_TIMEOUT_S = 10.0
#: A program that was being started when its server died has the server's name until it is (fork, then exec).
_FORK_S = 0.2
_KEY_ALPHABET = string.ascii_uppercase + "234567"


class RegionError(InstantEnvError):
    """The state directory belongs to another region."""


def identity(store: RecordStore, region: str) -> ServerRecord:
    """The server's record, made at the first start.

    Raises RegionError when what is in the store was made in another region: zones and ARNs name it.
    """
    if servers := store.load_all(ServerRecord):
        record = servers[0]
        if not record.region:
            zones = [instance.zone for instance in store.load_all(InstanceRecord)]
            zones += [volume.zone for volume in store.load_all(VolumeRecord)]
            record.region = zones[0][:-1] if zones else region
            store.save(record)
        if record.region != region:
            raise RegionError(
                f"the region {region} was asked for, but this state directory is in {record.region}",
                hint=f"set the region to {record.region} (INSTANT_ENV_REGION), or use another directory "
                "(INSTANT_ENV_STATE_DIR)",
            )
        return record
    record = ServerRecord(
        access_key_id="", secret_access_key="", admin_token="", region=region,
        network_seed=secrets.randbits(64), address_block=secrets.randbelow(BLOCKS),
    ).model_copy(update=_secrets())  # fmt: skip
    store.save(record)
    return record


def settle_home(layout: Layout, store: RecordStore, record: ServerRecord) -> ServerRecord:
    """The record of the server of this very directory: a copy of a state directory is another server.

    It has credentials of its own, so that neither commands the other, and none of the machines that its
    records name: those are the original's. Disks that were copied are backed by their copied snapshots.
    """
    status = layout.state_dir.stat()
    home, inode = str(layout.state_dir), f"{status.st_dev}:{status.st_ino}"
    moved = bool(record.home) and record.home != home
    if moved:
        _rebase(layout, record.home)
    if moved and record.home_inode != inode:
        log.warning("this is a copy of %s: it becomes a server of its own", record.home)
        layout.signer.unlink(missing_ok=True)
        record = record.model_copy(
            update={**_secrets(), "address_block": secrets.randbelow(BLOCKS), "port": 0}
        )
        for instance in store.load_all(InstanceRecord):
            instance.qmp_socket = ""
            store.save(instance)
    record = record.model_copy(update={"home": home, "home_inode": inode})
    store.save(record)
    return record


def _secrets() -> dict[str, str]:
    """What somebody proves with that they may command a server. The access key's prefix is none of AWS's."""
    return {
        "access_key_id": "LOCL" + "".join(secrets.choice(_KEY_ALPHABET) for _ in range(16)),
        "secret_access_key": secrets.token_urlsafe(30), "admin_token": secrets.token_urlsafe(30),
    }  # fmt: skip


def _rebase(layout: Layout, former: str) -> None:
    """Let disks that came along have the snapshots behind them that came along, too."""
    for path in [*layout.volumes.glob("*.qcow2"), *layout.snapshots.glob("*.qcow2")]:
        backing = disks.recorded_backing(path)
        if backing is not None and backing.is_relative_to(former):
            here = layout.state_dir / backing.relative_to(former)
            if here.exists():
                disks.set_backing(path, here)


def end_lost_machines(layout: Layout, store: RecordStore) -> set[str]:
    """End machines that outlived their server, found by their monitors; returns their instances' ids.

    Both the sockets that records name and all that lie in the runtime directory: a machine can be started a
    moment before its server dies.
    """
    sockets = set(layout.runtime.glob("*.qmp")) if layout.has_runtime() else set()
    sockets |= {layout.runtime.parent / r.qmp_socket for r in store.load_all(InstanceRecord) if r.qmp_socket}
    ended = set()
    for socket in sockets:
        if end_lost(socket):
            log.warning("ended the lost machine %s", socket.stem)
            ended.add(socket.stem)
    ended |= end_processes(layout)
    if layout.journal.exists():  # the server died while it was at something
        time.sleep(_FORK_S)
        ended |= end_processes(layout)
    layout.remove_runtime()  # we hold the state directory's lock: nobody alive has them
    return ended


def end_processes(layout: Layout) -> set[str]:
    """End programs that work on our files: a QEMU that no socket led to, a qemu-img in the middle of a copy.

    Returns the ids of the instances among them. Only where there is /proc.
    """
    ours, ended = str(layout.state_dir) + "/", set()
    processes = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if directory.stat().st_uid != os.getuid():
                continue
            words = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has just ended
        program = next((name for word in words[:4] if (name := Path(word).name).startswith("qemu-")), "")
        writes = program.startswith("qemu-system") or any(
            word.startswith(ours) and word.endswith(".part") for word in words
        )
        if program and writes and any(ours in word for word in words):
            log.warning("ending the lost process %s: %s", directory.name, program)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(directory.name), signal.SIGKILL)
            processes.append(directory)
            ended |= {words[words.index("-name") + 1]} if "-name" in words else set()
    wait_until(lambda: not any(_lives(directory) for directory in processes), KILL_TIMEOUT_S, 0.02)
    return ended


def _lives(process: Path) -> bool:
    """Whether a process of /proc still runs; one that only waits to be collected has let go of its files."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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
    _drop_ownerless_snapshots(state)
    lifecycle.purge()
    _sweep(state, lifecycle)


def _drop_ownerless_snapshots(state: State) -> None:
    """A stock image's snapshot without its image: it is another account's, so nobody could delete it."""
    used = {snapshot_id for image in state.images.values() for snapshot_id in image.snapshot_ids}
    for snapshot in list(state.snapshots.values()):
        if snapshot.owner_id != ACCOUNT_ID and snapshot.id not in used:
            state.forget(snapshot)


def _sweep(state: State, lifecycle: Lifecycle) -> None:
    """Remove files that no record knows: a server died between making one and recording it."""
    for path in [*state.layout.state_dir.rglob(".*"), *state.layout.state_dir.rglob("*.part")]:
        if path.is_file():  # written beside its place, to be renamed
            path.unlink(missing_ok=True)
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
                lifecycle.storage.delete_volume(volume)
            else:
                state.save(volume)
    lifecycle.storage.collect()

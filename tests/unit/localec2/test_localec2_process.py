"""The server as a process: files that are its user's alone, a copied state directory, one that hangs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.localec2_cloud import LocalCloud
from support.localec2_served import Served, backing_of, launch
from support.patience import until

from instant_env.localec2 import hung, restore, starter
from instant_env.localec2.instances.machine_builder import MachineBuilder
from instant_env.localec2.qemu import disks
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.records.records import ServerRecord
from instant_env.localec2.records.store import RecordStore
from instant_env.localec2.starter import LocalEc2Error
from instant_env.settings import ROOT, Settings

pytest_plugins = ("support.localec2_served",)

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no QEMU here")


def copied(settings: Settings, to: Path) -> Settings:
    """The settings of a copy of everything that lies in a state directory."""
    shutil.copytree(settings.state_dir, to, symlinks=True)
    return settings.model_copy(update={"state_dir": to})


def open_to_others(directory: Path) -> list[str]:
    """What somebody else could read or write, by its mode."""
    paths = [directory, *directory.rglob("*")]
    return [f"{path} {path.stat().st_mode:o}" for path in paths if path.stat().st_mode & 0o077]


@pytest.mark.slow
@needs_qemu
def test_a_copy_is_a_stranger_and_a_hanging_server_is_one(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        original = LocalCloud(tmp_path / "new" / "state")
    finally:
        os.umask(before)
    copy: Settings | None = None
    try:
        assert not open_to_others(tmp_path / "new")
        layout = Layout(original.endpoint.state_dir)
        layout.make_runtime()  # as its first machine does
        assert not open_to_others(layout.runtime)
        copy = copied(original.settings, tmp_path / "copy")
        assert starter.status(copy).endpoint is None, "the copy's endpoint is the original's"
        assert not starter.down(copy)
        assert not starter.down(copy, force=True)
        stranger = starter.up(copy)
        assert stranger.access_key_id != original.endpoint.access_key_id
        assert stranger.admin_token != original.endpoint.admin_token
        assert starter.status(original.settings).endpoint == original.endpoint
        os.kill(stranger.pid, signal.SIGSTOP)
        for call in (starter.status, starter.running, starter.up, starter.down):
            with pytest.raises(LocalEc2Error, match="does not answer") as error:
                call(copy)
            assert "local.down --force" in error.value.hint
        assert starter.down(copy, force=True)
        assert starter.status(copy).endpoint is None
        assert starter.status(original.settings).endpoint == original.endpoint, "that one is not concerned"
    finally:
        if copy is not None:
            starter.down(copy, force=True)
        starter.down(original.settings)
    for settings in (original.settings, copy):
        assert not Layout(settings.local_dir).runtime.exists()


@pytest.mark.slow
@needs_qemu
def test_the_directory_of_sockets_goes_with_its_server(tmp_path: Path) -> None:
    cloud = LocalCloud(tmp_path / "state")
    layout = Layout(cloud.endpoint.state_dir)
    try:
        assert not layout.runtime.exists(), "no machine was started yet"
        layout.make_runtime()  # as the first machine does
        os.kill(cloud.endpoint.pid, signal.SIGKILL)
        until(lambda: not hung.has_server(layout))
        socket = layout.qmp_socket("i-1")
        socket.touch()
        assert not starter.down(cloud.settings)
        assert socket.exists(), "the next server finds a machine that lives on by it"
        socket.unlink()
        assert not starter.down(cloud.settings)
        assert not layout.runtime.exists()
    finally:
        starter.down(cloud.settings)


@needs_qemu
def test_a_machine_that_is_about_to_start_has_a_place_for_its_sockets(served: Served) -> None:
    instance_id = launch(served)
    layout = served.state.layout
    assert not layout.runtime.exists(), "a pretended machine has none"
    builder = served.services.lifecycle.machine_builder
    try:
        with served.state.lock:
            record = served.state.instance(instance_id)
            machine = MachineBuilder.machine(
                builder, record, served.state.attached(instance_id), lambda _: None
            )
        assert {path.parent for path in (machine.spec.qmp, *(nic.socket for nic in machine.spec.nics))} == {
            layout.runtime
        }
        assert not open_to_others(layout.runtime)
    finally:
        layout.remove_runtime()
    assert not layout.runtime.exists()


def home(layout: Layout) -> ServerRecord:
    store = RecordStore(layout.records)
    return restore.settle_home(layout, store, restore.identity(store, "us-east-1"))


def test_a_directory_that_is_moved_stays_the_same_server(tmp_path: Path) -> None:
    made = home(Layout.create(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = home(Layout.create(tmp_path / "b"))
    assert moved.access_key_id == made.access_key_id
    assert home(Layout.create(tmp_path / "b")) == moved


@needs_qemu
def test_copied_volumes_have_their_copied_snapshots_behind_them(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "a")
    home(layout)
    snapshot, volume = layout.snapshot("snap-1"), layout.volume("vol-1")
    disks.create(snapshot, 1)
    disks.create(volume, 1, snapshot)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    home(Layout.create(tmp_path / "b"))
    assert backing_of(tmp_path / "b/volumes/vol-1.qcow2") == tmp_path / "b/snapshots/snap-1.qcow2"
    assert backing_of(volume) == snapshot


@pytest.mark.slow
@needs_qemu
def test_down_ends_the_server_whatever_region_the_settings_name(tmp_path: Path) -> None:
    """What another region's verbs advise."""
    cloud = LocalCloud(tmp_path / "state")
    names = {"INSTANT_ENV_STATE_DIR": str(cloud.settings.state_dir), "INSTANT_ENV_REGION": "eu-west-1"}
    try:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "invoke"), "local.down"],
            cwd=ROOT, env={**os.environ, **names}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert starter.status(cloud.settings).endpoint is None
    finally:
        starter.down(cloud.settings)

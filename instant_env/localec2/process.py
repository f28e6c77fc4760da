"""The server process from start to end: locks, state, network, API; and all of it backwards."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from pathlib import Path

from instant_env.arch import Arch
from instant_env.errors import InstantEnvError
from instant_env.files import write_atomically
from instant_env.localec2 import restore
from instant_env.localec2.api.server import LocalServer
from instant_env.localec2.api.services import Services
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.instances.machine_builder import MachineBuilder
from instant_env.localec2.network import metadata
from instant_env.localec2.network.addresses import AddressBlock
from instant_env.localec2.network.network import Network
from instant_env.localec2.qemu import accelerator, command_line
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.records.store import RecordStore
from instant_env.localec2.state.state import State, now
from instant_env.localec2.state.strictness import visibility
from instant_env.localec2_settings import LocalEc2Settings
from instant_env.settings import AcceleratorChoice

log = logging.getLogger(__name__)

#: How often terminated instances are looked through for old ones, records that found no room written, and
#: instances given new credentials.
PURGE_INTERVAL_S = 10.0
#: What is still at work when all machines are off: copies of disks. Twice this, all in all.
WORK_TIMEOUT_S = 5.0


class AlreadyRunningError(InstantEnvError):
    """Another server has this state directory."""


class ServerProcess:
    """What runs in the background."""

    def __init__(
        self, layout: Layout, *, netd: Path, region: str, accelerator: AcceleratorChoice,
        stop_timeout_s: float, egress: bool, switches: LocalEc2Settings,
    ) -> None:  # fmt: skip
        self.layout = layout
        self.netd = netd
        self.egress = egress
        self.switches = switches
        self.region = region
        self.accelerator_choice = accelerator
        self.stop_timeout_s = stop_timeout_s
        self._lock_file: int = -1
        self._ending = threading.Event()

    def open(self, native: Arch) -> None:
        """Come up: when this returns, the API answers and endpoint.json says where.

        Raises AlreadyRunningError, MissingToolError (QEMU, firmware), RecordError, NetworkError.
        """
        self._lock()
        self.layout.endpoint.unlink(missing_ok=True)
        platform = command_line.find_platform(native)
        chosen = self._accelerator(platform)
        store = RecordStore(self.layout.records)
        record = restore.settle_home(self.layout, store, restore.identity(store, self.region))
        lost_ids = restore.end_lost_machines(self.layout, store)
        self.network = Network(
            AddressBlock(record.address_block), self.netd,
            domain=metadata.internal_domain(self.region), egress=self.egress,
        )  # fmt: skip
        self.state = State(self.layout, store, record, self.region)
        machine_builder = MachineBuilder(self.state, self.network, self._accelerator)
        lifecycle = Lifecycle(self.state, machine_builder, self.stop_timeout_s)
        self.services = Services(self.state, lifecycle)
        lifecycle.hears_guests = True
        self.network.on_loss = lifecycle.network_lost
        self.network.on_guest_up = lifecycle.interface_spoke
        with self.state.lock:
            self.state.load()
            restore.settle(self.state, lifecycle, self.services.images, lost_ids)
            self.services.interfaces.settle()
            self.services.uploads.resume()
            self.services.modifications.resume()
            visibility.change(self.state, self.switches.model_dump())
        self.server = LocalServer(self.services, record.port)
        record.address_block, record.port = self.network.addresses.number, self.server.server_address[1]
        store.save(record)
        threading.Thread(target=self.server.serve_forever, args=(0.1,), name="http", daemon=True).start()
        threading.Thread(target=self._purge, name="purge", daemon=True).start()
        threading.Thread(
            target=self.services.disk_guard.watch, args=(self._ending,), name="disk-guard", daemon=True
        ).start()
        self._write_endpoint(chosen)
        log.info("serving at %s, machines under %s", self.server.url, chosen)

    def _lock(self) -> None:
        """One server per state directory; the kernel frees the lock with the process."""
        self._lock_file = os.open(self.layout.server_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyRunningError(f"a server already uses {self.layout.state_dir}") from error

    def _accelerator(self, platform: command_line.Platform) -> accelerator.Accelerator:
        return accelerator.choose(self.accelerator_choice, platform, self.layout.accelerator)

    def _write_endpoint(self, chosen: str) -> None:
        record = self.state.server
        endpoint = {
            "url": self.server.url, "region": self.region, "access_key_id": record.access_key_id,
            "secret_access_key": record.secret_access_key, "ssh_port": self.network.addresses.ssh_port,
            "pid": os.getpid(),
            "state_dir": str(self.layout.state_dir), "accelerator": chosen, "admin_token": record.admin_token,
            "caller_ip_url": f"{self.server.url}/_localec2/caller-ip",
        }  # fmt: skip
        write_atomically(self.layout.endpoint, json.dumps(endpoint, indent=1).encode())

    def _purge(self) -> None:
        while not self._ending.wait(PURGE_INTERVAL_S):
            with self.state.lock:
                self.state.write_again()
                self.services.purge()
                self.services.refresh_credentials(now())

    def close(self, down_timeout_s: float) -> None:
        """Go down: no new requests, machines off, endpoint.json gone."""
        log.info("going down")
        self._ending.set()
        self.layout.endpoint.unlink(missing_ok=True)
        self.server.shutdown()
        self.server.server_close()
        self.services.lifecycle.close(down_timeout_s)
        with self.state.lock:
            self.state.write_again()
        self._end_work()
        self.network.close()
        self.layout.remove_runtime()
        # The lock goes with the process: nobody may start beside a thread of ours that still writes.
        log.info("down")

    def _end_work(self) -> None:
        """Let copies end, for a moment; then end them, and let them say so in their records."""
        for timeout_s in (WORK_TIMEOUT_S, WORK_TIMEOUT_S):
            deadline = time.monotonic() + timeout_s
            for thread in threading.enumerate():
                if not thread.daemon and thread is not threading.current_thread():
                    thread.join(max(0.0, deadline - time.monotonic()))
            if restore.end_processes(self.layout):
                log.warning("ended machines that were left")

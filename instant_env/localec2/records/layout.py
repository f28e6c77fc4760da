"""Where localec2 keeps its files, and who may read them.

The state directory (mode 0700) holds what outlives the server. Sockets lie in a short private directory
instead: the path of a Unix socket ends at 108 characters, and state directories can be deep.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from instant_env.errors import InstantEnvError

#: sun_path of sockaddr_un is 108 bytes with its terminating zero (unix(7)).
MAX_SOCKET_PATH = 107


class LayoutError(InstantEnvError):
    """A directory is not ours, or a path does not fit."""


def _private(directory: Path) -> Path:
    """Make ``directory`` with mode 0700; refuse one that belongs to somebody else or is a link."""
    for missing in reversed([path for path in (directory, *directory.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)  # mkdir's own parents would be as the umask has them
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise LayoutError(f"{directory} is not a directory of this user", hint="move it away")
    if stat.S_IMODE(status.st_mode) != 0o700:
        directory.chmod(0o700)
    return directory


@dataclass(frozen=True)
class Layout:
    """The paths below one state directory (absolute)."""

    state_dir: Path

    @classmethod
    def create(cls, state_dir: Path) -> Layout:
        """Make the directories."""
        layout = cls(state_dir.expanduser().resolve())
        for directory in (
            layout.state_dir,
            layout.records,
            layout.volumes,
            layout.snapshots,
            layout.instances,
        ):
            _private(directory)
        return layout

    @property
    def endpoint(self) -> Path:
        return self.state_dir / "endpoint.json"

    @property
    def log(self) -> Path:
        return self.state_dir / "server.log"

    @property
    def server_lock(self) -> Path:
        return self.state_dir / "server.lock"

    @property
    def start_lock(self) -> Path:
        return self.state_dir / "start.lock"

    @property
    def accelerator(self) -> Path:
        return self.state_dir / "accelerator.json"

    @property
    def journal(self) -> Path:
        return self.state_dir / "journal"

    @property
    def signer(self) -> Path:
        return self.state_dir / "instance-connect.pem"

    @property
    def records(self) -> Path:
        return self.state_dir / "records"

    @property
    def volumes(self) -> Path:
        return self.state_dir / "volumes"

    @property
    def snapshots(self) -> Path:
        return self.state_dir / "snapshots"

    @property
    def instances(self) -> Path:
        return self.state_dir / "instances"

    def volume(self, volume_id: str) -> Path:
        return self.volumes / f"{volume_id}.qcow2"

    def snapshot(self, snapshot_id: str) -> Path:
        return self.snapshots / f"{snapshot_id}.qcow2"

    def upload(self, snapshot_id: str) -> Path:
        """The blocks of a snapshot that is being written, raw and sparse."""
        return self.snapshots / f"{snapshot_id}.upload"

    def upload_log(self, snapshot_id: str) -> Path:
        """Which of them were written, with their checksums."""
        return self.snapshots / f"{snapshot_id}.blocks"

    def instance(self, instance_id: str) -> Path:
        """Directory of an instance's console, firmware variables and metadata (made when missing)."""
        return _private(self.instances / instance_id)

    @property
    def runtime(self) -> Path:
        """The directory of sockets: the same for every server of this state directory."""
        digest = hashlib.sha256(str(self.state_dir).encode()).hexdigest()
        name = f"instant-env-{digest[:10]}-{os.getuid()}"
        return Path("/tmp", name)  # noqa: S108 - owner and mode are checked before it is used

    def make_runtime(self) -> None:
        """Make that directory, for a machine that is about to start. Raises LayoutError."""
        _private(self.runtime)

    def has_runtime(self) -> bool:
        """Whether it is there. Raises LayoutError for one that is not this user's."""
        if not os.path.lexists(self.runtime):
            return False
        _private(self.runtime)
        return True

    def remove_runtime(self) -> None:
        """Remove that directory and its sockets, when all machines and the network are gone."""
        if not self.has_runtime():
            return
        with contextlib.suppress(OSError):  # somebody's directory in it: it stays
            for path in self.runtime.iterdir():
                path.unlink(missing_ok=True)
            self.runtime.rmdir()

    def remove_empty_runtime(self) -> None:
        """Remove that directory unless there is something in it: a machine that outlived its server."""
        with contextlib.suppress(OSError):
            self.runtime.rmdir()

    def qmp_socket(self, instance_id: str) -> Path:
        return self._socket(f"{instance_id}.qmp")

    def nic_socket(self, interface_id: str) -> Path:
        """Where a machine's network card meets the network."""
        return self._socket(f"{interface_id}.nic")

    def _socket(self, name: str) -> Path:
        path = self.runtime / name
        if len(str(path)) > MAX_SOCKET_PATH:
            raise LayoutError(f"socket path too long: {path}")
        return path

"""Where a service keeps its state, and the files by which clients of the same user find it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from instant_env.cloud.session import Cloud, region_of
from instant_env.cloud.tags import new_run_id
from instant_env.files import write_atomically
from instant_env.settings import CloudName, Settings


@dataclass(frozen=True)
class ServiceFiles:
    """``directory`` is 0700. One store per cloud and region: their machines are not the same."""

    directory: Path
    place: str
    """``local``, or ``aws-eu-west-1``."""

    @classmethod
    def of(cls, settings: Settings, cloud: Cloud) -> ServiceFiles:
        """Make the directory if it is not there."""
        directory = settings.service_dir
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        return cls(directory, place_of(cloud.name, cloud.region))

    @property
    def store(self) -> Path:
        return self.directory / f"{self.place}.sqlite"

    @property
    def url(self) -> Path:
        """The running service's URL, for clients of the same user."""
        return self.directory / "url"

    @property
    def token(self) -> Path:
        """A token with every scope, which `serve` makes when there is none that works."""
        return self.directory / "token"

    def control_plane_id(self) -> str:
        """The id in the tags of all machines of this store; made once, and kept beside the store: it
        survives a store that was lost or restored."""
        path = self.directory / f"{self.place}.id"
        with suppress(OSError):
            if text := path.read_text(encoding="ascii").strip():
                return text
        write_atomically(path, f"{(made := new_run_id())}\n".encode())
        return made

    def read_token(self) -> str:
        """Empty without one."""
        with suppress(OSError, UnicodeError):
            return self.token.read_text(encoding="ascii").strip()
        return ""

    def write_token(self, secret: str) -> None:
        write_atomically(self.token, f"{secret}\n".encode())

    def write_url(self, url: str) -> None:
        write_atomically(self.url, f"{url}\n".encode())

    def forget_url(self, url: str) -> None:
        """Take the URL back, if it is still ours."""
        with suppress(OSError, UnicodeError):
            if self.url.read_text(encoding="ascii").strip() == url:
                self.url.unlink()


def place_of(cloud: CloudName, region: str) -> str:
    return "local" if cloud is CloudName.LOCAL else f"aws-{region}"


def store_of(settings: Settings) -> Path:
    """The store of the service that would be started with these settings; makes nothing."""
    return ServiceFiles(settings.service_dir, place_of(settings.cloud, region_of(settings))).store

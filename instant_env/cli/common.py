"""What several verbs take: the flags for the cloud and for JSON, and how flags become settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instant_env.arch import Arch
    from instant_env.cloud.session import Cloud
    from instant_env.progress import Progress
    from instant_env.settings import Settings

CLOUD_HELP = {
    "cloud": "where machines come from: local (the default) or aws",
    "region": "region (default: AWS_REGION or the profile's, else us-east-1)",
}
JSON_HELP = {"json": "print the result as one JSON object on stdout"}


def read_settings(**flags: Any) -> Settings:
    """The settings under these flags; an empty flag counts as not given. Raises UsageError."""
    from instant_env import settings

    return settings.load(flags)


def open_cloud(settings: Settings, progress: Progress) -> Cloud:
    """As `connect`, and says which machines of ours are past their time. Raises as `connect` does."""
    from instant_env.cloud import expired
    from instant_env.cloud.session import connect

    cloud = connect(settings, progress)
    if line := expired.warning(cloud):
        progress(line)
    return cloud


def parse_arch(text: str) -> Arch:
    """Raises UsageError for an unknown architecture."""
    from instant_env.arch import Arch

    return Arch.parse(text)

"""What the checkout is: the commit, and whether it holds anything that the commit does not."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from instant_env.settings import CHECKOUT

_TIMEOUT_S = 10


@dataclass(frozen=True)
class GitState:
    """Read it once, before anything is rendered, and pass it on: the checkout may change meanwhile."""

    commit: str | None
    """Full hash; None without git or a repository."""
    dirty: bool | None
    """Whether there are uncommitted changes, or new files not ignored; None when git cannot say."""

    def __str__(self) -> str:
        """As in the tags of an image: twelve digits, ``+dirty``, ``unknown`` without a commit."""
        return (self.commit[:12] if self.commit else "unknown") + ("+dirty" if self.dirty else "")

    def as_json(self) -> dict[str, str | bool | None]:
        return {"revision": self.commit, "dirty": self.dirty}


def git_state(root: Path | None = CHECKOUT) -> GitState:
    """Ask git. A new file counts as a change: an uncommitted recipe or script is rendered like any other.

    An installed package has no commit, even when its environment lies within some other repository.
    """
    if root is None:
        return GitState(None, None)

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", "-C", str(root), *arguments],
                capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    # What runs write (results/) is not what is rendered.
    status = git("status", "--porcelain", "--untracked-files=normal", "--", ".", ":(exclude)results")
    return GitState(commit, None if status is None else bool(status))

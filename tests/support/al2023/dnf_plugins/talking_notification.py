"""A dnf plugin that talks as AL2023's dnf-plugin-release-notification does where a newer release exists.

It prints a framed warning before the table of a transaction, and again after it. The words are those of
public transcripts; one of them, `dnf`, stands where a package's name stands in the table.

Whether the real one talks on a removal is not known. Ours does on everything.
"""

from __future__ import annotations

import dnf  # type: ignore[import-not-found]  # the system's Python has it, which runs dnf

WARNING = f"""{"=" * 79}
WARNING:
  A newer release of "Amazon Linux" is available.

  Available Versions:

  Version 2023.12.20261012:
    Run the following command to upgrade to 2023.12.20261012:

      dnf upgrade --releasever=2023.12.20261012

    Release notes:
     https://docs.aws.amazon.com/linux/al2023/release-notes/relnotes-2023.12.20261012.html

{"=" * 79}"""


class ReleaseNotification(dnf.Plugin):  # type: ignore[misc]
    """dnf calls these by name."""

    name = "talking-notification"

    def resolved(self) -> None:
        print(WARNING, flush=True)

    def transaction(self) -> None:
        print(WARNING, flush=True)

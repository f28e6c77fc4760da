"""Powers the machine off when its time is over: the program of a stock image that somebody holds a lease of.

It runs in the machine, by the system's own Python (3.9 or later): cloud_config.py sends it, and nothing here
imports it. The end is the tag instant-env:expires-at, which may move, and without one that of the launch.
As in our init, an end that passed before a start counts once the tag was looked at, and the time is the
metadata service's, whatever the machine's own clock says.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path

METADATA = "http://169.254.169.254"
TAG = "/latest/meta-data/tags/instance/instant-env:expires-at"
NOT_FOUND = 404
PAUSE_S = 5.0
ANSWER_LIMIT_S = 30.0
#: systemd gives a service 90 s to stop; a lease is over after a minute.
PATIENCE_S = 30.0


def timestamp(text: str) -> float:
    return datetime.strptime(text.strip(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()  # noqa: UP017


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Timer:
    """The machine's end, in seconds since 1970, and the service's clock against CLOCK_BOOTTIME."""

    def __init__(self, end: float, metadata: str) -> None:
        self.end = self.end_at_launch = end
        self.shift = time.time() - boottime()
        self.answered = False
        self._metadata = metadata
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self._metadata + path, method=method, headers=headers)  # noqa: S310
        with self._opener.open(request, timeout=5) as answer:
            self._set_clock(answer.headers["Date"])
            return str(answer.read(4096).decode("ascii"))

    def _set_clock(self, date: str | None) -> None:
        if date:
            self.shift = parsedate_to_datetime(date).timestamp() - boottime()

    def look(self) -> None:
        """Read the tag. What cannot be read leaves the end that it had."""
        try:
            token = self._ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
            self.end = timestamp(self._ask("GET", TAG, {"X-aws-ec2-metadata-token": token}))
        except urllib.error.HTTPError as error:
            if error.code != 404:
                return
            self.end = self.end_at_launch
        except (OSError, ValueError, TypeError):
            return
        self.answered = True

    def is_over(self, started: float) -> bool:
        known = self.answered or boottime() - started >= ANSWER_LIMIT_S
        return known and boottime() + self.shift >= self.end


def main(end_file: str, metadata: str = METADATA) -> None:
    timer = Timer(timestamp(Path(end_file).read_text(encoding="ascii")), metadata)
    started = boottime()
    while True:
        timer.look()
        if timer.is_over(started):
            break
        time.sleep(PAUSE_S)
    for arguments in (["poweroff"], ["poweroff", "--force"], ["poweroff", "--force", "--force"]):
        subprocess.run(["systemctl", *arguments], check=False)
        time.sleep(PATIENCE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])

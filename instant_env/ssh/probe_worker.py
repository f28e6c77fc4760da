"""The prober's process: runs probes on request over a socket, and ends when the other end is closed.

Run by :class:`instant_env.ssh.probe_client.Prober`, with the socket as standard input. Both ends speak in
lines of JSON. It sends ``{}`` once it listens, and then one line for each requested probe, when sshd has
answered or the probe was cancelled:

    request  {"probe": 7, "address": "192.0.2.1", "port": 22, "policy": {...}, "not_before_ns": 123}
             {"cancel": 7}
    answer   {"probe": 7, "stats": {...}, "found": null, "cpu_s": 0.1}
             {"probe": 8, "stats": {...}, "found": {"line": "SSH-2.0-x", ...}, "cpu_s": 0.1}

An answer with ``found`` brings its socket along (SCM_RIGHTS). A probe that is cancelled too late has been
answered before. Whatever goes wrong ends the process, with a traceback on stderr.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from dataclasses import asdict
from functools import partial
from typing import Any

from instant_env.ssh.connect_probe import Probe, ProbePolicy, SshAnswer
from instant_env.ssh.probe_loop import Probes

#: Descriptors that are enough for 80 silent addresses; the usual limit is 1,024.
_MOST_FILES = 10_240

_READ_BYTES = 65536


class _Service:
    """Answers one channel."""

    def __init__(self, channel: socket.socket, probes: Probes) -> None:
        self._channel = channel
        self._probes = probes
        self._active: dict[int, Probe] = {}
        self._unread = b""
        self._open = True

    def run(self) -> None:
        self._probes.watch(self._channel, self._read)
        self._channel.sendall(b"{}\n")
        while self._open:
            self._probes.turn()

    def _read(self) -> None:
        try:
            data = self._channel.recv(_READ_BYTES)
        except ConnectionResetError:  # closed, with something of ours unread
            data = b""
        self._open = bool(data)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "cancel" in request:
                self._cancel(request["cancel"])
            else:
                self._start(**request)

    def _start(self, probe: int, address: str, port: int, policy: dict[str, Any], not_before_ns: int) -> None:
        self._active[probe] = self._probes.start(
            address,
            port,
            ProbePolicy(**policy),
            not_before_ns=not_before_ns,
            on_found=partial(self._on_found, probe),
        )

    def _cancel(self, number: int) -> None:
        if (probe := self._active.pop(number, None)) is not None:
            self._probes.stop(probe)
            self._channel.sendall(_line(number, probe, None))

    def _on_found(self, number: int, sshd: SshAnswer) -> None:
        what = {
            "line": sshd.line,
            "accepted_ns": sshd.accepted_ns,
            "banner_ns": sshd.banner_ns,
            "resolution_ns": sshd.resolution_ns,
        }
        with sshd.sock:  # ours; the other end gets a descriptor of its own
            line = _line(number, self._active.pop(number), what)
            socket.send_fds(self._channel, [line], [sshd.sock.fileno()])


def _line(number: int, probe: Probe, sshd: dict[str, Any] | None) -> bytes:
    message = {"probe": number, "stats": asdict(probe.stats), "found": sshd, "cpu_s": time.process_time()}
    return json.dumps(message).encode() + b"\n"


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main() -> None:
    _raise_file_limit()
    with socket.socket(fileno=0) as channel, contextlib.closing(Probes()) as probes:
        _Service(channel, probes).run()


if __name__ == "__main__":
    main()

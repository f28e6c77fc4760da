"""``python -m instant_env.localec2``: the server process. Started by :mod:`instant_env.localec2.starter`.

It says on ``--ready-fd`` (a pipe) whether it came up, as one JSON object: ``{"ok": true}`` or ``{"error",
"hint"}``.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from instant_env.arch import Arch
from instant_env.errors import InstantEnvError
from instant_env.localec2.records.layout import Layout
from instant_env.localec2_settings import LocalEc2Settings
from instant_env.settings import AcceleratorChoice


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m instant_env.localec2", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--netd", type=Path, required=True, help="the program that is the network")
    parser.add_argument(
        "--egress", action=argparse.BooleanOptionalAction, default=True, help="guests reach the world"
    )
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--accelerator", type=AcceleratorChoice, default=AcceleratorChoice.AUTO)
    parser.add_argument("--strictness", default="{}", help="the switches of LocalEc2Settings, as JSON")
    parser.add_argument("--stop-timeout", type=float, default=90.0, help="seconds from power button to plug")
    parser.add_argument("--down-timeout", type=float, default=20.0, help="the same when the server ends")
    parser.add_argument("--ready-fd", type=int, default=1, help="descriptor to say on whether it came up")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT."""
    arguments = _arguments(argv)
    os.umask(0o077)  # disks, consoles, logs and sockets, QEMU's and netd's too, are this user's alone
    try:
        layout = Layout.create(arguments.state_dir)
        _log_to(layout.log)
        # Imported late: importing moto takes a second, and errors before it should be quick. None of what it
        # makes is garbage, and looking for some took a third of that.
        gc.disable()
        from instant_env.localec2.process import ServerProcess

        gc.freeze()
        gc.enable()

        process = ServerProcess(
            layout, netd=arguments.netd.resolve(), region=arguments.region,
            accelerator=arguments.accelerator, stop_timeout_s=arguments.stop_timeout,
            egress=arguments.egress,
            switches=LocalEc2Settings.model_validate_json(arguments.strictness),
        )  # fmt: skip
        process.open(Arch.parse(os.uname().machine))
    except InstantEnvError as error:
        logging.getLogger(__name__).error("%s", error.message)
        _report(
            arguments.ready_fd, {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        )
        return error.exit_code
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ending.set())
    _report(arguments.ready_fd, {"ok": True})
    # With a time-out: the kernel may hand a signal to another thread, which does not wake this one, and
    # Python runs handlers in this one alone.
    while not ending.wait(1.0):
        pass
    process.close(arguments.down_timeout)
    logging.shutdown()
    os._exit(0)  # a thread that is not done by now must not keep the directory's lock


def _log_to(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    stream = os.fdopen(descriptor, "a", encoding="utf-8")
    faulthandler.register(signal.SIGQUIT, file=stream, all_threads=True)  # `down` asks when the server hangs
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("botocore", "moto", "werkzeug", "urllib3"):  # at INFO and below they print requests
        logging.getLogger(name).setLevel(logging.WARNING)


def _report(descriptor: int, message: dict[str, object]) -> None:
    with os.fdopen(descriptor, "w") as stream:
        stream.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The verb that serves machines by HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask
from instant_env.cli.common import CLOUD_HELP, read_settings
from instant_env.cli.verb import reporter, say, verb

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

    from instant_env.cli.verb import Reporter as Reports
    from instant_env.service.server.service import Left, ListenOptions, Started
    from instant_env.settings import Settings

#: Where clients look when nobody has said otherwise.
_DEFAULT_LISTEN = "127.0.0.1:7420"


@task(
    klass=VerbTask,
    help={
        "listen": "address and port (default 127.0.0.1:7420); beyond this host only with TLS, and not for "
        "localec2, whose machines have addresses of this host",
        "tls-cert": "PEM file with the certificate, and those that signed it",
        "tls-key": "PEM file with its key",
        "open-ssh": "let ssh_cidrs be wider than /16: strangers may try to log in to leased machines",
        "log": "write the log to this file (default: to stderr when that is no terminal, else "
        "service/log in the state directory)",
        **CLOUD_HELP,
    },
)
@verb
def serve(
    _: Context,
    listen: str = _DEFAULT_LISTEN,
    tls_cert: str = "",
    tls_key: str = "",
    open_ssh: bool = False,
    log: str = "",
    cloud: str = "",
    region: str = "",
) -> None:
    """Hand out machines by HTTP: an SSH public key in, address and timings out. Ctrl-C ends it."""
    from pathlib import Path

    from instant_env.service.server.service import ListenOptions

    host, port = _address(listen)
    options = ListenOptions(
        host, port, Path(tls_cert) if tls_cert else None, Path(tls_key) if tls_key else None
    )
    _serve(read_settings(cloud=cloud, region=region), options, log, open_ssh=open_ssh)


def _serve(settings: Settings, options: ListenOptions, log: str, *, open_ssh: bool) -> None:
    import sys
    from pathlib import Path

    from instant_env.service.logs import make_logger
    from instant_env.service.server.service import Service
    from instant_env.stopping import StopSignals

    report = reporter()
    with StopSignals() as stop:
        path = Path(log) if log else None
        if path is None and sys.stderr.isatty():
            path = settings.state_dir / "service" / "log"
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stream = sys.stderr if path is None else _private(path)
        service = Service(settings, options, make_logger(stream), open_ssh=open_ssh)

        def started(facts: Started) -> None:
            stop.hook = service.stop
            _announce(facts, path)
            report.end_waiting()  # from here on it is the clients who wait

        left = service.run(report, started)
    _farewell(left, report)


def _private(path: Path) -> TextIO:
    """A log that only its owner reads, appended to."""
    import os

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)


def _address(text: str) -> tuple[str, int]:
    """``127.0.0.1:7420``, ``[::1]:7420``, or a port alone. Raises UsageError."""
    from instant_env.errors import UsageError

    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {text}: not an address and a port", hint=f"as {_DEFAULT_LISTEN}")
    return host, int(port)


def _announce(facts: Started, log: object) -> None:
    say(f"serving at {facts.url} (the page: {facts.url}/)")
    say(f"token: {facts.token_path}")
    if log is not None:
        say(f"log: {log}")
    for pool in facts.pools:
        say(f"pool {pool.name}: {pool.target} of {pool.instance_type} ({pool.arch}) wait for a key")
    for name, reason in facts.empty_pools.items():
        say(f"pool {name} stays empty: {reason}")
    say("take a machine: invoke lease.new, or")
    say(
        f'  curl -sS {facts.url}/v1/instances -H "Authorization: Bearer $(cat {_quoted(facts.token_path)})" '
        "-H 'Content-Type: application/json' -H 'Prefer: wait=60' "
        '-d "{\\"public_key\\": \\"$(cat ~/.ssh/id_ed25519.pub)\\"}"'
    )


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)


def _farewell(left: Left, report: Reports) -> None:
    """Say what goes on without the service, and until when."""
    for lease in left.leases:
        until = f"until {lease.expires_at:%Y-%m-%d %H:%M:%S} UTC" if lease.expires_at else "not ready yet"
        report(f"goes on: lease {lease.id}, {lease.instance_id or 'no machine yet'}, {until}")
    if left.pool_machines:
        report(
            f"goes on: {left.pool_machines} machines of pools, for the next `invoke serve`; "
            "end them: invoke clean --yes"
        )
    report("the service has ended")

"""One service from its start to its end."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from instant_env.arch import Arch
from instant_env.cloud import runs
from instant_env.cloud.instances import usual_type
from instant_env.cloud.launching.places import check_subnet
from instant_env.cloud.session import Cloud, connect
from instant_env.launch import estimates
from instant_env.launch.launcher import Launcher
from instant_env.progress import Progress
from instant_env.service.engine.context import Context
from instant_env.service.engine.ec2_fleet import Ec2Fleet
from instant_env.service.engine.engine import Engine, Facts
from instant_env.service.engine.executor import DaemonExecutor
from instant_env.service.engine.metrics import Metrics
from instant_env.service.engine.pools import PoolPlan
from instant_env.service.logs import Logger
from instant_env.service.operations import NewToken, Refusal
from instant_env.service.records import Lease, Scope
from instant_env.service.server.files import ServiceFiles
from instant_env.service.server.group import check_cidrs, ensure_group
from instant_env.service.store.sqlite import SqliteStore
from instant_env.service.web.app import make_app
from instant_env.service.web.listener import Listener, check_address
from instant_env.service_settings import PoolSettings
from instant_env.settings import CloudName, Settings

#: Calls to EC2 at a time; further ones wait.
_EC2_THREADS = 32


@dataclass(frozen=True)
class ListenOptions:
    """Where to serve. ``port`` 0 is any free one; ``certificate`` and ``key`` are PEM files."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Started:
    """What a person is told once the service serves. ``token_path``: where the token lies; ``empty_pools``:
    pools that cannot be filled, each with the reason."""

    url: str
    token_path: str
    pools: tuple[PoolPlan, ...]
    empty_pools: dict[str, str]


@dataclass(frozen=True)
class Left:
    """What goes on after the service: leases, and machines that wait in pools."""

    leases: tuple[Lease, ...]
    pool_machines: int


class Service:
    """``Service(settings, options, log).run(...)`` blocks until :meth:`stop`."""

    def __init__(self, settings: Settings, options: ListenOptions, log: Logger, *, open_ssh: bool) -> None:
        """Raises UsageError for addresses that may not be listened on, and networks that are too wide."""
        check_address(
            options.host, certificate=options.certificate, key=options.key,
            machines_are_local=settings.cloud is CloudName.LOCAL,
        )  # fmt: skip
        check_cidrs(settings.service.ssh_cidrs or (), open_wide=open_ssh)
        self._settings = settings
        self._options = options
        self._log = log
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def run(self, progress: Progress, started: Callable[[Started], None]) -> Left:
        """Serve; ``started`` is called once it does. Raises StoreError, CloudError, OSError."""
        with ExitStack() as stack:
            cloud = connect(self._settings, progress)
            check_subnet(cloud)
            files = ServiceFiles.of(self._settings, cloud)
            store = SqliteStore.open(files.store, url="")
            stack.callback(store.close)
            service_id = files.control_plane_id()
            stack.enter_context(runs.alive(self._settings, service_id))
            progress("preparing the network of its machines")
            group_id = ensure_group(cloud, service_id, self._settings.service.ssh_cidrs)
            return asyncio.run(self._serve(cloud, files, store, service_id, group_id, progress, started))

    def stop(self) -> None:
        """End :meth:`run`, from a signal handler or another thread."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(
        self, cloud: Cloud, files: ServiceFiles, store: SqliteStore, service_id: str, group_id: str,
        progress: Progress, started: Callable[[Started], None],
    ) -> Left:  # fmt: skip
        loop = self._loop = asyncio.get_running_loop()
        stop = self._stop = asyncio.Event()
        loop.set_default_executor(DaemonExecutor(_EC2_THREADS, "ec2"))
        settings = self._settings.service
        async with AsyncExitStack() as stack:
            launcher = await stack.enter_async_context(Launcher(cloud, timeout_s=settings.launch_timeout_s))
            fleet = Ec2Fleet(cloud, launcher, service_id, group_id)
            stack.push_async_callback(fleet.close)
            context = Context(
                store=store, fleet=fleet, settings=settings, id=service_id, metrics=Metrics(service_id),
                log=self._log, ssh_port=cloud.ssh_port,
            )  # fmt: skip
            plans = plans_of(cloud, settings.pools)
            engine = Engine(context, facts_of(cloud), plans, _estimates(cloud))
            progress("looking up images and prices")
            await engine.look_up()
            if price := sum(plan.target * engine.price_of(plan) for plan in plans):
                progress(f"the pools cost about ${price:.2f} an hour while they are full")
            await engine.start()
            stack.push_async_callback(engine.close)
            await self._ensure_token(engine, files)
            options = self._options
            listener = Listener(
                make_app(engine, settings, log=self._log), host=options.host, port=options.port,
                certificate=options.certificate, key=options.key,
            )  # fmt: skip
            serving = asyncio.create_task(listener.serve())
            stack.push_async_callback(_end, listener, serving)
            url = listener.url
            if store.lock is not None:
                store.lock.say(url)
            files.write_url(url)
            stack.callback(files.forget_url, url)
            started(Started(url, str(files.token), tuple(plans), engine.empty_pools(plans)))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            engine.begin_close()
            leases, machines = await engine.left_behind()
        return Left(tuple(leases), machines)

    @staticmethod
    async def _ensure_token(engine: Engine, files: ServiceFiles) -> None:
        """The token in the file works; if not, there is a new one in it."""
        try:
            await engine.authenticate(files.read_token())
        except Refusal:
            scopes = frozenset(scope.value for scope in Scope)
            _, secret = await engine.make_token(NewToken("invoke serve", scopes))
            files.write_token(secret)


async def _end(listener: Listener, serving: asyncio.Task[None]) -> None:
    listener.stop()
    await serving


def facts_of(cloud: Cloud) -> Facts:
    return Facts(
        cloud=cloud.name.value,
        region=cloud.region,
        ssh_port=cloud.ssh_port,
        host_arch=Arch.parse(platform.machine()),
        default_types={arch: usual_type(cloud, arch) for arch in Arch},
    )


def plans_of(cloud: Cloud, pools: Sequence[PoolSettings] | None) -> list[PoolPlan]:
    """Pools with every default filled in. Without a word of them: one running machine of custom-init where it
    costs nothing."""
    if pools is None:
        pools = [PoolSettings()] if cloud.name is CloudName.LOCAL else []
    host = Arch.parse(platform.machine())
    return [
        PoolPlan.of(pool, pool.arch or host, pool.instance_type or usual_type(cloud, pool.arch or host))
        for pool in pools
    ]


def _estimates(cloud: Cloud) -> list[estimates.Estimate]:
    return estimates.read(estimates.path_in(cloud.settings.state_dir), cloud.name.value)

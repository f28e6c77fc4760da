"""The HTTP service: from a POST to a proved login, side by side; and what its own part costs.

    .venv/bin/python benchmarks/service.py race [--blocks 10] [--arms warm-running,harness] [--arch x86_64]
    .venv/bin/python benchmarks/service.py load [--rate 50] [--seconds 20] [--clients 50]
    .venv/bin/python benchmarks/service.py parked [--machines 20] [--seconds 180] [--arch x86_64]

`race` needs a baked custom-init in the configured cloud. Each block has, in an order of its own: a machine of
the service's pool of running machines, one of its pool of stopped machines, one that it launches cold, and
the harness's own warm-running, which hands over by EC2 Instance Connect and logs in with the private key. The
service's times are from before the POST is sent to the client's sight of the answer, and t4 (sshd's word) as
the answer says it. Before each arm both pools are full and nothing boots.

`load` is the own part of the service: HTTP, token, limits, claim and rows on the disk; its fleet hands over
in no time. First an open loop (requests are sent at their times, whatever the answers do; a late answer
counts from when its request was due), then a closed loop of clients that each wait for their answer. The
service is a process of its own; its own part of each POST is what it writes into its log.

`parked` needs localec2 and a baked custom-init. It is what waiting machines cost: `invoke serve` with a full
pool of them, its memory (proportional set size) and processor time while nothing is asked of it, and the same
of the emulators; and one guest from within, before and after connections like the service's wait on it.

Each prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import asyncssh
import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.service.fleet import TYPE, FakeFleet
from support.service.rig import KEY, plan, rig

from harness.plan.images import choose
from instant_env.arch import Arch
from instant_env.cloud.handover import by_instance_connect
from instant_env.cloud.instances import Market, usual_type
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.network import temporary_security_group
from instant_env.cloud.session import Cloud, connect
from instant_env.cloud.tags import Role, new_run_id
from instant_env.launch.launcher import Launcher
from instant_env.launch.login_check import PrivateKeyLogin
from instant_env.launch.parked import park
from instant_env.launch.standing_query import Door
from instant_env.launch.techniques import LaunchSpec, PoolSlot, Prepared, Technique, find_technique
from instant_env.launch.timeline import MarkName, Outcome
from instant_env.service.logs import make_logger
from instant_env.service.server.service import ListenOptions, Service, Started
from instant_env.service.web.app import make_app
from instant_env.service.web.listener import Listener
from instant_env.service_settings import PoolKind, PoolSettings, ServiceSettings
from instant_env.settings import Settings, load
from instant_env.ssh.dial import dial
from instant_env.ssh.login import authenticate, client_options
from instant_env.user_data import UserData

#: A pool that is filled again, and a machine that is gone, on a slow host.
_PATIENCE_S = 600.0
_LAUNCH_S = 300.0
ARMS = ("warm-running", "warm-stopped", "custom-init", "harness")


def machine() -> dict[str, Any]:
    return {
        "utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "processors": os.cpu_count(),
        "cpu": next(
            (line.partition(": ")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")), platform.machine(),
        ),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }  # fmt: skip


def figures(times_ms: list[float]) -> dict[str, float]:
    """Nearest-rank percentiles."""
    ordered = sorted(times_ms)

    def rank(q: float) -> float:
        return round(ordered[max(0, -(-int(len(ordered) * q * 100) // 100) - 1)], 2)

    return {
        "n": len(ordered), "min_ms": round(ordered[0], 2), "p50_ms": round(statistics.median(ordered), 2),
        "p90_ms": rank(0.9), "p99_ms": rank(0.99), "max_ms": round(ordered[-1], 2),
    }  # fmt: skip


# race


class Client:
    """What a client of the service does, over one connection that is open before the clock starts."""

    def __init__(self, url: str, token: str, key: KeyPair) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=_LAUNCH_S, trust_env=False)
        self._key = key

    def take(self, technique: str) -> tuple[float, dict[str, Any]]:
        """Milliseconds to the answer, and the answer."""
        self._http.get("/healthz")
        body = {"public_key": self._key.public_openssh, "technique": technique, "ttl_seconds": 600}
        began_ns = time.monotonic_ns()
        answer = self._http.post("/v1/instances", json=body, headers={"Prefer": f"wait={_LAUNCH_S:.0f}"})
        took_ms = (time.monotonic_ns() - began_ns) / 1e6
        lease = answer.json()
        while lease.get("state") in ("requested", "provisioning"):
            lease = self._http.get(f"/v1/instances/{lease['id']}/wait?seconds=60").json()
            took_ms = (time.monotonic_ns() - began_ns) / 1e6
        if lease.get("state") != "ready":
            raise SystemExit(f"{technique}: {answer.status_code} {lease}")
        return took_ms, lease

    def end(self, lease_id: str) -> None:
        self._http.delete(f"/v1/instances/{lease_id}")
        wait(lambda: self._http.get(f"/v1/instances/{lease_id}").json()["state"] == "ended")

    def settle(self) -> None:
        """Until every pool is full, and a little longer."""
        wait(lambda: all(pool["state"] == "ready" for pool in self._http.get("/v1/pools").json()["pools"]))
        time.sleep(3)


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the service did not get there in ten minutes")
        time.sleep(0.5)


@contextmanager
def service(settings: Settings) -> Iterator[Client]:
    """A service of this process, in a thread of its own."""
    up, url = threading.Event(), ""

    def started(facts: Started) -> None:
        nonlocal url
        url = facts.url
        up.set()

    log: TextIO = (settings.state_dir / "benchmark-service.log").open("a", encoding="utf-8")
    served = Service(settings, ListenOptions(), make_logger(log), open_ssh=False)
    thread = threading.Thread(target=served.run, args=(lambda line: print(line, file=sys.stderr), started))
    thread.start()
    if not up.wait(_PATIENCE_S):
        raise SystemExit("the service did not start")
    try:
        token = (settings.state_dir / "service" / "token").read_text().strip()
        yield Client(url, token, KeyPair.generate())
    finally:
        served.stop()
        thread.join()


def _spec(pair: KeyPair, group_id: str, kind: str) -> LaunchSpec:
    run_id = new_run_id()
    return LaunchSpec(
        run_id=run_id, name="benchmark", role=Role.BENCH, instance_type=kind, key_name="",
        security_group_id=group_id, market=Market.ON_DEMAND,
        expires_at=datetime.now(UTC) + timedelta(hours=1), user_data=UserData(ttl_s=3600),
        client_token=run_id, public_key=pair.public_key,
    )  # fmt: skip


async def harness_warm(
    cloud: Cloud, technique: Technique, prepared: Prepared, group_id: str, kind: str
) -> float:
    """t4 of one attempt as `invoke bench` makes it."""
    pair = KeyPair.generate()
    spec = _spec(pair, group_id, kind)
    async with Launcher(cloud, timeout_s=_LAUNCH_S) as launcher:
        slot = await launcher.fill(technique, prepared, spec)
        try:
            await asyncio.sleep(3)
            launch = launcher.launch(technique, prepared, spec, slot)
            login = PrivateKeyLogin(prepared.username, pair.for_asyncssh())
            await launcher.follow(launch, login)
            login.close()
            if launch.outcome is not Outcome.OK:
                raise SystemExit(f"harness: {launch.outcome}: {launch.error}")
            return launch.timeline.marks[MarkName.T4].ms
        finally:
            await launcher.end(technique, slot.instance_id, PoolSlot())


def race(blocks: int, arch: Arch, chosen: list[str]) -> dict[str, Any]:
    pools = tuple(PoolSettings(technique=kind, arch=arch) for kind in PoolKind if kind.value in chosen)
    settings = load()
    settings = settings.model_copy(update={"service": ServiceSettings(pools=pools)})
    cloud = connect(settings, lambda line: print(line, file=sys.stderr))
    technique = find_technique("custom-init+warm-running")
    _, images = choose(cloud, arch, "latest", [technique.name])
    prepared = technique.prepare(cloud, images)
    kind = usual_type(cloud, arch)
    walls: dict[str, list[float]] = {}
    t4s: dict[str, list[float]] = {}
    with service(settings) as client, temporary_security_group(
        cloud, run_id=new_run_id(), role=Role.BENCH, expires_at=datetime.now(UTC) + timedelta(hours=12)
    ) as group_id:  # fmt: skip
        client.settle()
        for block in range(blocks):
            arms = random.sample(chosen, len(chosen))
            for arm in arms:
                client.settle()
                if arm == "harness":
                    t4_ms = asyncio.run(harness_warm(cloud, technique, prepared, group_id, kind))
                else:
                    took_ms, lease = client.take(arm)
                    t4_ms = lease["timing"]["t4_ms"]
                    walls.setdefault(arm, []).append(took_ms)
                    client.end(lease["id"])
                t4s.setdefault(arm, []).append(t4_ms)
                print(f"block {block + 1}: {arm}: t4 {t4_ms:.0f} ms", file=sys.stderr)
    return {
        "image": prepared.image_id,
        "accelerator": cloud.accelerator_for(arch),
        "t4": {arm: figures(values) for arm, values in sorted(t4s.items())},
        "post_to_answer": {arm: figures(values) for arm, values in sorted(walls.items())},
    }


# parked


def _pss_mib(pid: int) -> float:
    """Proportional set size: shared pages count by how many share them (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _cpu_s(pid: int) -> float:
    """utime and stime of proc(5), stat."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def _emulator(instance_id: str) -> int:
    """The QEMU whose name is the instance's."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"qemu-system" in words[0] and instance_id.encode() in words:
                return int(path.parent.name)
    raise SystemExit(f"no emulator of {instance_id}")


@contextmanager
def _serving(settings: Settings, config: str) -> Iterator[tuple[int, httpx2.Client]]:
    """`invoke serve` as a process of its own: its id, and a client with its token."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "instant-env.yml")
        file.write_text(config)
        environ = {
            **os.environ, "INSTANT_ENV_CONFIG": str(file), "INSTANT_ENV_STATE_DIR": str(settings.state_dir),
        }  # fmt: skip
        words = [str(Path(sys.executable).parent / "invoke"), "serve", "--listen", "127.0.0.1:0"]
        with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                first = process.stdout.readline()
                if not first.startswith("serving at "):
                    raise SystemExit(f"invoke serve: {first}")
                token = (settings.state_dir / "service" / "token").read_text().strip()
                headers = {"Authorization": f"Bearer {token}"}
                url = first.split()[2]
                with httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
                    yield process.pid, client
            finally:
                process.terminate()


async def _parked_guest(cloud: Cloud, arch: Arch, seconds: float) -> dict[str, Any]:
    """A guest from within: memory in use, and processor time spent in ``seconds``, alone and with a parked
    connection beside the one that looks."""
    technique = find_technique("custom-init+warm-running")
    _, images = choose(cloud, arch, "latest", [technique.name])
    prepared = technique.prepare(cloud, images)
    pair, expires_at = KeyPair.generate(), datetime.now(UTC) + timedelta(hours=1)
    with temporary_security_group(
        cloud, run_id=new_run_id(), role=Role.BENCH, expires_at=expires_at
    ) as group_id:
        spec = _spec(pair, group_id, usual_type(cloud, arch))
        async with Launcher(cloud, timeout_s=_LAUNCH_S) as launcher:
            slot = await launcher.fill(technique, prepared, spec)
            try:
                (address,) = [
                    instance["PublicIpAddress"]
                    for group in cloud.ec2.describe_instances(InstanceIds=[slot.instance_id])["Reservations"]
                    for instance in group["Instances"]
                ]
                options = client_options(prepared.username, pair.for_asyncssh(), None)
                await asyncio.to_thread(
                    by_instance_connect, cloud, slot.instance_id, prepared.username, pair.public_key
                )
                login = await authenticate((await dial(address, cloud.ssh_port, timeout_s=60)).sock, options)
                alone = await _within(login.connection, seconds)
                parked = await park(cloud, slot.instance_id, address, prepared.username, None, timeout_s=60)
                parked.stand_by(Door(address, cloud.ssh_port, prepared.username, None))
                beside = await _within(login.connection, seconds)
                parked.close()
                login.connection.abort()
            finally:
                await launcher.end(technique, slot.instance_id, PoolSlot())
    return {"alone": alone, "parked": beside}


async def _within(connection: asyncssh.SSHClientConnection, seconds: float) -> dict[str, float]:
    """Of a guest, after it has been left alone for a moment."""

    async def look() -> tuple[float, float, float]:
        result = await connection.run("cat /proc/meminfo /proc/uptime; nproc", check=True)
        words = str(result.stdout).split()
        uptime_s, idle_s, processors = (float(word) for word in words[-3:])
        kib = {name: float(words[words.index(name) + 1]) for name in ("MemTotal:", "MemAvailable:")}
        return kib["MemTotal:"] - kib["MemAvailable:"], uptime_s * processors - idle_s, uptime_s

    await asyncio.sleep(5)
    _, busy_s, before_s = await look()
    await asyncio.sleep(seconds)
    used_kib, busy_after_s, after_s = await look()
    share = (busy_after_s - busy_s) / (after_s - before_s)
    return {"used_mib": round(used_kib / 1024, 1), "processor_percent": round(share * 100, 2)}


def measure_parked(machines: int, seconds: float, arch: Arch) -> dict[str, Any]:
    settings = load()
    cloud = connect(settings, lambda line: print(line, file=sys.stderr))
    guest = asyncio.run(_parked_guest(cloud, arch, seconds))

    def config(target: int) -> str:
        pool = f"{{technique: warm-running, arch: {arch}, target: {target}}}"
        return f"service: {{pools: [{pool}], max_usd_per_hour: 1000}}\n"

    def spent(pids: list[int]) -> tuple[list[float], list[float]]:
        before = [_cpu_s(pid) for pid in pids]
        time.sleep(seconds)
        used = [(_cpu_s(pid) - was) / seconds * 100 for pid, was in zip(pids, before, strict=True)]
        return [_pss_mib(pid) for pid in pids], used

    with _serving(settings, "service: {pools: []}\n") as (pid, _):
        time.sleep(5)
        alone = [values[0] for values in spent([pid])]
    began_s = time.monotonic()
    with _serving(settings, config(machines)) as (pid, client):
        wait(lambda: client.get("/v1/pools").json()["pools"][0]["ready"] == machines)
        filled_s = time.monotonic() - began_s
        time.sleep(10)
        answers = client.get("/v1/pools").json()["pools"][0]["machines"]
        emulators = [_emulator(machine["instance_id"]) for machine in answers]
        mib, percents = spent([pid, *emulators])
        occupied = (mib.pop(0), percents.pop(0))
        client.patch(f"/v1/pools/{client.get('/v1/pools').json()['pools'][0]['name']}", json={"target": 0})
        wait(lambda: client.get("/v1/pools").json()["pools"][0]["ready"] == 0)
    return {
        "filled_s": round(filled_s, 1),
        "service": {"without_machines": _cost(*alone), "with_machines": _cost(*occupied)},
        "emulator_median": _cost(statistics.median(mib), statistics.median(percents)),
        "emulator_max": _cost(max(mib), max(percents)),
        "guest": guest,
    }


def _cost(mib: float, percent: float) -> dict[str, float]:
    return {"pss_mib": round(mib, 1), "processor_percent": round(percent, 2)}


# load


class _Fleet(FakeFleet):
    """Hands over at once; its calls are not kept."""

    async def _step(self, operation: str, about: str) -> None:
        del operation, about


async def _serve(directory: Path, requests: int) -> None:
    """A service until standard input ends. Says its address and token on standard output, in one line."""
    settings = ServiceSettings(max_leases=10_000_000, requests_per_minute=10_000_000, max_usd_per_hour=1e9)
    options = settings.model_dump(exclude_unset=True)
    with (directory / "log").open("w", encoding="utf-8") as log:
        async with rig(directory / "store", fleet=_Fleet(), plans=[plan(target=requests)], **options) as r:
            r.fill_rows(requests)
            _, secret = await r.new_token()
            listener = Listener(make_app(r.engine, settings, log=make_logger(log)))
            serving = asyncio.create_task(listener.serve())
            print(json.dumps({"url": listener.url, "secret": secret}), flush=True)
            await asyncio.to_thread(sys.stdin.read)
            listener.stop()
            await serving


@contextmanager
def _served(directory: Path, requests: int) -> Iterator[tuple[str, str]]:
    """The service in a process of its own."""
    words = [sys.executable, __file__, "serve", str(directory), str(requests)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        facts = json.loads(process.stdout.readline())
        yield facts["url"], facts["secret"]


def _own_part(log: Path) -> list[float]:
    """How long the service itself says that each POST took, from its first byte to its answer."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line["ms"] for line in lines if line.get("event") == "request" and line.get("method") == "POST"]


_BODY = {"public_key": str(KEY), "instance_type": TYPE, "ttl_seconds": 600}


async def _post(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/instances", json=_BODY)
    if answer.status_code not in (201, 202) or answer.json()["source"] != "pool":
        raise SystemExit(f"{answer.status_code}: {answer.text[:300]}")


def _client(url: str, secret: str, connections: int) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx2.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60, trust_env=False)


async def _open_loop(url: str, secret: str, rate: int, seconds: int) -> dict[str, float]:
    times: list[float] = []

    async def at(due: float, client: httpx2.AsyncClient) -> None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await _post(client)
        times.append((time.perf_counter() - due) * 1000)

    async with _client(url, secret, 200) as client:
        for _ in range(10):
            await _post(client)
        begin = time.perf_counter() + 0.5
        await asyncio.gather(*(at(begin + number / rate, client) for number in range(rate * seconds)))
    return figures(times)


async def _closed_loop(url: str, secret: str, clients: int, requests: int) -> dict[str, float]:
    left, times = iter(range(requests)), []

    async def one(client: httpx2.AsyncClient) -> None:
        for _ in left:
            began = time.perf_counter()
            await _post(client)
            times.append((time.perf_counter() - began) * 1000)

    async with _client(url, secret, clients) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        took_s = time.perf_counter() - began
    return {**figures(times), "per_second": round(requests / took_s, 1)}


def measure_load(rate: int, seconds: int, clients: int) -> dict[str, Any]:
    count = rate * seconds
    opened, own_open = _with_service(count, lambda url, secret: _open_loop(url, secret, rate, seconds))
    closed, own_closed = _with_service(count, lambda url, secret: _closed_loop(url, secret, clients, count))
    return {
        "open_loop": {"rate_per_s": rate, "seen_by_the_client": opened, "own_part": own_open},
        "closed_loop": {"clients": clients, "seen_by_the_client": closed, "own_part": own_closed},
    }


def _with_service(
    count: int, measure: Callable[[str, str], Coroutine[Any, Any, dict[str, float]]]
) -> tuple[dict[str, float], dict[str, float]]:
    """What the clients saw of ``count`` requests to a fresh service, and its own part."""
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        with _served(directory, count + 100) as (url, secret):
            seen = asyncio.run(measure(url, secret))
        return seen, figures(_own_part(directory / "log"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    racing = kinds.add_parser("race", help="from a POST to a login, on booted machines")
    racing.add_argument("--blocks", type=int, default=10)
    racing.add_argument("--arms", default=",".join(ARMS), help="which of them, with commas")
    racing.add_argument("--arch", type=Arch, default=Arch.parse(platform.machine()))
    loading = kinds.add_parser("load", help="the service's own part")
    loading.add_argument("--rate", type=int, default=50, help="requests per second in the open loop")
    loading.add_argument("--seconds", type=int, default=20)
    loading.add_argument("--clients", type=int, default=50, help="in the closed loop")
    parking = kinds.add_parser("parked", help="what machines that wait cost")
    parking.add_argument("--machines", type=int, default=20)
    parking.add_argument("--seconds", type=float, default=180)
    parking.add_argument("--arch", type=Arch, default=Arch.parse(platform.machine()))
    serving = kinds.add_parser("serve", help="what `load` starts")
    serving.add_argument("directory", type=Path)
    serving.add_argument("requests", type=int)
    options = parser.parse_args()
    if options.kind == "serve":
        asyncio.run(_serve(options.directory, options.requests))
        return
    about = machine()
    if options.kind == "race":
        result = race(options.blocks, options.arch, options.arms.split(","))
    elif options.kind == "parked":
        result = measure_parked(options.machines, options.seconds, options.arch)
    else:
        result = measure_load(options.rate, options.seconds, options.clients)
    print(json.dumps({"machine": about, **result}, indent=2))


if __name__ == "__main__":
    main()

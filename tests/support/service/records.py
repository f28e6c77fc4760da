"""Records of the service for tests: each with every field that a test does not name."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.public_key import PublicKey
from instant_env.service.records import (
    Candidate,
    LeaseRequest,
    Machine,
    MachineState,
    Scope,
    Token,
    new_id,
)
from instant_env.service.store.protocol import Limits

NOW = datetime(2026, 11, 30, 12, 0, 0, 123456, tzinfo=UTC)
POOL = "warm-running-custom-init"
IMAGE = "ami-0123456789abcdef0"
KEY = PublicKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIJbIYrzPzeVZ8fAIdPY0aEPGYbR0YXdtV3P8qQ5mVYqN", "me")
#: More than any test uses.
WIDE = Limits(leases=10_000, usd_per_hour=None, service_usd_per_hour=1e9)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def token(name: str = "one", **changes: Any) -> Token:
    plain = Token(
        id=f"tk-{name}",
        name=name,
        sha256=f"{name:0<64}",
        scopes=frozenset({Scope.LEASE}),
        created_at=NOW,
    )
    return replace(plain, **changes)


def request(**changes: Any) -> LeaseRequest:
    plain = LeaseRequest(
        public_key=KEY,
        technique="auto",
        arch=Arch.X86_64,
        instance_type="m7i.large",
        market=Market.ON_DEMAND,
        ttl_s=3600,
        labels={"team": "blue"},
    )
    return replace(plain, **changes)


def ready_machine(**changes: Any) -> Machine:
    """One that waits in POOL."""
    name = new_id("mc")
    plain = Machine(
        id=name,
        state=MachineState.READY,
        technique="warm-running",
        arch=Arch.X86_64,
        instance_type="m7i.large",
        image_id=IMAGE,
        market=Market.ON_DEMAND,
        client_token=name,
        created_at=NOW,
        expires_at=later(12 * 3600),
        pool=POOL,
        instance_id=f"i-{name[-17:]}",
        address="192.0.2.7",
        username="debian",
        host_keys=("ssh-ed25519 AAAAC3Nza",),
        ready_at=NOW,
        usd_per_hour=0.1,
    )
    return replace(plain, **changes)


def warm(**changes: Any) -> Candidate:
    plain = Candidate(
        "warm-running", pool=POOL, image_id=IMAGE, predicted_ms=460.0, basis="service", n=12, usd_per_hour=0.1
    )
    return replace(plain, **changes)


def cold(**changes: Any) -> Candidate:
    return replace(Candidate("custom-init", predicted_ms=5200.0, basis="benchmark", n=30), **changes)

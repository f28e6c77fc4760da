"""Bodies of answers: what a client may rely on, as OpenAPI documents it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.public_key import PublicKey
from instant_env.service import operations as ops
from instant_env.service.records import (
    EndReason,
    Lease,
    LeaseState,
    Page,
    Scope,
    Selection,
    Source,
    Token,
)


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class HostKey(_Answer):
    """A host key of the machine."""

    type: str
    key: str = Field(description="base64")
    fingerprint: str = Field(description="SHA256:..., as ssh-keygen prints it")
    known_hosts: str = Field(description="a line for a known_hosts file")


class TimingAnswer(_Answer):
    """Milliseconds from the request (t0); null until it happened."""

    t1_ms: float | None = Field(description="a machine was claimed, or EC2 returned its id")
    t2_ms: float | None = Field(description="it was first seen running")
    t3_ms: float | None = Field(description="sshd's version line was read")
    t4_ms: float | None = Field(description="sshd said that the key would be let in")
    t4_by: str = Field(description="what proved t4: pk_ok (sshd's word) or login")
    resolution_ms: dict[str, float] = Field(
        description="by phase: the polling interval that bounds its error"
    )


class Alternative(_Answer):
    """Another technique that was considered."""

    model_config = ConfigDict(extra="allow", frozen=True)

    technique: str
    predicted_ms: float | None = None
    skipped: str = Field("", description="why it was passed over; empty for those behind the chosen one")


class SelectionAnswer(_Answer):
    """Why this technique."""

    chosen: str
    predicted_ms: float | None
    basis: str = Field(description="service (own launches), benchmark, or static (a fixed order)")
    n: int = Field(description="launches that the prediction rests on")
    alternatives: list[Alternative]


class EndAnswer(_Answer):
    """Why a lease is over."""

    reason: EndReason
    detail: str


class KeyAnswer(_Answer):
    """The key that was asked for, without its comment."""

    type: str
    fingerprint: str


class LeaseAnswer(_Answer):
    """A lease. Times are in UTC; ``now`` is the service's clock, so that a client needs none."""

    id: str
    url: str
    owner: str = Field(description="id of the token that took it")
    state: LeaseState
    version: int
    technique_asked: str
    technique: str | None = Field(description="the one that serves it; null until it is chosen")
    source: Source | None = Field(description="pool or cold")
    attempt: int = Field(description="machines that were tried for it")
    arch: Arch
    instance_type: str
    instance_id: str | None
    address: str | None
    port: int
    user: str | None
    ssh: str | None = Field(description="a command that logs in")
    host_keys: list[HostKey]
    host_keys_known_by: str | None = Field(description="console or first-contact")
    known_hosts: str | None = Field(description="all lines for a known_hosts file")
    public_key: KeyAnswer
    timing: TimingAnswer
    selection: SelectionAnswer | None
    fallback: bool
    market: Market | None
    usd_per_hour: float
    ttl_seconds: int
    labels: dict[str, str]
    created_at: datetime
    ready_at: datetime | None
    expires_at: datetime | None = Field(description="set when it is ready: the time is counted from there")
    ended_at: datetime | None
    ended: EndAnswer | None
    detail: str
    now: datetime


class LeasesAnswer(_Answer):
    """A page of leases, newest first."""

    leases: list[LeaseAnswer]
    cursor: str | None = Field(description="for the next page; null on the last")
    now: datetime


class TechniqueAnswer(_Answer):
    """What `auto` thinks of a technique now."""

    name: str
    arch: Arch
    instance_type: str
    predicted_ms: float | None
    basis: str
    n: int
    available: bool
    why: str
    rank: int


class TechniquesAnswer(_Answer):
    techniques: list[TechniqueAnswer]
    percentiles: list[PercentilesAnswer]


class PercentilesAnswer(_Answer):
    """Times to t4 of recent launches, in milliseconds."""

    technique: str
    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float


class MachineAnswer(_Answer):
    """A machine of a pool."""

    id: str
    instance_id: str
    state: str
    image_id: str
    created_at: datetime
    ready_at: datetime | None
    detail: str


class PoolAnswer(_Answer):
    """A pool: what it should hold, what it holds, what it costs."""

    name: str
    technique: str
    recipe: str
    arch: Arch
    instance_type: str
    state: str
    target: int
    target_of_settings: int
    ready: int
    filling: int
    paused: bool
    usd_per_hour: float
    hits: int
    misses: int
    hit_ratio: float | None
    open_until: datetime | None
    last_error: str
    machines: list[MachineAnswer]


class PoolsAnswer(_Answer):
    pools: list[PoolAnswer]


class QuotaAnswer(_Answer):
    """Limits and what is used of them; null is no limit of its own."""

    max_leases: int
    leases: int
    max_usd_per_hour: float | None
    usd_per_hour: float
    service_max_usd_per_hour: float
    service_usd_per_hour: float
    instance_types: list[str]
    requests_per_minute: int
    ttl: dict[str, int] = Field(description="limits of a lease's time, in seconds")


class TokenAnswer(_Answer):
    """A token, without its secret."""

    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    max_leases: int | None
    max_usd_per_hour: float | None
    instance_types: list[str] | None


class NewTokenAnswer(_Answer):
    """A new token. ``secret`` is shown this once."""

    token: TokenAnswer
    secret: str


class TokensAnswer(_Answer):
    tokens: list[TokenAnswer]


class HealthAnswer(_Answer):
    ready: bool
    checks: dict[str, str]


TechniquesAnswer.model_rebuild()


def known_hosts_name(address: str, port: int) -> str:
    """A machine's name in known_hosts (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    return address if port == 22 else f"[{address}]:{port}"


def ssh_command(lease: Lease) -> str | None:
    """``ssh -p 2222 root@127.1.2.3``; None as long as there is no machine."""
    if not lease.address or not lease.username:
        return None
    port = "" if lease.port == 22 else f"-p {lease.port} "
    return f"ssh {port}{lease.username}@{lease.address}"


def _host_key(line: str, name: str) -> HostKey:
    kind, body = line.split()[:2]
    return HostKey(
        type=kind,
        key=body,
        fingerprint=PublicKey(kind, body).fingerprint,
        known_hosts=f"{name} {kind} {body}",
    )


def _selection_answer(selection: Selection) -> SelectionAnswer:
    return SelectionAnswer(
        chosen=selection.chosen,
        predicted_ms=selection.predicted_ms,
        basis=selection.basis,
        n=selection.n,
        alternatives=[Alternative.model_validate(dict(each)) for each in selection.alternatives],
    )


def lease_answer(lease: Lease, now: datetime) -> LeaseAnswer:
    """A lease as clients see it."""
    request, timing = lease.request, lease.timing
    name = known_hosts_name(lease.address, lease.port)
    host_keys = [_host_key(line, name) for line in lease.host_keys] if lease.address else []
    return LeaseAnswer(
        id=lease.id,
        url=f"/v1/instances/{lease.id}",
        owner=lease.owner,
        state=lease.state,
        version=lease.version,
        technique_asked=request.technique,
        technique=lease.technique or None,
        source=lease.source,
        attempt=lease.attempt,
        arch=request.arch,
        instance_type=request.instance_type,
        instance_id=lease.instance_id or None,
        address=lease.address or None,
        port=lease.port,
        user=lease.username or None,
        ssh=ssh_command(lease),
        host_keys=host_keys,
        host_keys_known_by=lease.host_keys_known_by or None,
        known_hosts="\n".join(key.known_hosts for key in host_keys) or None,
        public_key=KeyAnswer(type=request.public_key.type, fingerprint=request.public_key.fingerprint),
        timing=TimingAnswer(
            t1_ms=timing.t1_ms, t2_ms=timing.t2_ms, t3_ms=timing.t3_ms, t4_ms=timing.t4_ms,
            t4_by=timing.t4_by, resolution_ms=dict(timing.resolution_ms),
        ),
        selection=_selection_answer(lease.selection) if lease.selection else None,
        fallback=request.fallback,
        market=lease.market,
        usd_per_hour=lease.usd_per_hour,
        ttl_seconds=request.ttl_s,
        labels=dict(request.labels),
        created_at=lease.created_at,
        ready_at=lease.ready_at,
        expires_at=lease.expires_at,
        ended_at=lease.ended_at,
        ended=EndAnswer(reason=lease.reason, detail=lease.detail) if lease.reason else None,
        detail=lease.detail,
        now=now,
    )  # fmt: skip


def page_answer(page: Page, now: datetime) -> LeasesAnswer:
    return LeasesAnswer(
        leases=[lease_answer(lease, now) for lease in page.leases], cursor=page.cursor or None, now=now
    )


def token_answer(token: Token) -> TokenAnswer:
    return TokenAnswer(
        id=token.id,
        name=token.name,
        scopes=sorted(token.scopes),
        created_at=token.created_at,
        expires_at=token.expires_at,
        revoked_at=token.revoked_at,
        max_leases=token.max_leases,
        max_usd_per_hour=token.max_usd_per_hour,
        instance_types=None if token.instance_types is None else list(token.instance_types),
    )


def techniques_answer(
    techniques: Iterable[ops.TechniqueView], percentiles: Iterable[ops.PercentilesView]
) -> TechniquesAnswer:
    return TechniquesAnswer(
        techniques=[TechniqueAnswer.model_validate(each) for each in techniques],
        percentiles=[PercentilesAnswer.model_validate(each) for each in percentiles],
    )


_TTL_FACTS = ("ttl_s", "min_ttl_s", "max_ttl_s", "max_lifetime_s")


def quota_answer(quota: ops.QuotaView, facts: Mapping[str, Any]) -> QuotaAnswer:
    ttl = {name: facts[name] for name in _TTL_FACTS}
    fields = {name: getattr(quota, name) for name in quota.__dataclass_fields__}
    return QuotaAnswer.model_validate({**fields, "instance_types": list(quota.instance_types), "ttl": ttl})


def json_response(answer: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        answer.model_dump_json(),
        status,
        media_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )

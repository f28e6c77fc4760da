"""What a bake would make and cost, before anything is made.

The costs are an estimate: machines by the second, their disks and addresses as long, and what the snapshot
costs each month from then on. It counts a snapshot as large as its volume, which is the most that it can be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from instant_env.bake.bases import BaseImage
from instant_env.bake.downloads.offer import Packages, hosts_of
from instant_env.bake.plan import BakePlan
from instant_env.bake.proof.checks import outside_ports
from instant_env.bake.request import Request
from instant_env.cloud import prices
from instant_env.cloud.images import BakedImage, parameter_name
from instant_env.cloud.instances import Market
from instant_env.cloud.session import Cloud

#: How long a bake takes where none of this recipe is on record here: Packer's and our own are quicker.
_USUAL_S = 900.0
#: A GiB of the root volume beyond the base's is written by the seal and read by the audit, at gp3's 125 MiB/s
#: (EBS User Guide, "General Purpose SSD volumes").
_PER_GIB_S = 2 * 1024 / 125


@dataclass(frozen=True)
class Resource:
    """One thing that a bake makes. ``stays`` when it is there after a bake that went well."""

    kind: str
    name: str
    what: str
    stays: bool = False


@dataclass(frozen=True)
class Forecast:
    """Of one bake. Money is in USD; ``unknown`` names a type that has no price known."""

    plan: BakePlan
    base: BaseImage
    existing: BakedImage | None
    resources: tuple[Resource, ...]
    usual_s: float
    likely_usd: float
    worst_usd: float
    monthly_usd: float
    unknown: str = ""
    #: Who fetches packages and downloads, and from where at most.
    packages: Packages = Packages.DIRECT
    hosts: tuple[str, ...] = ()

    @property
    def cost(self) -> str:
        if self.existing is not None:
            return "nothing: the AMI is there"
        if self.unknown:
            return f"no price known of {self.unknown}"
        if not self.worst_usd:
            return "nothing: these are machines of localec2"
        return (
            f"about ${self.likely_usd:.2f} ({self.usual_s / 60:.0f} min), at most ${self.worst_usd:.2f}; "
            f"then at most ${self.monthly_usd:.2f} a month for the snapshot"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.plan.as_dict(),
            "base_image": self.base.as_dict(),
            "packages": {"by": self.packages.value, "hosts": list(self.hosts)},
            "existing_ami": self.existing.id if self.existing else None,
            "resources": [asdict(resource) for resource in self.resources],
            "cost": {
                "likely_usd": round(self.likely_usd, 4), "worst_usd": round(self.worst_usd, 4),
                "monthly_usd": round(self.monthly_usd, 4), "unknown": self.unknown or None,
            },
        }  # fmt: skip


def forecast(
    cloud: Cloud, request: Request, plan: BakePlan, base: BaseImage, existing: BakedImage | None, *,
    builder_types: Sequence[str], ttl_s: float,
) -> Forecast:  # fmt: skip
    """What the bake of this plan costs: likely on the first of ``builder_types``, at worst on the dearest.

    ``ttl_s`` is how long its machines live at most."""
    size_gib = plan.volume_gib(base.size_gib)
    usual_s = _last_s(cloud, plan) or _USUAL_S + (size_gib - base.size_gib) * _PER_GIB_S
    pairs = [(kind, Market.ON_DEMAND) for kind in builder_types]
    price_of = prices.find(cloud, pairs)
    first = price_of.get(pairs[0])
    dearest = max((price.usd_per_hour for price in price_of.values()), default=0.0)
    # The audit needs a second volume of that size.
    beside = prices.beside_usd_per_hour(cloud, 2 * size_gib)
    snapshot = prices.storage_usd_per_gib_month(cloud, "snapshot") * size_gib

    def cost(hours: float, usd_per_hour: float) -> float:
        return hours * (usd_per_hour + beside)

    nothing = existing is not None
    return Forecast(
        plan, base, existing,
        resources=() if nothing else _resources(request, plan, base, builder_types),
        usual_s=usual_s,
        likely_usd=0.0 if nothing else cost(usual_s / 3600, first.usd_per_hour if first else 0.0),
        worst_usd=0.0 if nothing else cost(2 * ttl_s / 3600, dearest) + snapshot,
        monthly_usd=0.0 if nothing else snapshot,
        unknown="" if first or nothing else builder_types[0],
        packages=(by := request.options.packages.settled(
            cloud.name, private=request.options.ssh_private or cloud.settings.ssh_private
        )),
        hosts=tuple(hosts_of(plan).described) if by is Packages.CALLER else (),
    )  # fmt: skip


def _resources(
    request: Request, plan: BakePlan, base: BaseImage, builder_types: Sequence[str]
) -> tuple[Resource, ...]:
    image, size_gib = request.image_name, plan.volume_gib(base.size_gib)
    resources: list[Resource] = []
    kinds = builder_types[0] + (f" (or {', '.join(builder_types[1:])})" if builder_types[1:] else "")
    encrypted = "encrypted " if request.options.encrypt else ""
    asked = ", ".join(str(port) for port in outside_ports(plan.checks))
    ports = {"builder": "SSH", "verify": f"SSH and TCP {asked}" if asked else "SSH"}
    for role, source in (("builder", base.id), ("verify", "the new AMI")):
        name = f"instant-env-{role}-{request.run_id}"
        resources += [
            Resource("key-pair", name, "ed25519; the private half stays in memory"),
            Resource("security-group", name, f"{ports[role]} from the caller's address only"),
            Resource("instance", name, f"{kinds}, on demand, from {source}, IMDSv2 only"),
            Resource("network-interface", name, "its own"),
            Resource("volume", name, f"{encrypted}gp3, {size_gib} GiB: its root"),
        ]
    audit = f"instant-env-audit-{request.run_id}"
    parameter = parameter_name(request.recipe, plan.arch)
    resources += [
        Resource("volume", audit, f"{encrypted}gp3, {size_gib} GiB: read by the audit"),
        Resource("snapshot", image, f"{encrypted}{size_gib} GiB", stays=True),
        Resource("image", image, f"{plan.arch}", stays=True),
        Resource("ssm-parameter", parameter, "names the newest verified AMI", stays=True),
    ]
    return tuple(resources)


def _last_s(cloud: Cloud, plan: BakePlan) -> float:
    """How long the last bake of this recipe, root size and architecture took in this cloud; 0 when none is on
    record."""
    durations: list[tuple[str, float]] = []
    for path in (cloud.settings.state_dir / "manifests").glob("*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            kind = (*(record["plan"][key] for key in ("recipe", "arch")), record["plan"].get("root_gib"))
            same = kind == (plan.recipe.name, plan.arch.value, plan.recipe.root_gib)
            if same and record["cloud"] == cloud.name.value:
                durations.append((record["created"], float(record["total_s"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not ours, or of another version: it only sharpens an estimate
    return max(durations)[1] if durations else 0.0

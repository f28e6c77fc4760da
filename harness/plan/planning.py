"""From what was asked for to a plan: cells, their images, what they cost; or the rest of an interrupted
run."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.metadata import host_state
from harness.plan import prices
from harness.plan.definition import Definition
from harness.plan.experiment import Cell, Experiment, Planned
from harness.plan.images import choose
from harness.plan.prices import Prices
from harness.results_file import read_rows
from instant_env.arch import Arch
from instant_env.cloud import copies
from instant_env.cloud.images import BakedImage
from instant_env.cloud.instances import Market, default_market, default_type
from instant_env.cloud.launching import places
from instant_env.cloud.launching.places import Place
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError
from instant_env.launch.techniques import Prepared, find_technique
from instant_env.launch.timeline import Outcome

_EXPERIMENT = TypeAdapter(Experiment)
_PREPARED = TypeAdapter(Prepared)
_PLACE = TypeAdapter(Place)

#: Attempts that ended so say nothing: a resumed run makes them again.
_MISSING = frozenset({Outcome.INTERRUPTED.value, Outcome.CANCELLED.value})

#: Facts of the host that must be the same when a run goes on: figures of different hosts are never pooled.
_SAME_HOST = ("cpu", "cores", "memory_mib")


@dataclass(frozen=True)
class Plan:
    """A run to come. ``csv_path`` and ``before`` (the metadata) are of the run that is resumed."""

    name: str
    experiment: Experiment
    prepared: Mapping[Cell, Prepared]
    prices: Prices
    about: str = ""
    places: Mapping[Cell, Place] = field(default_factory=dict)
    csv_path: Path | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    finished: frozenset[int] = frozenset()

    def remaining(self) -> list[Planned]:
        return [planned for planned in self.experiment.plan() if planned.attempt not in self.finished]

    def as_json(self) -> dict[str, Any]:
        """What a resumed run needs to be the same run."""
        return {
            "experiment": _EXPERIMENT.dump_python(self.experiment, mode="json"),
            "prepared": [
                _PREPARED.dump_python(self.prepared[cell], mode="json") for cell in self.experiment.cells
            ],
            "places": [
                _PLACE.dump_python(self.places[cell], mode="json")
                for cell in self.experiment.cells
                if cell in self.places
            ],
        }


def of_race(
    cloud: Cloud,
    *,
    name: str,
    ami: str,
    techniques: Sequence[str] | None,
    arch: Arch,
    instance_type: str | None,
    iterations: int,
    seed: int | None,
    timeout_s: float,
    parallel: int,
    market: Market | None = None,
) -> Plan:
    """Techniques side by side. Raises UsageError for a technique that is unknown or has no AMI."""
    names, images = choose(cloud, arch, ami, techniques)
    experiment = Experiment.race(
        names,
        arch,
        default_type(cloud, arch, instance_type),
        iterations=iterations,
        seed=_seed(seed),
        timeout_s=timeout_s,
        parallel=parallel,
        # Written down, so that a run that goes on later goes on in the same market.
        market=market or default_market(cloud),
    )
    prepared = {cell: find_technique(cell.technique).prepare(cloud, images) for cell in experiment.cells}
    return Plan(
        name,
        experiment,
        prepared,
        prices.find(cloud, experiment.cells),
        places=places_of(cloud, experiment.cells),
    )


def of_definition(cloud: Cloud, definition: Definition, seed: int | None = None) -> Plan:
    """An experiment from a file. Raises UsageError for what is not baked."""
    images: dict[Arch, Mapping[str, BakedImage]] = {
        arch: choose(cloud, arch, definition.ami, definition.techniques)[1]
        for arch in definition.architectures
    }
    cells = tuple(
        replace(cell, usual_market=default_market(cloud))
        for cell in _in_each_zone(cloud, definition.cells(lambda arch: default_type(cloud, arch)))
    )
    experiment = definition.experiment(cells, _seed(definition.seed if seed is None else seed))
    prepared = {cell: find_technique(cell.technique).prepare(cloud, images[cell.arch]) for cell in cells}
    for cell in cells:
        if cell.options.boot_mode:
            copies.check_own(cloud, prepared[cell].image_id, f"boot_mode of {cell.label}")
    price_list = prices.find(cloud, experiment.cells)
    where = places_of(cloud, cells)
    return Plan(definition.name, experiment, prepared, price_list, about=definition.about, places=where)


def places_of(cloud: Cloud, cells: Sequence[Cell]) -> dict[Cell, Place]:
    """Where each cell's machines go: in the zone that it names, and all others in one, because zones have
    hosts of their own and EC2 would choose one anew for each launch.

    Where no zone has all of their types, each type has one. Raises UsageError for a zone that has no subnet
    of ours, or not the type.
    """
    free = {cell.instance_type for cell in cells if cell.options.zone is None}
    try:
        common = places.choose(cloud, free) if free else None
    except UsageError:
        if len(free) == 1:
            raise
        common = None
    where: dict[tuple[str, str | None], Place] = {}
    for cell in cells:
        key = (cell.instance_type, cell.options.zone)
        if key not in where:
            is_common = common is not None and cell.options.zone is None
            where[key] = common if is_common else places.choose(cloud, [key[0]], key[1])  # type: ignore[assignment]
    return {cell: where[cell.instance_type, cell.options.zone] for cell in cells}


def _in_each_zone(cloud: Cloud, cells: Sequence[Cell]) -> list[Cell]:
    """The cells, those with ``zone: each`` once for each zone that has all types of the experiment."""
    if not any(cell.options.zone == places.EACH for cell in cells):
        return list(cells)
    zones = places.zones_for(cloud, {cell.instance_type for cell in cells})
    return [
        replace(cell, options=replace(cell.options, zone=zone))
        for cell in cells
        for zone in (zones if cell.options.zone == places.EACH else [cell.options.zone])
    ]


def of_interrupted(cloud: Cloud, before: Mapping[str, Any], csv_path: Path) -> Plan:
    """The attempts that an interrupted run did not come to, in the order it would have had.

    Raises UsageError when it cannot go on as the same run: another cloud, host or schema, or AMIs that are
    gone.
    """
    try:
        experiment = _EXPERIMENT.validate_python(before["experiment"])
        prepared = [_PREPARED.validate_python(one) for one in before["prepared"]]
    except (KeyError, ValidationError) as error:
        raise UsageError(
            f"{csv_path.with_suffix('.json')} does not say how to go on", hint="run it anew"
        ) from error
    if (before.get("cloud"), before.get("region")) != (cloud.name.value, cloud.region):
        raise UsageError(
            f"{csv_path.name} ran in {before.get('cloud')} {before.get('region')}, not in "
            f"{cloud.name} {cloud.region}",
            hint=f"--cloud {before.get('cloud')} --region {before.get('region')}",
        )
    here, there = host_state(), before.get("host", {})
    if differs := [fact for fact in _SAME_HOST if here[fact] != there.get(fact)]:
        raise UsageError(
            f"{csv_path.name} ran on another host: {differs[0]} was {there.get(differs[0])}",
            hint="figures of different hosts are never pooled; run it anew",
        )
    image_ids = sorted({one.image_id for one in prepared})
    named: Any = [{"Name": "image-id", "Values": image_ids}]
    # Amazon's are deprecated 90 days after their release, and can be launched all the same.
    existing = cloud.ec2.describe_images(Filters=named, IncludeDeprecated=True)["Images"]
    if missing := set(image_ids) - {image["ImageId"] for image in existing}:
        raise UsageError(f"{', '.join(sorted(missing))} is gone, so the run cannot go on", hint="run it anew")
    where = _places_before(before, experiment.cells) or places_of(cloud, experiment.cells)
    finished = {row.attempt for row in read_rows(csv_path) if row.outcome not in _MISSING}
    return Plan(
        str(before.get("name", "bench")),
        experiment,
        dict(zip(experiment.cells, prepared, strict=True)),
        prices.find(cloud, experiment.cells),
        places=where,
        csv_path=csv_path,
        before=before,
        finished=frozenset(finished),
    )


def _places_before(before: Mapping[str, Any], cells: Sequence[Cell]) -> dict[Cell, Place]:
    """Where an interrupted run had its machines; empty when it does not say."""
    recorded = before.get("places") or []
    if len(recorded) != len(cells):
        return {}
    try:
        return dict(zip(cells, [_PLACE.validate_python(one) for one in recorded], strict=True))
    except ValidationError:
        return {}


def metadata_of(csv_path: Path) -> dict[str, Any]:
    """The JSON beside a CSV. Raises UsageError when there is none."""
    path = csv_path.with_suffix(".json")
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="--resume takes the CSV of a run") from error
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} holds no JSON object", hint="--resume takes the CSV of a run")
    return loaded


Planner = Callable[[Cloud], Plan]


def lines(cloud: Cloud, plan: Plan) -> list[str]:
    """The plan for people: cells, attempts, cost."""
    experiment, remaining = plan.experiment, plan.remaining()
    out = [f"{plan.name}: {plan.about}" if plan.about else plan.name]
    for cell in experiment.cells:
        count = sum(planned.cell == cell for planned in remaining)
        market, ami = prices.market_of(cloud, cell), plan.prepared[cell].image_id
        zone = f" {plan.places[cell].zone}" if cell in plan.places else ""
        out.append(f"  {count:4} × {cell.label}: {cell.arch} {cell.instance_type} {market} {ami}{zone}")
    flight = f", {experiment.parallel} in flight" if experiment.parallel > 1 else ""
    out.append(
        f"  {len(remaining)} attempts in blocks of {len(experiment.cells)}, seed {experiment.seed}{flight}"
    )
    for item in plan.prices.as_json():
        if item["usd_per_hour"]:
            kind = f"{item['instance_type']} {item['market']}"
            out.append(f"  {kind}: ${item['usd_per_hour']} an hour ({item['source']})")
    out.append(f"cost: {prices.estimate(cloud, experiment, plan.prices)}")
    return out


def _seed(seed: int | None) -> int:
    return secrets.randbelow(2**31) if seed is None else seed

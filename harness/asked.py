"""What the command line asks of a bench: a race, an experiment from a file, or the rest of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness import definition, planning
from harness.experiment import check_limits
from harness.planning import Plan, Planner
from harness.runner import check_name
from instant_env.arch import Arch
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError
from instant_env.launch.techniques import find_technique
from instant_env.settings import CloudName, Settings


@dataclass(frozen=True)
class Request:
    """The flags. ``experiment`` and ``resume`` are paths, empty when not given."""

    experiment: str
    resume: str
    ami: str
    techniques: tuple[str, ...]
    iterations: int
    arch: Arch
    instance_type: str
    seed: int | None
    name: str
    timeout_s: float
    parallel: int


def read(request: Request, settings: Settings) -> tuple[Settings, Planner]:
    """The settings to connect with, and what makes the plan then.

    Raises UsageError for what can be seen to be wrong before any cloud is asked.
    """
    if request.experiment and request.resume:
        raise UsageError("--experiment and --resume do not go together", hint="a run knows its experiment")
    if request.resume:
        return _resumed(Path(request.resume), settings)
    if request.experiment:
        found = definition.load(Path(request.experiment))
        changed = settings.model_copy(update={"region": found.region}) if found.region else settings
        return changed, lambda cloud: planning.of_definition(cloud, found, request.seed)
    check_name(request.name)
    check_limits(request.iterations, request.timeout_s)
    for technique in request.techniques:
        find_technique(technique)

    def race(cloud: Cloud) -> Plan:
        return planning.of_race(
            cloud,
            name=request.name,
            ami=request.ami,
            techniques=request.techniques or None,
            arch=request.arch,
            instance_type=request.instance_type or None,
            iterations=request.iterations,
            seed=request.seed,
            timeout_s=request.timeout_s,
            parallel=request.parallel,
        )

    return settings, race


def _resumed(csv_path: Path, settings: Settings) -> tuple[Settings, Planner]:
    before = planning.metadata_of(csv_path)
    try:
        where = {"cloud": CloudName(before["cloud"]), "region": str(before["region"])}
    except (KeyError, ValueError) as error:
        raise UsageError(f"{csv_path.with_suffix('.json')} is no metadata of a run") from error
    return (
        settings.model_copy(update=where),
        lambda cloud: planning.of_interrupted(cloud, before, csv_path),
    )

"""What the command line asks of a bench: a race, an experiment from a file, or the rest of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.plan import definition, planning
from harness.plan.experiment import check_limits
from harness.plan.planning import Plan, Planner
from harness.results_file import check_name
from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError
from instant_env.launch.techniques import find_technique
from instant_env.settings import CloudName, Settings


@dataclass(frozen=True)
class Request:
    """The flags; empty or None when not given. ``experiment`` and ``resume`` are paths."""

    experiment: str = ""
    resume: str = ""
    ami: str = ""
    techniques: tuple[str, ...] = ()
    iterations: int | None = None
    arch: str = ""
    instance_type: str = ""
    seed: int | None = None
    name: str = ""
    timeout_s: int | None = None
    parallel: int | None = None
    market: str = ""

    def of_a_race(self) -> list[str]:
        """The flags given that an experiment's file, or a run's own metadata, says already."""
        flags = {
            "--ami": self.ami, "--technique": self.techniques, "--iterations": self.iterations,
            "--arch": self.arch, "--instance-type": self.instance_type, "--name": self.name,
            "--timeout-s": self.timeout_s, "--parallel": self.parallel,
            "--market": self.market,
        }  # fmt: skip
        return [flag for flag, value in flags.items() if value not in (None, "", ())]


def read(request: Request, settings: Settings) -> tuple[Settings, Planner]:
    """The settings to connect with, and what makes the plan then.

    Raises UsageError for what can be seen to be wrong before any cloud is asked.
    """
    if request.experiment and request.resume:
        raise UsageError("--experiment and --resume do not go together", hint="a run knows its experiment")
    if (request.experiment or request.resume) and (flags := request.of_a_race()):
        raise UsageError(
            f"{request.experiment or request.resume} says that itself: {', '.join(flags)}",
            hint="--dry-run shows what it says" if request.experiment else "it goes on as it began",
        )
    if request.resume and request.seed is not None:
        raise UsageError("--resume and --seed do not go together", hint="a run keeps its order")
    if request.resume:
        return _resumed(Path(request.resume), settings)
    if request.experiment:
        experiment = definition.load(Path(request.experiment))
        changed = settings.model_copy(update={"region": experiment.region}) if experiment.region else settings
        return changed, lambda cloud: planning.of_definition(cloud, experiment, request.seed)
    name, arch = request.name or "bench", Arch.parse(request.arch or Arch.X86_64)
    iterations = 3 if request.iterations is None else request.iterations
    timeout_s = 600.0 if request.timeout_s is None else float(request.timeout_s)
    market = _market(request.market)
    check_name(name)
    check_limits(iterations, timeout_s)
    for technique in request.techniques:
        find_technique(technique)

    def race(cloud: Cloud) -> Plan:
        return planning.of_race(
            cloud,
            name=name,
            ami=request.ami or "latest",
            techniques=request.techniques or None,
            arch=arch,
            instance_type=request.instance_type or None,
            iterations=iterations,
            seed=request.seed,
            timeout_s=timeout_s,
            parallel=1 if request.parallel is None else request.parallel,
            market=market,
        )

    return settings, race


def _market(text: str) -> Market | None:
    if not text:
        return None
    try:
        return Market(text)
    except ValueError:
        known = ", ".join(Market)
        raise UsageError(f"--market {text}: no such market", hint=f"one of: {known}") from None


def _resumed(csv_path: Path, settings: Settings) -> tuple[Settings, Planner]:
    before = planning.metadata_of(csv_path)
    try:
        where = {"cloud": CloudName(before["cloud"]), "region": str(before["region"])}
    except (KeyError, ValueError) as error:
        raise UsageError(f"{csv_path.with_suffix('.json')} is not the metadata of a run") from error
    return (
        settings.model_copy(update=where),
        lambda cloud: planning.of_interrupted(cloud, before, csv_path),
    )

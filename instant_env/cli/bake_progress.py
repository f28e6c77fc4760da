"""Progress of bakes: a live line each on a terminal, lines with their names elsewhere, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from instant_env.bake.forecast import Forecast
from instant_env.bake.parallel import BakeOutcome
from instant_env.bake.request import Request
from instant_env.cli.verb import Reporter
from instant_env.progress import Doing
from instant_env.settings import Settings


class Screen:
    """What people see while several bakes run."""

    def __init__(self, report: Reporter, settings: Settings, requests: Sequence[Request]) -> None:
        self._report = report
        self._logs = {request.run_id: str(request.log_path(settings)) for request in requests}
        self._labels = {request.run_id: request.label for request in requests}
        self._last = {request.run_id: "waiting" for request in requests}
        self._started = time.monotonic()
        self._ended: dict[str, float] = {}
        report.show(self)

    def on_line(self, request: Request, text: str) -> None:
        """Show a line of one bake. On a terminal it replaces the line before; the name of the log stays."""
        self._last[request.run_id] = text
        if not self._report.on_terminal or self._logs[request.run_id] in text:
            self._report(
                text.labelled(request.label) if isinstance(text, Doing) else f"{request.label}: {text}"
            )

    def on_outcome(self, outcome: BakeOutcome) -> None:
        """Show how one bake ended, for good."""
        request = outcome.request
        self._ended[request.run_id] = time.monotonic()
        if outcome.result is None:
            text = f"failed: {outcome.error}" + (f" ({outcome.hint})" if outcome.hint else "")
        else:
            text = f"{outcome.result.image.id} " + (
                "was there" if outcome.result.reused else "baked and verified"
            )
        self._last[request.run_id] = text
        self._report(f"{request.label}: {text}")

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=max(map(len, self._labels.values())))
        table.add_column(no_wrap=True, min_width=6, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis")
        for run_id, label in self._labels.items():
            seconds = self._ended.get(run_id, time.monotonic()) - self._started
            table.add_row(Text(label, style="bold"), f"{seconds:.0f} s", Text(self._last[run_id]))
        return table


def summary(outcomes: Sequence[BakeOutcome]) -> Table:
    """One row per bake."""
    table = Table("recipe", "arch", "outcome", box=None)
    table.add_column("ami", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("log, or why it failed", overflow="fold")
    for outcome in outcomes:
        if outcome.result is None:
            text, ami, last = "failed", "-", Text(outcome.error)
        else:
            text = "was there" if outcome.result.reused else "baked"
            ami = outcome.result.image.id
            last = Text(str(outcome.result.log_path or "-"))
        row = [outcome.request.recipe, outcome.request.arch.value, text, ami, f"{outcome.seconds:.0f} s"]
        table.add_row(*row, last)
    return table


def plan_lines(estimate: Forecast) -> Iterator[str]:
    """What a bake would do, for people."""
    plan, base = estimate.plan, estimate.base
    yield f"plan {plan.hash}: {plan.recipe.name} for {plan.arch}"
    yield f"  base  {plan.base.base}: {base.id} of {base.created[:10]}, {base.name}, found by {base.found_by}"
    if plan.parent_ami:
        yield f"  from  {plan.parent_ami}, of its parent: what that has is not done again"
    for step in plan.steps:
        yield f"  {step.identity()[0]:6}  {step.name}"
    yield "  script  seal"
    for check in plan.checks:
        yield f"  check   {check.name}: {check.described}"
    if estimate.existing is not None:
        yield f"{estimate.existing.id} holds this plan: nothing would be made"
    if estimate.hosts:
        yield f"  downloads by this computer, at most from: {', '.join(estimate.hosts)}"
    else:
        yield "  downloads by the builder"
    for resource in estimate.resources:
        until = "stays" if resource.stays else "goes"
        yield f"  {until:5}  {resource.kind:14}  {resource.name}: {resource.what}"
    yield f"cost: {estimate.cost}"

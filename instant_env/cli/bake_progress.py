"""How bakes look: a live line each on a terminal, lines with their names elsewhere, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from instant_env.bake.forecast import Forecast
from instant_env.bake.request import Request
from instant_env.bake.several import Ended
from instant_env.cli.verb import Reporter
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

    def hear(self, request: Request, text: str) -> None:
        """A line of one bake. On a terminal it takes the place of the one before; logs are named for good."""
        self._last[request.run_id] = text
        if not self._report.on_terminal or self._logs[request.run_id] in text:
            self._report(f"{request.label}: {text}")

    def ended(self, ended: Ended) -> None:
        """How one ended stays on the screen."""
        request = ended.request
        self._ended[request.run_id] = time.monotonic()
        if ended.result is None:
            text = f"failed: {ended.error}" + (f" ({ended.hint})" if ended.hint else "")
        else:
            text = f"{ended.result.image.id} " + (
                "was there" if ended.result.reused else "baked and verified"
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


def summary(ended: Sequence[Ended]) -> Table:
    """One row per bake."""
    table = Table("recipe", "arch", "outcome", box=None)
    table.add_column("ami", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("log, or why it failed", overflow="fold")
    for one in ended:
        if one.result is None:
            outcome, ami, last = "failed", "-", Text(one.error)
        else:
            outcome = "was there" if one.result.reused else "baked"
            ami = one.result.image.id
            last = Text(str(one.result.log_path or "-"))
        row = [one.request.recipe, one.request.arch.value, outcome, ami, f"{one.seconds:.0f} s"]
        table.add_row(*row, last)
    return table


def plan_lines(told: Forecast) -> Iterator[str]:
    """What a bake would do, for people."""
    plan, base = told.plan, told.base
    yield f"plan {plan.hash}: {plan.recipe.name} for {plan.arch}"
    yield f"  base  {plan.base.base}: {base.id} of {base.created[:10]}, {base.name}, found by {base.found_by}"
    for step in plan.steps:
        yield f"  {step.identity()[0]:6}  {step.name}"
    yield "  script  seal"
    if told.existing is not None:
        yield f"{told.existing.id} holds this plan: nothing would be made"
    for resource in told.resources:
        until = "stays" if resource.stays else "goes"
        yield f"  {until:5}  {resource.kind:14}  {resource.name}: {resource.what}"
    yield f"cost: {told.cost}"

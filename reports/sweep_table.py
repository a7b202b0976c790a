"""A sweep on the terminal: the cells that it is to have, and what they came to. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..profiles.sweepfolder import SweepPlan
from .table import size

# Whether a cell trained what ddp did, in a word.
PARITY = {"held": "yes", "reference": "ddp", "failed": "NO", "not checked": "-"}


def plan_table(plan: SweepPlan) -> RenderableType:
    """Every cell with its batch, refused ones with the reason, and the order of the runs."""
    table = _table("ranks", "micro-batch", "accumulated", "global batch", "runs")
    lines = []
    for cell in plan.cells:
        batches = (cell.micro_batch, cell.grad_accumulation, cell.global_batch)
        shown = ("-",) * 3 if cell.refused is not None else batches
        table.add_row(Text(cell.name), *map(str, (cell.world_size, *shown)), str(plan.repeats * (cell.refused is None)))
    lines += [f"{cell.name} is refused: {cell.refused}" for cell in plan.cells if cell.refused is not None]
    lines += [
        f"{cell.name}: a short run of ddp beforehand, as the matrix has none to hold losses against"
        for cell in plan.references
        if cell.refused is None
    ]
    if loose := [cell.name for cell in plan.cells if not cell.gated]:
        lines.append(f"losses are not held against ddp's: {', '.join(loose)}")
    lines.append(f"{len(plan.order)} runs, scaling {plan.scaling}, in this order:")
    lines += [f"  {number}. {name}, repeat {repeat}" for number, (name, repeat) in enumerate(plan.order, start=1)]
    return Group(table, *map(Text, lines))


def sweep_table(summary: Mapping[str, Any]) -> RenderableType:
    """One row a cell, from a sweep-summary.json; below, what is cheapest, and why some have no figures."""
    table = _table("runs", "step ms", "samples/s", "95 %", "memory", "as ddp")
    lines = [*summary["notes"], *(summary[name]["why"] for name in ("cheapest", "fastest") if summary[name])]
    for cell in summary["cells"]:
        table.add_row(Text(cell["name"]), *_figures(cell))
        if cell["state"] != "measured":
            lines.append(f"{cell['name']}: {cell['state'].replace('_', ' ')}: {cell['why']}")
            continue
        if cell["why"] is not None:
            lines.append(f"{cell['name']}: {cell['why']}")
        if cell["parity"]["state"] == "not checked":
            lines.append(f"{cell['name']}: its losses were not held against ddp's: {cell['parity']['why']}")
    return Group(table, *map(Text, lines))


def _table(*numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("cell", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _figures(cell: Mapping[str, Any]) -> list[str]:
    step, rate, runs = cell["step_seconds"], cell["samples_per_second"], str(cell["measured_runs"])
    if step is None or rate is None:
        return [runs, "-", "-", "-", "-", PARITY[cell["parity"]["state"]]]
    interval = rate["ci95"]
    spread = "-" if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]"
    numbers = (f"{step['mean'] * 1e3:.1f}", f"{rate['mean']:.4g}", spread, size(cell["peak_bytes"]))
    return [runs, *numbers, PARITY[cell["parity"]["state"]]]

"""A sweep on the terminal before it runs: the cells that it is to have. Computes nothing."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..profiles.sweepfolder import SweepPlan


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


def _table(*numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("cell", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table

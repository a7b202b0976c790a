"""A strategy's law as a table: model state per rank, and what travels in an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .table import size

STATE = ("parameters", "gradients", "optimizer")


def law_table(law: Mapping[str, Any]) -> RenderableType:
    """Bytes of model state and payload of an evaluated law, as `run.json` carries it."""
    return Group(_state(law), _collectives(law), *_rest(law))


def _state(law: Mapping[str, Any]) -> Table:
    worst = max(law["ranks"], key=_total)
    least = min(law["ranks"], key=_total)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model state per rank")
    for name in ("most", "least"):
        table.add_column(name, justify="right")
    table.add_column("")
    for kind in STATE:
        table.add_row(kind, size(worst[kind]), size(least[kind]), law[kind])
    table.add_section()
    table.add_row("all", size(_total(worst)), size(_total(least)), "without activations, buckets and temporaries")
    return table


def _collectives(law: Mapping[str, Any]) -> RenderableType:
    if not law["collectives"]:
        return Text("one rank: nothing travels")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("payload per optimizer step")
    table.add_column("", justify="right")
    table.add_column("")
    for collective in law["collectives"]:
        what = f"{collective['purpose']}, in {collective['phase']}" + (
            " (at most)" if collective["upper_bound"] else ""
        )
        table.add_row(collective["kind"], size(collective["payload_bytes_per_step"]), what)
    return table


def _rest(law: Mapping[str, Any]) -> list[Text]:
    lines = [f"gradients are reduced {law['reductions_per_step']} x a step"] if law["collectives"] else []
    if law["accumulating_gradient_bytes"]:
        held = size(law["accumulating_gradient_bytes"])
        lines.append(f"between micro-batches a rank holds {held} of gradients, not reduced yet")
    return [Text(line) for line in (*lines, f"source: {law['source']}")]


def _total(rank: Mapping[str, int]) -> int:
    return sum(rank[kind] for kind in STATE)

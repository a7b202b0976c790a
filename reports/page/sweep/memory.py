"""Memory of the worst rank, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..charts import label
from ..section import Block, Chart, Column, Number, Paragraph, Section, Table
from .cells import reason

PLACE = 50
MIB = 2**20


def section(summary: Mapping[str, Any]) -> Section | None:
    cells = [each for each in summary["cells"] if each["state"] == "measured"]
    if not cells:
        return None
    known = [each for each in cells if each["peak_bytes"] is not None]
    blocks: list[Block] = []
    if known:
        columns = [Column("cell", "cell", numeric=False), Column("peak, worst rank", "peak_bytes")]
        rows = [[each["name"], Number(units.size(each["peak_bytes"]), each["peak_bytes"])] for each in known]
        blocks += [_bars(known), Table("memory", "Memory at the peak of the worst rank", columns, rows)]
    lacking: dict[str, list[str]] = {}
    for each in cells:
        if each["peak_bytes"] is None:
            lacking.setdefault(reason(each, "peak_bytes"), []).append(each["name"])
    blocks += [Paragraph(f"Not known of {', '.join(names)}: {why}.", "note") for why, names in lacking.items()]
    return Section("memory", "Memory", blocks)


def _bars(cells: list[Mapping[str, Any]]) -> Chart:
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [label(each["name"]) for each in cells],
            "x": [each["peak_bytes"] / MIB for each in cells],
            "meta": {"role": "first", "plain": True},
            "hovertemplate": "%{y}: %{x:.4~g} MiB<extra></extra>",
        }
    ]
    layout = {"xaxis": {"title": {"text": "MiB at the peak"}}, "yaxis": {"autorange": "reversed", "type": "category"}}
    return Chart("memory", "Memory of the worst rank", "MiB at the peak, by cell.", data, layout, 120 + 26 * len(cells))

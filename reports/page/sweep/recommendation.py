"""The box on top: which cell to take, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ...spread import spread
from ..section import Block, Figures, Paragraph, Section
from .cells import cost_of, reason

PLACE = 0


def section(summary: Mapping[str, Any]) -> Section:
    taken, runs = summary["recommended"], summary["runs"]
    blocks: list[Block] = []
    if taken is None or taken["cell"] is None:
        told = taken["why"] if taken is not None else reason(summary, "recommended")
        blocks.append(Paragraph(f"No cell is recommended: {told}."))
        return _box("No recommendation", [*blocks, *_rest(summary)], "warning")
    cell = next(each for each in summary["cells"] if each["name"] == taken["cell"])
    blocks += [Paragraph(_sentence(taken["why"])), Figures(_figures(cell))]
    for name in ("cheapest", "fastest"):
        blocks.append(Paragraph(f"{name.capitalize()}: {_sentence(summary[name]['why'])}"))
    tone = "good" if runs["measured"] == runs["planned"] and not runs["refused_cells"] else "warning"
    return _box(f"Take {taken['cell']}", [*blocks, *_rest(summary)], tone)


def _box(title: str, blocks: list[Block], tone: Any) -> Section:
    return Section("recommendation", title, blocks, box=True, tone=tone, short="Recommendation")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _figures(cell: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    measure, cost = cost_of(cell)
    speed = cell["samples_per_second"]
    between = spread(cell, "samples_per_second", units.interval)
    runs = f"over {cell['measured_runs']} run{'s' if cell['measured_runs'] != 1 else ''}"
    return [
        ("Throughput", f"{units.figures(speed['mean'])} samples/s", f"{between} {runs}".strip()),
        (measure, cost["text"], f"{cost['interval']} {runs}".strip()),
        ("Ranks", units.count(cell["world_size"]), f"of {cell['device_name']}"),
        ("Peak memory, worst rank", units.size(cell["peak_bytes"]), reason(cell, "peak_bytes", cell["peak_bytes"])),
    ]


def _rest(summary: Mapping[str, Any]) -> list[Block]:
    """What was not measured, and what must be known of what was."""
    runs = summary["runs"]
    lacks = [
        f"{runs[name]} {name.replace('_', ' ')}"
        for name in ("failed", "parity_failed", "unreadable", "running", "missing")
        if runs.get(name)
    ]
    told = f"{runs['measured']} of {runs['planned']} runs measured" + (f"; {', '.join(lacks)}" if lacks else "")
    if runs["refused_cells"]:
        told += f"; cells that cannot run here: {runs['refused_cells']}"
    tone = "warning" if lacks else "note"
    return [Paragraph(f"{told}.", tone), *(Paragraph(note, "note") for note in summary["notes"])]

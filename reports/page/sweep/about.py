"""How the sweep was made, what else lies in its folder, what is null and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...units import counted
from ..section import Block, Column, More, Paragraph, Section, Table, Verbatim

PLACE = 90
# More reasons than these are folded away.
OPEN = 4


def section(summary: Mapping[str, Any]) -> Section:
    devices = ", ".join(f"{each['runs']} on {each['device_name']}" for each in summary["devices"]) or "none"
    told = (
        f"Sweep {summary['sweep_id']} of {summary['created_utc']}, {summary['scaling']} scaling, "
        f"{counted(summary['repeats'], 'repeat')} in random order (seed {summary['seed']}), runs: {devices}."
    )
    if summary["best_batch"]:
        told += " The largest micro-batch that fits was found per strategy; different batches are not held against DDP."
    how = (
        "Every cell has the same seed, data order and, under strong scaling, global batch. Means are over runs, "
        "intervals take the run as the unit (95 %, t on logarithms); warm-up steps enter nothing. Each run has its own "
        "report."
    )
    blocks: list[Block] = [Verbatim(" ".join(summary["command"])), Paragraph(told), Paragraph(how, "note")]
    if summary["other_runs"]:
        columns = [
            Column("folder", "run", numeric=False),
            Column("state", "state", numeric=False),
            Column("why", "why", numeric=False),
        ]
        rows = [[each["run"], each["state"], each["why"] or ""] for each in summary["other_runs"]]
        blocks.append(Table("other-runs", "Run folders here that no cell counts", columns, rows))
    reasons = {**summary["reasons"]}
    for cell in summary["cells"]:
        if cell["state"] == "measured":
            reasons |= {f"cells.{cell['name']}.{name}": why for name, why in cell["reasons"].items()}
    for each in summary["series"] or []:
        reasons |= {f"series.{each['name']}.{name}": why for name, why in each["reasons"].items()}
    if reasons:
        by_why: dict[str, list[str]] = {}
        for path, why in reasons.items():
            by_why.setdefault(why, []).append(path)
        columns = [
            Column("why", "why", numeric=False),
            Column("null in sweep-summary.json", "fields", numeric=False),
        ]
        rows = [[why, ", ".join(paths)] for why, paths in by_why.items()]
        table = Table("unknown", "What is null, and why", columns, rows)
        blocks.append(table if len(rows) <= OPEN else More("What is null, and why", [table]))
    return Section("about", "How it was made, and what is not known", blocks)

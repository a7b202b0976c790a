"""What is null, and why: every reason of the summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..section import Block, Column, More, Paragraph, Section, Table

PLACE = 140
OPEN = 12


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    reasons = summary["reasons"]
    title = "What is not known, and why"
    if not reasons:
        return Section("unknown", title, [Paragraph("Nothing is missing.")])
    by_reason: dict[str, list[str]] = {}
    for path, why in reasons.items():
        by_reason.setdefault(why, []).append(path)
    columns = [
        Column("why", "why", numeric=False),
        Column("fields of summary.json that are null", "fields", numeric=False),
    ]
    rows = [[why, ", ".join(paths)] for why, paths in sorted(by_reason.items(), key=lambda item: -len(item[1]))]
    places, because = units.counted(len(reasons), "field"), units.counted(len(by_reason), "reason")
    told = f"Null or empty in summary.json: {places}, for {because}. None of them is 0 or a guess."
    table = Table("unknown", "Every null and its reason", columns, rows)
    shown: list[Block] = [table] if len(rows) <= OPEN else [More("All of them", [table])]
    return Section("unknown", title, [Paragraph(told), *shown])

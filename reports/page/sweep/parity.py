"""Whether the cells trained the same thing: losses against DDP's at the same world size and batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..section import Column, Paragraph, Section, Table

PLACE = 60


def section(summary: Mapping[str, Any]) -> Section:
    columns = [
        Column("cell", "cell", numeric=False),
        Column("held against ddp", "parity", numeric=False),
        Column("why", "why", numeric=False),
    ]
    rows = [
        [each["name"], each["parity"]["state"].replace("_", " "), each["parity"]["why"] or ""]
        for each in summary["cells"]
    ]
    table = Table(
        "parity", "Losses step by step against those of DDP at the same world size, batch and precision", columns, rows
    )
    told = Paragraph("A cell that left the tolerance has no speed, cost or memory here: it trained something else.")
    return Section("parity", "Do they train the same thing?", [told, table])

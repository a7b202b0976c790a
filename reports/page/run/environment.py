"""Where it ran: what run.json keeps of the machine, its software and the few variables that change a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..section import Column, Section, Table
from .configuration import shown

PLACE = 120
# It tells ranks of one host from those of others, and nothing to a reader.
HIDDEN = "boot_id"


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section | None:
    facts = pictures["facts"]
    rows = [row for row in _rows(facts["environment"]) if row[0] != HIDDEN]
    rows += [[name, shown(facts[name])] for name in ("threads_per_rank",) if facts[name] is not None]
    rows += [[f"data.{name}", value] for name, value in _rows(facts["data"] or {})]
    if not rows:
        return None
    columns = [Column("what", "what", numeric=False), Column("value", "value", numeric=False)]
    return Section(
        "environment", "Environment", [Table("environment", "As captured when the run began", columns, rows)]
    )


def _rows(values: Mapping[str, Any], path: str = "") -> list[list[str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _rows(value, f"{path}{name}.")
        else:
            found.append([f"{path}{name}", shown(value)])
    return found

"""What was asked for, and what it was resolved to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from ..section import Block, Column, More, Paragraph, Section, Table, Verbatim

PLACE = 110


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    facts = pictures["facts"]
    config, given = facts["config"], facts["given"]
    blocks: list[Block] = []
    if facts["command"]:
        blocks.append(Verbatim(" ".join(facts["command"])))
    if summary["source"] == "imported":
        blocks.append(Paragraph("How the job was configured, a trace does not tell.", "note"))
        return Section("configuration", "Configuration", blocks)
    if given is None:
        blocks.append(_table("configuration", "Every option as it was resolved", config))
    else:
        asked = {name: config[name] for name in config if name in given}
        rest = {name: config[name] for name in config if name not in given}
        if asked:
            blocks.append(_table("configuration", "What was asked for", asked))
        else:
            blocks.append(Paragraph("No option was given."))
        blocks.append(
            More("Every other option, as it was resolved", [_table("configuration-rest", "Not asked for", rest)])
        )
    precision = {f"dtype of {name}": value for name, value in summary["precision"].items() if name != "name"}
    blocks.append(_table("precision", f"Precision {summary['precision']['name']}", precision))
    return Section("configuration", "Configuration", blocks)


def _table(name: str, caption: str, values: Mapping[str, Any]) -> Table:
    columns = [Column("option", "option", numeric=False), Column("value", "value", numeric=False)]
    return Table(name, caption, columns, [[option, shown(value)] for option, value in values.items()])


def shown(value: Any) -> str:
    """As JSON has it, texts without quotes."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()

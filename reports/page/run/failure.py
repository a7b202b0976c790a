"""How a run that did not finish ended: who, why, what followed, and of memory who held what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..section import Block, Column, More, Number, Paragraph, Section, Table, Verbatim

PLACE = 5
CONSEQUENCES_SHOWN = 16


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section | None:
    facts = pictures["facts"]
    if pictures["verdict"]["finished"] or not (facts["culprit"] or facts["cause"] or facts["consequences"]):
        return None
    at = facts["culprit"] or {}
    columns = [Column("what", "what", numeric=False), Column("told", "told", numeric=False)]
    rows = [[name, _text(at.get(name))] for name in ("rank", "host", "phase", "step")]
    rows += [["cause", _text(facts["cause"])], ["what to do", _text(facts["hint"])]]
    blocks: list[Block] = [Table("failure", "What ended the run, as status.json has it", columns, rows)]
    if (memory := facts["out_of_memory"]) is not None:
        blocks += _memory(memory)
    if facts["consequences"]:
        blocks.append(_consequences(facts["consequences"]))
    if facts["traceback"]:
        blocks.append(More("The rank's own traceback", [Verbatim(facts["traceback"])]))
    return Section("failure", "What ended it", blocks, tone="bad")


def _text(value: Any) -> str:
    return units.UNKNOWN if value is None else str(value)


def _memory(memory: Mapping[str, Any]) -> list[Block]:
    held = memory.get("held_bytes") or {}
    columns = [Column("held by", "held_by", numeric=False), Column("bytes", "bytes")]
    rows = [[str(kind), Number(units.size(count), count)] for kind, count in held.items()]
    blocks: list[Block] = []
    if rows:
        blocks.append(Table("out-of-memory", "Who held what when memory ran out", columns, rows))
    limit, largest = memory.get("limit"), memory.get("largest_micro_batch")
    if limit:
        used, most = units.size(limit["used_bytes"]), units.size(limit["bytes"])
        asked = memory.get("asked_bytes")
        more = "" if asked is None else f"; {units.size(asked)} more were asked for"
        blocks.append(Paragraph(f"The limit that was hit: {limit['name']}, {used} of {most} in use{more}."))
    if largest is not None:
        blocks.append(Paragraph(f"Largest micro-batch that fits, an estimate: {largest}."))
    elif memory.get("largest_micro_batch_reason"):
        blocks.append(Paragraph(f"No micro-batch is named: {memory['largest_micro_batch_reason']}", "note"))
    return blocks


def _consequences(others: list[Mapping[str, Any]]) -> Table:
    columns = [Column("rank", "rank"), Column("host", "host", numeric=False), Column("cause", "cause", numeric=False)]
    rows = [
        [
            Number(_text(each.get("rank")), each.get("rank")),
            _text(each.get("host")),
            _text(each.get("cause")),
        ]
        for each in others[:CONSEQUENCES_SHOWN]
    ]
    more = f"; {len(others) - len(rows)} more in status.json" if len(others) > len(rows) else ""
    return Table("consequences", f"What followed from it on other ranks{more}", columns, rows)

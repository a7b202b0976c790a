"""What the ranks sent each other, what of it held them up, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..section import Block, Column, Figures, Number, Paragraph, Section, Table
from ..timeline import timeline
from ..words import why

PLACE = 50
MEANING = {
    "waiting": "blocked while a later rank had not yet begun the collective",
    "transfer": "blocked while it was on the wire",
    "queued": "blocked while it stood behind other collectives",
}


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    comm = summary["comm"]
    if summary["world_size"] == 1:
        alone = [Paragraph("One rank: nothing is sent.")]
        return Section("communication", "Communication", alone)
    blocks: list[Block] = [Figures(_figures(summary)), *_split(summary, pictures["exposed"]), *_late(summary)]
    if comm["payload_bytes_per_step"]:
        blocks.append(_payload(pictures["sent"]))
    if (drawn := pictures["timeline"]) is not None:
        blocks.append(timeline(drawn))
    if comm["message_bytes"]:
        blocks.append(_messages(comm["message_bytes"]))
    return Section("communication", "Communication", blocks)


def _figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    comm = summary["comm"]
    of = f", in {comm['exact_steps']} steps" if comm.get("exact_steps") else ""
    known = {
        "calls_per_step": ("Collectives a step", units.figures, ""),
        "wire_bytes_per_step": ("On the wire, a rank and step", units.size, "payload times the backend's own factor"),
        "exposed_seconds": ("Exposed, a step", units.milliseconds, "the rank was blocked and computed nothing"),
        "overlapped_seconds": ("Behind computing, a step", units.milliseconds, "on the wire while the rank computed"),
        "alone_seconds": ("On this machine at rest", units.milliseconds, "the same collectives one after the other"),
        "bus_bandwidth": ("Bus bandwidth", _rate, f"bytes on the wire over the time that it was busy{of}"),
    }
    return [
        (title, show(comm[name]), note if comm[name] is not None else why(summary, f"comm.{name}"))
        for name, (title, show, note) in known.items()
    ]


def _rate(value: float | None) -> str:
    return units.UNKNOWN if value is None else f"{units.size(value)}/s"


def _split(summary: Mapping[str, Any], exposed: Mapping[str, Any] | None) -> list[Block]:
    whole = summary["comm"]["exposed_seconds"]
    if whole is None:
        return []
    if exposed is None:
        return [Paragraph(f"Why it was exposed is not known: {why(summary, 'comm.waiting_seconds')}.", "note")]
    columns = [
        Column("exposed communication", "part", numeric=False),
        Column("a step", "seconds"),
        Column("share of it", "share"),
        Column("meaning", "meaning", numeric=False),
    ]
    rows = []
    for name, part in exposed.items():
        shown = Number(units.percent(part["share"]), part["share"], part["share"])
        rows.append([name, Number(units.milliseconds(part["seconds"]), part["seconds"]), shown, MEANING[name]])
    rows.append(["exposed", Number(units.milliseconds(whole), whole), Number("100.0%", 1.0), ""])
    caption = "Why communication held the ranks up: means over ranks and measured steps"
    return [Table("exposed", caption, columns, rows, total=frozenset({len(rows) - 1}))]


def _late(summary: Mapping[str, Any]) -> list[Block]:
    late = summary["comm"]["straggler"]
    if late is None:
        return [Paragraph(f"Straggler: {why(summary, 'comm.straggler')}.", "note")]
    excess = units.milliseconds(late["excess_seconds"])
    told = (
        f"Rank {late['rank']} is late, from its {late['cause']} on: {excess} a step more of its own than the others; "
        f"it was last in {late['share']:.0%} of the steps."
    )
    return [Paragraph(told, "warning")]


def _payload(sent: list[Mapping[str, Any]]) -> Table:
    columns = [
        Column("collective", "collective", numeric=False),
        Column("payload a step", "payload_bytes"),
        Column("by the strategy's law", "law_bytes"),
    ]
    rows = [
        [
            row["kind"],
            Number(units.size(row["bytes"]), row["bytes"]),
            Number(units.size(row["law_bytes"]), row["law_bytes"]),
        ]
        for row in sent
    ]
    return Table("payload", "What was sent: full tensors in the dtype as sent, and what the law says", columns, rows)


def _messages(rows: list[Mapping[str, Any]]) -> Table:
    columns = [Column("messages of up to", "up_to_bytes"), Column("a step", "calls_per_step")]
    cells = [
        [
            Number(units.size(row["up_to_bytes"]), row["up_to_bytes"]),
            Number(units.figures(row["calls_per_step"]), row["calls_per_step"]),
        ]
        for row in rows
    ]
    return Table("messages", "Collectives by size", columns, cells)

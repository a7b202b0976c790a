"""What the profiler's traces say: where devices' time went, why they were idle, what took most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ... import units
from ...trace import lost_of
from ..charts import stacked_bars
from ..section import Block, Chart, Column, Name, Number, Paragraph, Section, Table
from ..words import why

PLACE = 80
RANKS_SHOWN = 8
OPERATORS_SHOWN = 15
SYNCS_SHOWN = 10
PARTS = {
    "compute_seconds": ("computing", "forward"),
    "exposed_communication_seconds": ("communication, exposed", "comm_exposed"),
    "exposed_copies_seconds": ("copies, exposed", "h2d"),
    "idle_seconds": ("idle", "unattributed"),
}
IDLE = {
    "not_launched_seconds": "idle: not launched",
    "loading_seconds": "of that: loading",
    "after_sync_seconds": "of that: after a wait",
    "launching_seconds": "idle: launching",
    "on_device_seconds": "idle: launched",
    "unknown_seconds": "idle: launch unseen",
}
WHY_IDLE = (
    "Idle: what came next had not been launched by the host yet (of that: while the host loaded data, and after it had "
    "waited for the device), was being launched, had been launched and waited for other work on the device, or its "
    "launch is not in the trace"
)


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    trace = summary["trace"]
    title = "What the profiler saw"
    if trace is None:
        lack: list[Block] = [Paragraph(f"No trace: {why(summary, 'trace')}.", "note")]
        return Section("traces", title, lack + _syncs(summary["host_syncs"], summary["device"]))
    usable = [row for row in trace["per_rank"] if row["unusable"] is None]
    blocks: list[Block] = []
    for row in trace["per_rank"]:
        if row["unusable"] is not None:
            blocks.append(Paragraph(f"Rank {row['rank']}: {row['unusable']}", "warning"))
        elif lost := lost_of(row):
            blocks.append(Paragraph(f"Rank {row['rank']}: {'; '.join(lost)}.", "warning"))
    shown = [(row, device) for row in usable for device in row["devices"]][:RANKS_SHOWN]
    if shown:
        blocks += [_devices(shown, len(usable)), _idle(shown)]
    for row in usable[:1]:
        blocks += _top(row)
    blocks += _syncs(summary["host_syncs"], summary["device"])
    if summary["host_syncs"] is None and usable and usable[0]["host_syncs"]:
        blocks.append(_waits(usable[0]))
    if (merged := trace["merged"]) is not None:
        clocks = "" if merged["clocks"] == "compared" else f" (clocks {merged['clocks']})"
        blocks.append(Paragraph(f"All ranks in one file, for Perfetto: {merged['file']}{clocks}.", "note"))
    return Section("traces", title, blocks)


def _waits(row: Mapping[str, Any]) -> Table:
    """Where the host waited for its device, as the trace has it."""
    columns = [
        Column("call", "call", numeric=False),
        Column("operator", "operator", numeric=False),
        Column("line", "source", numeric=False),
        Column("count", "count"),
        Column("blocked", "blocked_seconds"),
    ]
    cells = [
        [
            each["call"],
            each["operator"] or "-",
            each["source"] or "-",
            Number(units.figures(each["count"]), each["count"]),
            _time(each["blocked_seconds"]),
        ]
        for each in row["host_syncs"][:SYNCS_SHOWN]
    ]
    on_device = any(device["device"] is not None for device in row["devices"])
    verb = "waited for its device" if on_device else "would wait for a GPU"
    return Table("trace-syncs", f"Where the host of rank {row['rank']} {verb}", columns, cells)


def _place(row: Mapping[str, Any], device: Mapping[str, Any]) -> str:
    where = "host threads" if device["device"] is None else f"device {device['device']}"
    return f"rank {row['rank']}, {where}{', what is left' if row['cut'] else ''}"


def _devices(shown: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], of: int) -> Chart:
    series = {role: [device[name] * 1e3 for _, device in shown] for name, (_, role) in PARTS.items()}
    steps = len(shown[0][0]["steps"])
    what = units.counted(steps, "profiled step") if steps else "the whole trace"
    caption = f"Milliseconds of {what}: computing, communication and copies that computing did not hide, idle."
    if of > len(shown):
        caption += f" {len(shown)} of {of:,} ranks."
    places, names = [_place(*each) for each in shown], {role: words for words, role in PARTS.values()}
    title = "Where the devices' time went"
    return stacked_bars("devices", title, caption, places, series, axis="milliseconds", names=names)


def _idle(shown: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Table:
    columns = [
        Column("place", "place", numeric=False),
        *(Column(words, name) for name, (words, _) in PARTS.items()),
        Column("span", "span_seconds"),
    ]
    reasons = any(device["idle"] for _, device in shown)
    if reasons:
        columns += [Column(words, f"idle_{name}") for name, words in IDLE.items()]
    rows = []
    for row, device in shown:
        cells = [_time(device[name]) for name in (*PARTS, "span_seconds")]
        if reasons:
            cells += [_time((device["idle"] or {}).get(name)) for name in IDLE]
        rows.append([_place(row, device), *cells])
    caption = "Devices over the profiled steps" + (f". {WHY_IDLE}" if reasons else "")
    return Table("devices", caption, columns, rows)


def _time(seconds: float | None) -> Number:
    return Number(units.milliseconds(seconds), seconds)


def _top(row: Mapping[str, Any]) -> list[Block]:
    kind = "kernels" if row["kernels"] else "operators"
    rows = row[kind][:OPERATORS_SHOWN]
    columns = [
        Column(kind.removesuffix("s"), "name", numeric=False),
        Column("time", "seconds"),
        Column("share", "share"),
        Column("calls", "calls"),
    ]
    cells = [
        [
            Name(each["name"]),
            _time(each["seconds"]),
            Number(units.percent(each["share"]), each["share"], each["share"]),
            Number(units.count(each["calls"]), each["calls"]),
        ]
        for each in rows
    ]
    caption = f"What took most on rank {row['rank']}: {kind} by their own time over the profiled steps"
    return [Table("operators", caption, columns, cells)] if rows else []


def _syncs(rows: Sequence[Mapping[str, Any]] | None, device: str) -> list[Block]:
    found = [row for row in rows or [] if row.get("source")][:SYNCS_SHOWN]
    if not found:
        return []
    verb = "The host waits for its GPU" if device == "cuda" else "On a GPU the host would wait"
    columns = [
        Column("operator", "operator", numeric=False),
        Column("line", "source", numeric=False),
        Column("calls a step", "calls_per_step"),
    ]
    cells = [
        [row["operator"], row["source"], Number(units.figures(row["calls_per_step"]), row["calls_per_step"])]
        for row in found
    ]
    return [Table("host-syncs", f"{verb} at these lines", columns, cells)]

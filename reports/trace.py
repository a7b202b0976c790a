"""What traces say, as tables on a terminal. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import units

PARTS = (
    ("compute_seconds", "computing"),
    ("exposed_communication_seconds", "communication, exposed"),
    ("exposed_copies_seconds", "copies, exposed"),
    ("idle_seconds", "idle"),
)
# Rows below idle, each under what it is a part of.
IDLE = (
    ("not_launched_seconds", "  not launched yet by the host"),
    ("loading_seconds", "    of it, while the host loaded data"),
    ("after_sync_seconds", "    of it, after the host had waited for the device"),
    ("launching_seconds", "  being launched"),
    ("on_device_seconds", "  launched, waiting on the device"),
    ("unknown_seconds", "  launch not in the trace"),
)
SHOWN = 5
RANKS_SHOWN = 4


def trace_table(summary: Mapping[str, Any]) -> RenderableType:
    """Where the time of each rank's devices went, why they were idle, what took most, where the host waited."""
    trace = summary["trace"]
    if trace is None:
        return Text(f"traces: {summary['reasons']['trace']}")
    parts: list[RenderableType] = [Text()]
    for row in trace["per_rank"][:RANKS_SHOWN]:
        if row["unusable"] is not None:
            parts.append(Text(f"rank {row['rank']}: {row['unusable']}", style="bold red"))
            continue
        parts += [_devices(row, device) for device in row["devices"]]
        parts += [Text(f"rank {row['rank']}: {line}") for line in lost_of(row)]
    if len(trace["per_rank"]) > RANKS_SHOWN:
        parts.append(Text(f"… and {len(trace['per_rank']) - RANKS_SHOWN} ranks more: see summary.json"))
    first = next((row for row in trace["per_rank"] if row["unusable"] is None), None)
    if first is not None:
        kind = "kernels" if first["kernels"] else "operators"
        if (merged := trace["merged"]) is not None:
            clocks = "" if merged["clocks"] == "compared" else f" (clocks {merged['clocks']})"
            parts.append(Text(f"all ranks in one, for https://ui.perfetto.dev: {merged['file']}{clocks}"))
        parts += [_top(f"{kind} of rank {first['rank']}", first[kind]), *_syncs(first)]
    return Group(*parts)


def _devices(row: Mapping[str, Any], device: Mapping[str, Any]) -> Table:
    place = "host threads" if device["device"] is None else f"device {device['device']}"
    steps = units.counted(len(row["steps"]), "profiled step") if row["steps"] else "whole trace"
    if row["cut"]:
        steps = f"what is left of {steps}" if row["steps"] else "what is left of the trace"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"rank {row['rank']}, {place}, {steps}")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    span = device["span_seconds"] or 1.0
    for name, words in PARTS:
        table.add_row(words, f"{device[name] * 1e3:.1f}", f"{device[name] / span:.1%}")
    if device["idle"] is not None:
        for name, words in IDLE:
            if seconds := device["idle"][name]:
                table.add_row(words, f"{seconds * 1e3:.1f}", f"{seconds / span:.1%}")
    table.add_section()
    table.add_row("span", f"{device['span_seconds'] * 1e3:.1f}", "100.0%")
    overlapped = device["overlapped_communication_seconds"]
    table.add_row("communication behind computing", f"{overlapped * 1e3:.1f}", f"{overlapped / span:.1%}", style="dim")
    return table


def lost_of(row: Mapping[str, Any]) -> list[str]:
    """What of a rank's trace could not be used, and why it shows no device if it does not."""
    lines = [f"the trace is damaged: {text}" for text in row["damage"]]
    lines += [f"{units.counted(count, 'event')} could not be used: {why}" for why, count in row["dropped"].items()]
    return [*lines, *([row["why_no_device"]] if row["why_no_device"] else [])]


def _top(title: str, rows: list[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title, max_width=46, no_wrap=True, overflow="ellipsis")
    for name in ("calls", "ms", "share"):
        table.add_column(name, justify="right")
    for row in rows[:SHOWN]:
        table.add_row(Text(row["name"]), str(row["calls"]), f"{row['seconds'] * 1e3:.1f}", f"{row['share']:.1%}")
    return table


def _syncs(row: Mapping[str, Any]) -> list[Text]:
    """The waits of the host for its device, one a line."""
    lines = []
    for sync in row["host_syncs"][:SHOWN]:
        place = f" in {sync['operator']}" if sync["operator"] else ""
        source = f", {sync['source']}" if sync["source"] else ""
        if sync["blocked_seconds"] is None:
            lines.append(f"{sync['count']} x {sync['call']}{place}{source}: on a GPU the host would wait here")
        else:
            took = units.milliseconds(sync["blocked_seconds"])
            lines.append(f"the host waited {took} in {sync['count']} x {sync['call']}{place}{source}")
    return [Text(line) for line in lines]

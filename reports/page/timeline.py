"""The picture of the collectives of one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import units
from .charts import label
from .section import Chart

BLOCKED = "blocked"
HOVER = "%{y}: %{text}<br>from %{base:.4~g} ms, %{x:.4~g} ms<extra></extra>"


def timeline(drawn: Mapping[str, Any]) -> Chart:
    """Two lanes for each rank: its collectives from being handed in to their end, and when it was blocked by one."""
    bars: dict[str, dict[str, list[Any]]] = {}

    def bar(kind: str, lane: str, begin: float, end: float, text: str) -> None:
        rows = bars.setdefault(kind, {"y": [], "base": [], "x": [], "text": []})
        for name, value in (("y", lane), ("base", begin * 1e3), ("x", (end - begin) * 1e3), ("text", label(text))):
            rows[name].append(value)

    lanes = []
    for rank in drawn["ranks"]:
        sent, blocked = f"rank {rank['rank']} sends", f"rank {rank['rank']} blocked"
        lanes += [sent, blocked]
        calls = rank["calls"]
        for call in calls:
            if call["end_seconds"] is not None:
                about = f"{call['kind']} of {units.size(call['payload_bytes'])}, {call['phase'] or 'between phases'}"
                bar(call["kind"], sent, call["handed_in_seconds"], call["end_seconds"], about)
        for wait in rank["waits"]:
            name = calls[wait["collective"]]["kind"] if wait["collective"] < len(calls) else "a collective"
            bar(BLOCKED, blocked, wait["begin_seconds"], wait["end_seconds"], f"waits for {name}")
    data = [_trace(kind, rows) for kind, rows in sorted(bars.items(), key=lambda item: item[0] == BLOCKED)]
    step = drawn["step"]
    layout = {
        "barmode": "overlay",
        "xaxis": {"title": {"text": f"milliseconds from the begin of step {step}"}, "rangemode": "tozero"},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": lanes, "autorange": "reversed"},
    }
    return Chart("timeline", f"Communication in step {step}", _about(drawn), data, layout, 150 + 24 * len(lanes))


def _trace(kind: str, rows: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": label(kind),
        **rows,
        "width": 0.75,
        "textposition": "none",
        "meta": {"role": "waiting" if kind == BLOCKED else kind, "plain": True},
        "opacity": 0.9,
        "hovertemplate": HOVER,
    }


def _about(drawn: Mapping[str, Any]) -> str:
    """What it shows and what it leaves out."""
    ranks, middle = drawn["ranks"], units.milliseconds(drawn["seconds"])
    what = "its collectives from being handed in to their end, and below when the rank was blocked by one"
    parts = [f"The measured step nearest to the median ({middle}): for each rank {what}."]
    if len(ranks) < drawn["of_ranks"]:
        shown = f"{len(ranks)} of {drawn['of_ranks']:,} ranks"
        parts.append(f"{shown}, at even quantiles of step time, the fastest and the slowest among them.")
    if ranks[0]["of_calls"] > len(ranks[0]["calls"]):
        parts.append(f"Of each rank's {ranks[0]['of_calls']:,} collectives the first {len(ranks[0]['calls'])}.")
    if drawn["unseen_ends"]:
        parts.append(f"{drawn['unseen_ends']} whose end was not seen are left out.")
    if not all(rank["exact"] for rank in ranks):
        parts.append("In this step some ends are the latest that they can have been.")
    if drawn["clock_residual_seconds"]:
        parts.append(f"The ranks' clocks agree to {units.milliseconds(drawn['clock_residual_seconds'])}.")
    return " ".join(parts)

"""What a step saves without each cause, as tried in the tail of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..section import Block, Chart, Column, Number, Paragraph, Section, Table
from ..words import CAUSES, why

PLACE = 60


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    title = "What a step would save without it"
    rows = summary["counterfactual"]
    if rows is None:
        told = Paragraph(f"Not tried: {why(summary, 'counterfactual')}.", "note")
        return Section("counterfactual", title, [told, *_overhead(summary)])
    columns = [
        Column("without", "cause", numeric=False),
        Column("a step saves", "headroom_seconds"),
        Column("from", "ci95_low_seconds"),
        Column("to", "ci95_high_seconds"),
        Column("told", "verdict", numeric=False),
    ]
    cells = []
    for cause, row in rows.items():
        low, high = row["ci95"] or (None, None)
        numbers = [Number(units.milliseconds(each), each) for each in (row["headroom_seconds"], low, high)]
        cells.append([CAUSES.get(cause, cause), *numbers, _verdict(low, high)])
    caption = "95 % intervals over rounds of blocks with and without the cause, after the measured steps"
    blocks: list[Block] = [_chart(rows), Table("counterfactual", caption, columns, cells), *_overhead(summary)]
    return Section("counterfactual", title, blocks)


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval"
    return "saves time" if low > 0 else "costs time to leave out" if high < 0 else "cannot be told from 0"


def _chart(rows: Mapping[str, Any]) -> Chart:
    known = {cause: row for cause, row in rows.items() if row["headroom_seconds"] is not None}
    middle = [row["headroom_seconds"] * 1e3 for row in known.values()]
    high = [(row["ci95"][1] - row["headroom_seconds"]) * 1e3 if row["ci95"] else 0 for row in known.values()]
    low = [(row["headroom_seconds"] - row["ci95"][0]) * 1e3 if row["ci95"] else 0 for row in known.values()]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "saved",
            "x": middle,
            "y": [CAUSES.get(cause, cause) for cause in known],
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": high,
                "arrayminus": low,
                "thickness": 2,
                "width": 6,
            },
            "meta": {"role": "mean"},
            "hovertemplate": "%{y}: %{x:.4~g} ms<extra></extra>",
        }
    ]
    layout = {
        "xaxis": {"title": {"text": "milliseconds that a step saves"}, "zeroline": True, "zerolinewidth": 2},
        "yaxis": {"type": "category", "autorange": "reversed"},
    }
    caption = "What taking a cause away saved, with 95 % intervals; one that spans 0 cannot be told from nothing."
    return Chart("counterfactual", "Saved without it", caption, data, layout, 130 + 34 * len(known))


def _overhead(summary: Mapping[str, Any]) -> list[Block]:
    found = summary["overhead"]
    if found is None:
        return [Paragraph(f"What measuring itself costs was not measured: {why(summary, 'overhead')}.", "note")]
    calls = found.get("calls_share_of_step")
    own = "" if calls is None else f"; in the probe's own calls, timed: {calls:.2%}"
    spread = units.interval(found["ci95"], 100, "%")
    share = units.percent(found["share_of_step"])
    told = f"Measuring itself takes {share} of a step {spread}{own}. How: {found['method']}."
    return [Paragraph(told, "note")]

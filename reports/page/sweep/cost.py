"""What a million samples cost in each cell, by cause; and time against cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..charts import label, stacked_bars
from ..section import Block, Chart, Column, Number, Paragraph, Section, Table
from ..words import LEAVES, leaf
from .cells import HOURS, USD, reason

PLACE = 20


def section(summary: Mapping[str, Any]) -> Section | None:
    cells = [each for each in summary["cells"] if each["state"] == "measured" and each["by_cause"]]
    if not cells:
        return None
    in_usd = all(row[USD] is not None for each in cells for row in each["by_cause"])
    drawn = [each for each in cells if in_usd or all(row[HOURS] is not None for row in each["by_cause"])]
    blocks: list[Block] = [*([_bars(drawn, in_usd)] if drawn else []), _table(cells)]
    price = summary["price"]
    if price["usd_per_gpu_hour"] is not None:
        blocks.append(Paragraph(f"At {units.usd(price['usd_per_gpu_hour'])} an hour: {price['price_source']}.", "note"))
    else:
        blocks.append(Paragraph(f"No money: {reason(summary, 'price.usd_per_gpu_hour')}.", "note"))
    if summary["pareto"] is not None and summary["pareto"]["points"]:
        blocks.append(_pareto(summary["pareto"], {each["name"]: each for each in summary["cells"]}))
    else:
        blocks.append(Paragraph(f"Time against cost: {reason(summary, 'pareto')}.", "note"))
    return Section("cost", "What a million samples cost, and why", blocks)


def _causes(cells: list[Mapping[str, Any]]) -> list[str]:
    """Every cause that a cell has, in the order of a step."""
    known = list(dict.fromkeys(row["cause"] for cell in cells for row in cell["by_cause"]))
    return [cause for cause in LEAVES if cause in known] + [cause for cause in known if cause not in LEAVES]


def _bars(cells: list[Mapping[str, Any]], in_usd: bool) -> Chart:
    causes, field = _causes(cells), USD if in_usd else HOURS
    series = {
        cause: [next((row[field] for row in cell["by_cause"] if row["cause"] == cause), 0.0) for cell in cells]
        for cause in causes
    }
    what = "dollars" if in_usd else "device-hours"
    caption = (
        f"{what.capitalize()} per million samples of each measured cell, by the cause that takes them: of the steps "
        "and of the events that follow them, so a bar is higher than what steps alone cost where there are events."
    )
    bars, names = [each["name"] for each in cells], {cause: leaf(cause) for cause in causes}
    title, axis = "What a million samples cost, by cause", f"{what} per million samples"
    return stacked_bars("cost", title, caption, bars, series, axis=axis, unit=what, names=names)


def _table(cells: list[Mapping[str, Any]]) -> Table:
    causes = _causes(cells)
    columns = [Column("cell", "cell", numeric=False), *(Column(leaf(cause), f"{cause}_share") for cause in causes)]
    rows = []
    for cell in cells:
        shares = {row["cause"]: row["share"] for row in cell["by_cause"]}
        numbers = [Number(units.percent(shares.get(cause)), shares.get(cause)) for cause in causes]
        rows.append([cell["name"], *numbers])
    return Table("cost-by-cause", "Share of each cause in a cell's cost: of each $100 so many", columns, rows)


def _pareto(pareto: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> Chart:
    front = sorted((each for each in pareto["points"] if each["on_front"]), key=lambda each: each["seconds_per_sample"])
    others = [each for each in pareto["points"] if not each["on_front"]]
    # Names stand to the right of their dots, that of the last one to the left: it is at the edge.
    slowest = max(each["seconds_per_sample"] for each in pareto["points"])
    sides = ["top left" if 0 < each["seconds_per_sample"] == slowest else "top right" for each in front]
    named = {"line": {"dash": "dot", "width": 1}, "textposition": sides, "cliponaxis": False}
    # The front last: its names lie on top of other dots.
    data = [_points("beaten in both", others, "quiet", "markers")] if others else []
    data.append(_points("on the front", front, "first", "lines+markers+text", **named))
    if taken := [each for each in pareto["points"] if cells[each["cell"]]["recommended"]]:
        data.append(_points("recommended", taken, "mark", "markers", marker={"size": 16, "symbol": "circle-open"}))
    what = "$ per million samples" if pareto["cost"] == USD else "device-hours per million samples"
    layout = {
        "xaxis": {"title": {"text": "milliseconds per sample (left is faster)"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": what}, "rangemode": "tozero"},
    }
    caption = (
        "Each measured cell: left is faster, low is cheaper; none beats those on the dotted line in both. "
        "Oversubscribed cells are left out."
    )
    return Chart("pareto", "Time against cost", caption, data, layout, 380)


def _points(name: str, points: list[Mapping[str, Any]], role: str, mode: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": [each["seconds_per_sample"] * 1e3 for each in points],
        "y": [each["cost"] for each in points],
        "text": [label(each["cell"]) for each in points],
        "hovertemplate": "%{text}: %{x:.4~g} ms, %{y:.4~g}<extra></extra>",
        "meta": {"role": role},
        **more,
    }

"""How long each step took."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from ... import units
from ..charts import line, lines
from ..section import Block, Chart, Column, Number, Paragraph, Section, Table
from ..words import phase, why

PLACE = 40


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section | None:
    if pictures["steps"] is None:
        return None
    blocks: list[Block] = [*_spread(summary), _series(pictures["steps"])]
    if (drawn := pictures["histogram"]) is not None:
        blocks.append(_histogram(drawn))
        blocks += _outliers(drawn)
    return Section("steps", "Step by step", blocks)


def _spread(summary: Mapping[str, Any]) -> list[Block]:
    found = summary["step_seconds"]
    names = ("p10", "median", "mean", "p90", "p99")
    columns = [Column(name, f"{name}_seconds") for name in names]
    columns += [Column("mean, from", "ci95_low_seconds"), Column("to", "ci95_high_seconds")]
    values = [*(found[name] for name in names), *(found["ci95"] or (None, None))]
    unknown = [f"{name}: {why(summary, f'step_seconds.{name}')}" for name in (*names, "ci95") if found[name] is None]
    caption = (
        f"A step over {units.counted(summary['steps']['measured'], 'measured step')}, each the mean over ranks. The 95 "
        "% interval of the mean is within this run and says nothing of the next."
    )
    blocks: list[Block] = [
        Table("step-spread", caption, columns, [[Number(units.milliseconds(each), each) for each in values]])
    ]
    return blocks + ([Paragraph(f"Not known: {'; '.join(unknown)}.", "note")] if unknown else [])


def _series(drawn: Mapping[str, Any]) -> Chart:
    over, several = drawn["first_step"], drawn["ranks"] > 1
    data = []
    if several:
        data.append(line("fastest rank", _ms(drawn["lowest"]), over, "edge", line={"width": 0.7}))
        data.append(line("slowest rank", _ms(drawn["highest"]), over, "band", fill=True, line={"width": 0.7}))
    data.append(line("mean over ranks" if several else "step", _ms(drawn["mean"]), over, "mean", line={"width": 1.8}))
    caption = "Milliseconds of each step"
    caption += ": mean over ranks, and the range from the fastest rank to the slowest." if several else "."
    if drawn["buckets"] < drawn["of"]:
        caption += (
            f" {drawn['of']:,} steps are shown as {drawn['buckets']} buckets: mean of the steps' means, lowest of "
            "their lowest, highest of their highest."
        )
    more: dict[str, Any] = {"hovermode": "x unified"}
    if drawn["warmup_until"] is not None:
        end = drawn["warmup_until"] + 0.5
        more["shapes"] = [
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": over[0] - 0.5,
                "x1": end,
                "y0": 0,
                "y1": 1,
                "fillcolor": "#888",
                "opacity": 0.13,
                "line": {"width": 0},
            }
        ]
        caption += f" Grey: warm-up, up to step {drawn['warmup_until']}, which enters no figure"
        measured = [high for begin, high in zip(over, drawn["highest"], strict=True) if begin > drawn["warmup_until"]]
        if measured and max(drawn["highest"]) > 1.5 * max(measured):
            more["yaxis"] = {"title": {"text": "milliseconds"}, "range": [0, 1.1e3 * max(measured)]}
            caption += f"; there it goes up to {units.milliseconds(max(drawn['highest']))}"
        caption += "."
    return lines("steps", "Step time, step by step", caption, data, x="step", y="milliseconds", **more)


def _histogram(drawn: Mapping[str, Any]) -> Chart:
    bounds = [each * 1e3 for each in drawn["edges_seconds"]]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(bounds)]
    data = [
        {
            "type": "bar",
            "name": "steps",
            "x": middles,
            "y": drawn["counts"],
            "width": [high - low for low, high in itertools.pairwise(bounds)],
            "meta": {"role": "mean", "plain": True},
            "hovertemplate": "%{x:.4~g} ms: %{y} steps<extra></extra>",
        }
    ]
    if drawn["named"]:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "far out",
                "x": [each["seconds"] * 1e3 for each in drawn["named"]],
                "y": [0] * len(drawn["named"]),
                "text": [f"step {each['step']}" for each in drawn["named"]],
                "marker": {"symbol": "diamond"},
                "meta": {"role": "mark"},
                "hovertemplate": "%{text}: %{x:.4~g} ms<extra></extra>",
            }
        )
    caption = f"How many of {drawn['of']:,} measured steps took how long, each the mean over ranks."
    if drawn["outliers"]:
        caption += f" {drawn['outliers']} beyond {units.milliseconds(drawn['fence_seconds'])} are marked apart."
    layout = {"bargap": 0.03}
    return lines("histogram", "Step time, spread", caption, data, x="milliseconds", y="steps", height=260, **layout)


def _outliers(drawn: Mapping[str, Any]) -> list[Block]:
    fence = f"{units.milliseconds(drawn['fence_seconds'])}, three quartile ranges above the third quartile"
    if not drawn["outliers"]:
        return [Paragraph(f"No step took longer than {fence}.", "note")]
    columns = [
        Column("step", "step"),
        Column("mean over ranks", "seconds"),
        Column("slowest rank", "slowest_rank"),
        Column("its step", "slowest_rank_seconds"),
        Column("most above its median in", "phase", numeric=False),
        Column("by", "above_median_seconds"),
    ]
    rows = [
        [
            Number(str(each["step"]), each["step"]),
            Number(units.milliseconds(each["seconds"]), each["seconds"]),
            Number(str(each["slowest_rank"]), each["slowest_rank"]),
            Number(units.milliseconds(each["slowest_rank_seconds"]), each["slowest_rank_seconds"]),
            phase(each["phase"]),
            Number(units.milliseconds(each["above_median_seconds"]), each["above_median_seconds"]),
        ]
        for each in drawn["named"]
    ]
    caption = (
        f"Steps that stand out: {drawn['outliers']} of {drawn['of']:,} took longer than {fence}, "
        f"{units.percent(drawn['outlier_seconds_share'])} of the time; the longest {len(rows)}"
    )
    return [Table("outliers", caption, columns, rows)]


def _ms(values: list[float]) -> list[float]:
    return [each * 1e3 for each in values]

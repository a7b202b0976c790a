"""Loss, gradient norm and what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..charts import line, lines
from ..section import Block, Chart, Column, Number, Paragraph, Section, Table
from ..words import why

PLACE = 90


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    blocks: list[Block] = []
    if (drawn := pictures["loss"]) is not None:
        found = pictures["losses"]
        if found["known"]:
            ends = f"Loss {found['first']:.4g} at first, {found['last']:.4g} at last"
            blocks.append(Paragraph(f"{ends}, over {units.counted(found['known'], 'step')}, mean over ranks."))
        if not_finite := summary["steps"].get("loss_not_finite"):
            blocks.append(Paragraph(f"In {units.counted(not_finite, 'step')} it was not finite.", "warning"))
        if untold := found["missing"] - (not_finite or 0):
            blocks.append(Paragraph(f"Of {units.counted(untold, 'step')} it was not told.", "note"))
        blocks.append(_curve("loss", "Loss", "training loss", drawn))
    else:
        blocks.append(Paragraph(f"The loss is not known: {why(summary, 'loss')}.", "note"))
    if (norm := pictures["grad_norm"]) is not None:
        blocks.append(_curve("grad-norm", "Gradient norm", "global norm before clipping", norm))
    else:
        blocks.append(Paragraph(f"Gradient norm: {why(summary, 'grad_norm')}.", "note"))
    blocks.append(_quality(summary))
    if summary["steps"]["skipped"]:
        blocks.append(
            Paragraph(
                f"{units.counted(summary['steps']['skipped'], 'update')} left out: a gradient was not finite.",
                "warning",
            )
        )
    data = summary.get("data")
    if data and data["skipped_samples"]:
        first = data["skipped"][0]["message"] if data["skipped"] else ""
        damaged = units.counted(data["skipped_samples"], "damaged sample")
        blocks.append(Paragraph(f"{damaged} left out ({data['policy']}), the first: {first}", "warning"))
    return Section("learning", "Loss and quality", blocks)


def _curve(name: str, title: str, what: str, drawn: Mapping[str, Any]) -> Chart:
    caption = f"The {what} over optimizer steps from the first warm-up step on."
    if drawn["buckets"] < drawn["of"]:
        caption += f" {drawn['of']:,} steps are shown as {drawn['buckets']} buckets, the mean of each."
    data = [line(what, drawn["mean"], drawn["first_step"], "mean", line={"width": 1.8})]
    return lines(name, title, caption, data, x="optimizer step", y=title.lower(), height=280)


def _quality(summary: Mapping[str, Any]) -> Table:
    found = summary["quality"]
    columns = [
        Column("held-out", "what", numeric=False),
        Column("value", "value"),
        Column("note", "note", numeric=False),
    ]
    metric = f"best {found['metric']}" if found["metric"] else "best value of the metric"

    def note(name: str) -> str:
        return "" if found[name] is not None else why(summary, f"quality.{name}")

    best = units.UNKNOWN if found["best"] is None else f"{found['best']:.4g}"
    rows = [
        [metric, Number(best, found["best"]), note("best")],
        [
            "time to the target",
            Number(units.duration(found["seconds_to_target"]), found["seconds_to_target"]),
            note("seconds_to_target"),
        ],
        [
            "cost to the target",
            Number(units.usd(found["usd_to_target"]), found["usd_to_target"]),
            note("usd_to_target"),
        ],
    ]
    return Table("quality", "Quality on held-out data", columns, rows)

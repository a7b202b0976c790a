"""Where the step goes, in all and on each rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..charts import stacked_bars
from ..section import Block, Column, Number, Paragraph, Section, Table
from ..words import phase, why

PLACE = 20


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    blocks: list[Block] = [_table(summary)]
    for name, row in summary["phases"].items():
        if row is None:
            blocks.append(Paragraph(f"{phase(name)} is not known: {why(summary, f'phases.{name}')}", "note"))
    if (drawn := pictures["ranks"]) is not None:
        blocks += _ranks(drawn)
    detail = summary["detail"]
    rows = [
        [name.removesuffix("_seconds").replace("_", " "), Number(units.milliseconds(each), each)]
        for name, each in detail.items()
    ]
    columns = [Column("part", "part", numeric=False), Column("mean", "mean_seconds")]
    blocks.append(Table("parts-of-phases", "Parts of the phases above, a step", columns, rows))
    if summary["events"]:
        blocks.append(_events(summary["events"]))
    return Section("step", "Where the step goes", blocks)


def _table(summary: Mapping[str, Any]) -> Table:
    columns = [
        Column("phase", "phase", numeric=False),
        Column("mean", "mean_seconds"),
        Column("median", "median_seconds"),
        Column("share", "share"),
    ]
    rows, dim = [], set()
    for name, row in summary["phases"].items():
        if row is None:
            dim.add(len(rows))
            row = dict.fromkeys(("mean", "median", "share"))
        rows.append(
            [
                phase(name),
                Number(units.milliseconds(row["mean"]), row["mean"]),
                Number(units.milliseconds(row["median"]), row["median"]),
                Number(units.percent(row["share"]), row["share"], row["share"]),
            ]
        )
    step = summary["step_seconds"]
    known = step["mean"] is not None
    rows.append(
        [
            "step",
            Number(units.milliseconds(step["mean"]), step["mean"]),
            Number(units.milliseconds(step["median"]), step["median"]),
            Number(units.percent(1.0 if known else None), 1.0 if known else None),
        ]
    )
    caption = "A step by phase: mean over ranks and measured steps, exposed communication apart from what waited for it"
    return Table("phases", caption, columns, rows, frozenset({len(rows) - 1}), frozenset(dim))


def _ranks(drawn: Mapping[str, Any]) -> list[Block]:
    names = [_name(row) for row in drawn["rows"]]
    kinds = list(dict.fromkeys(kind for row in drawn["rows"] for kind in row["phases"]))
    kinds = [
        kind
        for kind in ("data", "h2d", "forward", "backward", "comm_exposed", "optimizer", "unattributed")
        if kind in kinds
    ]
    series = {kind: [row["phases"].get(kind, 0.0) * 1e3 for row in drawn["rows"]] for kind in kinds}
    bound = ""
    if drawn["group_size"] > 1:
        bound = (
            f" {drawn['of']:,} ranks are shown as {len(names)} groups of up to {drawn['group_size']} neighbours, "
            "each the mean of its ranks; summary.json has every rank."
        )
    caption = f"Milliseconds of a step by phase on each rank, means over measured steps.{bound}"
    chart = stacked_bars("ranks", "Where each rank's step goes", caption, names, series, axis="milliseconds of a step")
    tables = [
        _rank_table("per-rank", "Each rank" if drawn["group_size"] == 1 else "Groups of ranks", drawn["rows"], kinds)
    ]
    if drawn["slowest"]:
        tables.append(_rank_table("slowest-ranks", "The ranks with the most own time", drawn["slowest"], kinds))
    return [chart, *tables]


def _name(row: Mapping[str, Any]) -> str:
    return (
        f"rank {row['first_rank']}"
        if row["first_rank"] == row["last_rank"]
        else f"ranks {row['first_rank']}–{row['last_rank']}"
    )


def _rank_table(name: str, caption: str, rows: list[Mapping[str, Any]], kinds: list[str]) -> Table:
    columns = [
        Column("rank", "rank", numeric=False),
        Column("host", "host", numeric=False),
        Column("step", "step_seconds"),
        Column("own time", "own_seconds"),
        Column("waiting for others", "waiting_seconds"),
        *(Column(kind, f"{kind}_seconds") for kind in kinds),
    ]
    cells = [
        [
            _name(row),
            row["host"] or (f"{row['hosts']} hosts" if row["hosts"] else units.UNKNOWN),
            *(
                Number(units.milliseconds(row[key]), row[key])
                for key in ("step_seconds", "own_seconds", "waiting_seconds")
            ),
            *(Number(units.milliseconds(row["phases"].get(kind)), row["phases"].get(kind)) for kind in kinds),
        ]
        for row in rows
    ]
    return Table(
        name,
        f"{caption}: means over measured steps; own time is the step without what the rank was blocked",
        columns,
        cells,
    )


def _events(events: list[Mapping[str, Any]]) -> Table:
    columns = [
        Column("event", "event", numeric=False),
        Column("times", "count"),
        Column("failed", "failed"),
        Column("in all", "seconds"),
    ]
    rows = [
        [
            each["kind"],
            Number(units.count(each["count"]), each["count"]),
            Number(units.count(each["failed"]), each["failed"]),
            Number(units.seconds(each["seconds"]), each["seconds"]),
        ]
        for each in events
    ]
    return Table("events", "Between the steps, and in no figure above", columns, rows)

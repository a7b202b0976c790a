"""Every cell of the matrix, those that could not run too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ...spread import spread
from ..section import Block, Cell, Column, More, Number, Section, Table

PLACE = 10
USD, HOURS = "usd_per_million_samples", "device_hours_per_million_samples"


def reason(summary: Mapping[str, Any], name: str, value: Any = None) -> str:
    """Why `name` is null; empty where `value` is there."""
    return "" if value is not None else str(summary["reasons"].get(name, "not known"))


def cost_of(cell: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a million samples of a cell cost: in money where a price is known, else in hours of a device."""
    if (usd := cell[USD]) is not None:
        interval = spread(cell, USD, units.interval)
        return "Cost per million samples", {"text": units.usd(usd["mean"]), "interval": interval, "value": usd["mean"]}
    hours = cell[HOURS]
    mean = None if hours is None else hours["mean"]
    interval = spread(cell, HOURS, units.interval)
    return "Device-hours per million samples", {"text": units.figures(mean), "interval": interval, "value": mean}


def section(summary: Mapping[str, Any]) -> Section:
    columns = [
        Column("cell", "cell", numeric=False),
        Column("runs", "measured_runs"),
        Column("samples/s", "samples_per_second"),
        Column("95 % interval", "samples_per_second_ci95", numeric=False),
        Column("step", "step_seconds"),
        Column("device-h / 10⁶", HOURS),
        Column("$ / 10⁶", USD),
        Column("comm.", "comm_share"),
        Column("MFU", "mfu"),
        Column("peak memory", "peak_bytes"),
        Column("diagnosis", "diagnosis", numeric=False),
        Column("note", "note", numeric=False),
    ]
    cells = summary["cells"]
    measured = [each for each in cells if each["state"] == "measured"]
    others = [each for each in cells if each["state"] != "measured"]
    bold = frozenset(index for index, each in enumerate(measured) if each["recommended"])
    caption = "Measured cells: means over runs, intervals between runs where there are two at least; bold: recommended"
    blocks: list[Block] = []
    if measured:
        blocks.append(Table("cells", caption, columns, [_row(each) for each in measured], total=bold))
    if others:
        blocks.append(_without(others))
    return Section("cells", "All cells", [*blocks, More("Every run", [_runs(cells)])])


def _without(others: list[Mapping[str, Any]]) -> Table:
    columns = [
        Column("cell", "cell", numeric=False),
        Column("state", "state", numeric=False),
        Column("runs", "measured_runs"),
        Column("why", "why", numeric=False),
    ]
    rows: list[list[Cell]] = []
    for each in others:
        runs = each["measured_runs"]
        rows.append([each["name"], each["state"].replace("_", " "), Number(units.count(runs), runs), each["why"] or ""])
    return Table("cells-without", "Cells without a figure, and why", columns, rows)


def _row(cell: Mapping[str, Any]) -> list[Cell]:
    def mean(name: str, show: Any) -> Number:
        value = None if cell[name] is None else cell[name]["mean"]
        return Number(show(value), value)

    notes = ["recommended"] if cell["recommended"] else []
    notes += ["oversubscribed"] if cell["oversubscribed"] else []
    notes += ["on the front"] if cell["on_front"] else []
    notes += [cell["why"]] if cell["why"] else []
    return [
        cell["name"],
        Number(units.count(cell["measured_runs"]), cell["measured_runs"]),
        mean("samples_per_second", units.figures),
        spread(cell, "samples_per_second", units.interval),
        mean("step_seconds", units.milliseconds),
        mean(HOURS, units.figures),
        mean(USD, units.usd),
        mean("comm_share", units.percent),
        mean("mfu", units.percent),
        Number(units.size(cell["peak_bytes"]), cell["peak_bytes"]),
        ", ".join(cell["diagnosis"] or [units.UNKNOWN]),
        "; ".join(notes),
    ]


def _runs(cells: list[Mapping[str, Any]]) -> Table:
    columns = [
        Column("cell", "cell", numeric=False),
        Column("repeat", "repeat"),
        Column("state", "state", numeric=False),
        Column("samples/s", "samples_per_second"),
        Column("step", "step_seconds"),
        Column("diagnosis", "diagnosis", numeric=False),
        Column("took", "seconds"),
        Column("exit", "exit_code"),
        Column("folder", "run", numeric=False),
        Column("why", "why", numeric=False),
    ]
    rows = [
        [
            cell["name"],
            Number(str(run["repeat"]), run["repeat"]),
            run["state"].replace("_", " "),
            Number(units.figures(run["samples_per_second"]), run["samples_per_second"]),
            Number(units.milliseconds(run["step_seconds"]), run["step_seconds"]),
            run["diagnosis"] or units.UNKNOWN,
            Number(units.seconds(run["seconds"]), run["seconds"]),
            Number(units.UNKNOWN if run["exit_code"] is None else str(run["exit_code"]), run["exit_code"]),
            run["run"] or units.UNKNOWN,
            run["why"] or "",
        ]
        for cell in cells
        for run in cell["runs"]
    ]
    return Table("runs", "Runs, cell by cell", columns, rows)

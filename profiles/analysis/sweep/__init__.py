"""sweep-summary.json: what the runs of a sweep say together. No torch.

docs/scaling.md has the formulas and what each field says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson

from ...storage import replace_file
from ...sweepfolder import SweepFolder, SweepPlan
from ..prices import Given
from .cells import HOURS, USD, CellResult, cell_result, in_rounds
from .csv_twin import cells_csv
from .ranking import pareto, ranking, recommended
from .runs import Runs, SweepRun
from .scaling import series

SCHEMA = 1


def write_sweep_summary(
    folder: SweepFolder,
    given: Given | None = None,
    *,
    cost_ratio: float | None = None,
    usd_per_million_samples: float | None = None,
) -> dict[str, Any]:
    """Summarise the sweep in `folder` into its sweep-summary.json and sweep.csv, and return the summary.

    `given` prices replace those of the runs. The largest world size that is affordable is that at which a sample costs
    at most `cost_ratio` times (2) what it does at the smallest, or `usd_per_million_samples`. Raises ValueError where
    the folder is no sweep's, OutputError where it cannot be written; what was there then stays.
    """
    summary = summarise_sweep(
        folder, given or Given(), {"cost_ratio": cost_ratio, "usd_per_million_samples": usd_per_million_samples}
    )
    table = cells_csv(summary)
    replace_file(folder.path / "sweep-summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
    replace_file(folder.path / "sweep.csv", table.encode())
    return summary


def summarise_sweep(folder: SweepFolder, given: Given, asked: dict[str, float | None]) -> dict[str, Any]:
    """The summary, nothing written but summaries of runs that are not up to date."""
    plan = folder.plan()
    runs, notes, reasons = Runs(folder, plan, given), [], {}
    cells = list({cell.name: cell for cell in plan.cells}.values())
    if doubled := [name for name, count in Counter(cell.name for cell in plan.cells).items() if count > 1]:
        notes.append(f"sweep.json names {', '.join(doubled)} more than once: the last of each counts")
    results = [cell_result(cell, runs.of(cell)) for cell in cells]
    if runs.unreadable_attempts:
        notes.append(f"{runs.unreadable_attempts} lines of attempts.jsonl could not be read")
    devices = _devices(results)
    figures = [each for each in results if each.row["state"] == "measured"]
    model = next((str(cell.config["model"]) for cell in cells if cell.config.get("model")), None)
    if model is None:
        reasons["model"] = "sweep.json does not name it"
    if len(devices) > 1:
        names = ", ".join(f"{row['device_name']} ({', '.join(row['cells'])})" for row in devices)
        notes.append(f"mixed hardware, so cells are not ranked: {names}")
    notes += _notes(plan, figures)
    return {
        "schema": SCHEMA,
        "sweep_id": plan.sweep_id,
        "created_utc": plan.created_utc,
        "command": plan.command,
        # The same in all cells; of a file its name.
        "model": None if model is None else model.rsplit("/", 1)[-1],
        "scaling": plan.scaling,
        "repeats": plan.repeats,
        "seed": plan.seed,
        "best_batch": plan.best_batch,
        "runs": _counts(results),
        "devices": devices,
        "price": _price(figures, reasons),
        "notes": notes,
        "cells": [each.row for each in results],
        "other_runs": runs.others(),
        **_together(figures, plan, asked, len(devices) > 1, reasons),
        "reasons": dict(sorted(reasons.items())),
    }


def _together(
    figures: Sequence[CellResult], plan: SweepPlan, asked: dict[str, float | None], mixed: bool, reasons: dict[str, str]
) -> dict[str, Any]:
    """Cells held against each other; marks the rows of the front and of the one to take."""
    parts = ("cheapest", "fastest", "pareto", "recommended", "series")
    if mixed:
        reasons |= dict.fromkeys(parts, "the runs are of different hardware")
        return dict.fromkeys(parts)
    ranked = [each for each in figures if not each.row["oversubscribed"]]
    # At different prices a ranking in USD would be one of prices.
    in_usd = len(_prices(ranked)) == 1 and all(each.row[USD] is not None for each in ranked)
    measure = USD if in_usd else HOURS
    cheapest = ranking(ranked, measure)
    front = pareto(ranked, measure)
    taken = recommended(ranked, cheapest, front["front"])
    for each in figures:
        each.row["on_front"] = each.cell.name in front["front"]
        each.row["recommended"] = each.cell.name == taken["cell"]
    return {
        "cheapest": cheapest,
        "fastest": ranking(ranked, "samples_per_second", highest=True),
        "pareto": front,
        "recommended": taken,
        "series": series(figures, plan, asked),
    }


def _prices(results: Sequence[CellResult]) -> set[tuple[Any, Any]]:
    """What an hour of a device cost in their runs, and where from."""
    costs = [summary["cost"] for each in results for summary in each.summaries]
    return {(cost["usd_per_gpu_hour"], cost["price_source"]) for cost in costs}


def _devices(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """The kinds of device that runs were made on, those of cells of mixed ones too."""
    found: dict[tuple[Any, Any], dict[str, Any]] = {}
    for each in results:
        for run in each.runs:
            if run.summary is not None:
                key = (run.summary["device"], run.summary["device_name"])
                row = found.setdefault(key, {"device": key[0], "device_name": key[1], "runs": 0, "cells": []})
                row["runs"] += 1
                row["cells"] = list(dict.fromkeys([*row["cells"], each.cell.name]))
    return list(found.values())


def _counts(results: Sequence[CellResult]) -> dict[str, int]:
    runs: list[SweepRun] = [run for each in results for run in each.runs]
    states = Counter(run.state for run in runs)
    names = ("measured", "failed", "parity_failed", "unreadable", "running", "missing")
    refused = sum(each.cell.refused is not None for each in results)
    return {"planned": len(runs), **{name: states[name] for name in names}, "refused_cells": refused}


def _price(figures: Sequence[CellResult], reasons: dict[str, str]) -> dict[str, Any]:
    """What all runs were priced at; null where they differ."""
    summaries = [summary for each in figures for summary in each.summaries]
    found: dict[str, Any] = {}
    for name in ("usd_per_gpu_hour", "price_source", "usd_per_kwh"):
        values = {summary["cost"][name] for summary in summaries}
        found[name] = next(iter(values)) if len(values) == 1 else None
        if found[name] is None:
            told = next((summary["reasons"].get(f"cost.{name}") for summary in summaries), None)
            reasons[f"price.{name}"] = "the runs differ in it" if len(values) > 1 else told or "nothing was measured"
    return found


def _notes(plan: SweepPlan, figures: Sequence[CellResult]) -> list[str]:
    notes = []
    rows = [each.row for each in figures]
    if any(summary["device"] == "cpu" for each in figures for summary in each.summaries):
        notes.append("CPU rankings of sharded strategies do not carry over to GPUs")
    if over := [row["name"] for row in rows if row["oversubscribed"]]:
        notes.append(f"oversubscribed, more ranks than cores, so neither ranked nor fitted: {', '.join(over)}")
    if plan.best_batch:
        notes.append(
            "each cell has the largest micro-batch that fits it: batches differ, and losses are not held against ddp's"
        )
    elif len({row["global_batch"] for row in rows}) > 1:
        notes.append("global batches differ between cells: a sample of a larger one may be worth less")
    if len(_prices([each for each in figures if not each.row["oversubscribed"]])) > 1:
        notes.append(
            "runs were priced differently, so cells are ranked in device-hours; --usd-per-gpu-hour gives all one price"
        )
    loose = [row["name"] for row in rows if row["parity"]["state"] == "not checked"]
    if loose and not plan.best_batch:
        which = "of any cell" if len(loose) == len(rows) else f"of {', '.join(loose)}"
        notes.append(f"losses {which} were not checked: what was trained there may be something else than under ddp")
    for each in figures:
        if each.codes:
            notes.append(f"{each.cell.name}: its runs differ in {', '.join(each.codes)}, and are no repeats of one run")
    if not in_rounds(figures):
        notes.append(
            "runs of a round were made at different times (some were made again): cells are held against each other by "
            "all their runs, and what changed on the machine in between looks like an effect"
        )
    if any(row["measured_runs"] == 1 for row in rows):
        notes.append("cells of one run have no spread between runs: a quick look, without verdicts")
    return notes

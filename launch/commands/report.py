"""`scalelab report RUN...`: rebuilds a run's summary, and what is said of it, from its folder alone. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict

from ...profiles.analysis.prices import Given
from ...profiles.analysis.summary import write_summary
from ...profiles.runfolder import RunFolder
from ...profiles.storage import OutputError
from ...profiles.sweepfolder import SweepFolder
from ...reports.console import Console, Steady
from ...reports.table import run_table
from ...reports.trace import trace_table
from ..config import option
from ..errors import ConfigError, Exit
from ..options import read_options
from ..text import plain

SUMMARY = "Rebuild the summary of run and sweep folders from what is in them, and print it."
FLAGS = {"json": "print each summary as JSON, one a line"}


class ReportOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    run: list[str] = option("which", "folders of runs and of sweeps", ["runs/latest"])
    usd_per_gpu_hour: float | None = option(
        "prices",
        "price of an hour of a GPU (on CPU: of a rank), in place of the run's own",
        None,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
    )
    usd_per_kwh: float | None = option(
        "prices", "price of a kilowatt-hour, for the energy of the cards", None, gt=0, le=1e6, allow_inf_nan=False
    )
    max_cost_ratio: float | None = option(
        "sweeps",
        "how many times dearer than at the fewest ranks a sample may be, for the largest affordable number (2)",
        None,
        ge=1,
        le=1e6,
        allow_inf_nan=False,
    )
    max_usd_per_million: float | None = option(
        "sweeps", "the same as US dollars per million samples", None, gt=0, le=1e12, allow_inf_nan=False
    )


def main(argv: Sequence[str]) -> int:
    """Rebuild each folder's summary.json and print its table; returns the exit code."""
    options, flags = read_options("report", SUMMARY, ReportOptions, FLAGS, argv, positional="run")
    if options is None:
        return Exit.OK
    given = Given(usd_per_gpu_hour=options.usd_per_gpu_hour, usd_per_kwh=options.usd_per_kwh)
    for name in options.run:
        path = Path(name)
        if SweepFolder.is_one(path):
            _report_sweep(SweepFolder(path.resolve()), options, given, as_json="json" in flags)
            continue
        if not path.is_dir():
            raise ConfigError(f"{name}: no such run folder", hint="give a folder that holds a run.json, or make a run")
        folder = RunFolder(path.resolve())
        try:
            summary = write_summary(folder, given)
        except ValueError as error:
            raise ConfigError(str(error), hint=getattr(error, "hint", "give a folder that a run has made")) from error
        if "json" in flags:
            print(orjson.dumps({**summary, "run_folder": str(folder.path)}).decode())
            continue
        console = Console(sys.stdout)
        if summary["source"] == "imported":
            console.print(trace_table(summary))
        else:
            console.print(run_table(summary, (folder.read("run.json") or {}).get("law")))
        print(plain(f"run folder: {folder.path}"), file=Steady(sys.stdout))
    return Exit.OK


def _report_sweep(folder: SweepFolder, options: ReportOptions, given: Given, *, as_json: bool) -> None:
    from ...profiles.analysis.sweep import write_sweep_summary
    from ...reports.sweep_results import sweep_results

    try:
        summary = write_sweep_summary(
            folder,
            given,
            cost_ratio=options.max_cost_ratio,
            usd_per_million_samples=options.max_usd_per_million,
        )
    except OutputError:
        raise
    except ValueError as error:
        raise ConfigError(str(error), hint=getattr(error, "hint", "give a folder that a sweep has made")) from error
    if as_json:
        print(orjson.dumps({**summary, "sweep_folder": str(folder.path)}).decode())
        return
    Console(sys.stdout).print(sweep_results(summary))
    print(plain(f"sweep folder: {folder.path}"), file=Steady(sys.stdout))

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
from ...reports.console import Console, Steady
from ...reports.table import run_table
from ...reports.trace import trace_table
from ..config import option
from ..errors import ConfigError, Exit
from ..options import read_options
from ..text import plain

SUMMARY = "Rebuild the summary of run folders from their records, and print it."
FLAGS = {"json": "print each summary as JSON, one a line"}


class ReportOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    run: list[str] = option("which", "run folders", ["runs/latest"])
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


def main(argv: Sequence[str]) -> int:
    """Rebuild each folder's summary.json and print its table; returns the exit code."""
    options, flags = read_options("report", SUMMARY, ReportOptions, FLAGS, argv, positional="run")
    if options is None:
        return Exit.OK
    given = Given(usd_per_gpu_hour=options.usd_per_gpu_hour, usd_per_kwh=options.usd_per_kwh)
    for name in options.run:
        path = Path(name)
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

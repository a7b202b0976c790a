"""`scalelab report PATH...`: rebuilds summary and report of runs and sweeps from their folders alone. No torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ConfigDict

from ...profiles.storage import OutputError
from ..errors import ConfigError, Exit
from ..options import option, read_options
from ..text import plain

if TYPE_CHECKING:
    from ...profiles.analysis.prices import Given

SUMMARY = (
    "Rebuild the summary and the report (report.html, report.md, report-tables/) of run and sweep folders from what "
    "they hold, and print them."
)
FLAGS = {"json": "print each summary as JSON, one a line"}
HINT = "give a folder that holds a run.json or a sweep.json, or make a run"


class ReportOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    run: list[str] = option("which", "run folders or sweep folders", ["runs/latest"])
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
    cost_ratio: float | None = option(
        "how far",
        "of a sweep: up to how many ranks a sample costs at most so many times what it does on the fewest; 2 if "
        "neither is given",
        None,
        ge=1,
        le=1e6,
        allow_inf_nan=False,
    )
    usd_per_million_samples: float | None = option(
        "how far", "of a sweep: up to how many ranks it costs at most this", None, gt=0, le=1e9, allow_inf_nan=False
    )


def main(argv: Sequence[str]) -> int:
    """Rebuild each folder's summary and report and print its table; returns the exit code. A folder that is neither a
    run's nor a sweep's stops none of the others."""
    options, flags = read_options("report", SUMMARY, ReportOptions, FLAGS, argv, positional="run")
    if options is None:
        return Exit.OK
    problems, hints = [], []
    for path in dict.fromkeys(Path(name).resolve() for name in options.run):
        try:
            _report(path, options, as_json="json" in flags)
        except OutputError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            problems.append(f"{path}: its files lack what a report needs ({type(error).__name__}: {error})")
            hints.append("it was written by an older scalelab, or only half; the runs that are whole can be reported")
        except ValueError as error:
            problems.append(str(error))
            hints.append(getattr(error, "hint", "") or HINT)
    if problems:
        raise ConfigError(problems, hint=hints[0])
    return Exit.OK


def _report(path: Path, options: ReportOptions, *, as_json: bool) -> None:
    # Here and not above: `--help` and errors of usage answer without them.
    from ...profiles.analysis.prices import Given
    from ...profiles.sweepfolder import SweepFolder

    if path.is_file():
        raise ConfigError(f"{path}: a file, not a folder", hint=HINT)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder", hint=HINT)
    given = Given(usd_per_gpu_hour=options.usd_per_gpu_hour, usd_per_kwh=options.usd_per_kwh)
    if SweepFolder.is_one(path):
        _sweep(path, options, given, as_json=as_json)
    else:
        _run(path, given, as_json=as_json)


def _run(path: Path, given: Given, *, as_json: bool) -> None:
    from ...profiles.runfolder import RunFolder
    from ...reports.table import run_table
    from ...reports.trace import trace_table
    from ..reporting import summarise_and_report

    folder = RunFolder(path)
    summary = summarise_and_report(folder, given)
    if as_json:
        print(orjson.dumps({**summary, "run_folder": str(path)}).decode())
    elif summary["source"] == "imported":
        _show(trace_table(summary), ("run folder", path), ("report", path / "report.html"))
    else:
        ended = _ended(folder.read("status.json") or {})
        _show(run_table(summary, ended), ("run folder", path), ("report", path / "report.html"))


def _ended(status: Mapping[str, Any]) -> list[str]:
    """How a run ended that did not finish well, why, and what to do; nothing of one that did."""
    state, code = status.get("state", "unknown"), status.get("exit_code")
    if (state, code or 0) == ("finished", 0):
        return []
    meaning = f" (exit code {code}: {Exit(code).meaning})" if code in set(Exit) else ""
    lines = [f"{state.upper()}{meaning}: what follows is partial"]
    if state == "running":
        lines = ["RUNNING, or what watched over it was killed: what follows is of the records so far"]
    if cause := status.get("cause"):
        at = status.get("culprit") or {}
        where = "" if at.get("rank") is None else f"rank {at['rank']}"
        where += "" if at.get("phase") is None else f" in {at['phase']}"
        where += "" if at.get("step") is None else f" of step {at['step']}"
        lines.append(f"{where}: {cause}" if where else cause)
    return [*lines, *([f"hint: {status['hint']}"] if status.get("hint") else [])]


def _sweep(path: Path, options: ReportOptions, given: Given, *, as_json: bool) -> None:
    from ...profiles.sweepfolder import SweepFolder
    from ...reports.sweep_results import sweep_results
    from ..reporting import summarise_and_report_sweep

    summary = summarise_and_report_sweep(
        SweepFolder(path),
        given,
        cost_ratio=options.cost_ratio,
        usd_per_million_samples=options.usd_per_million_samples,
    )
    if as_json:
        print(orjson.dumps({**summary, "sweep_folder": str(path)}).decode())
    else:
        _show(sweep_results(summary), ("sweep folder", path), ("report", path / "report.html"))


def _show(table: Any, *places: tuple[str, Path]) -> None:
    from ...reports.console import Console
    from ...reports.steady import Steady

    Console(sys.stdout).print(table)
    for name, place in places:
        print(plain(f"{name}: {place}"), file=Steady(sys.stdout))

"""`scalelab report RUN...`: rebuilds a run's summary and its report from its folder alone. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict

from ...profiles.runfolder import RunFolder
from ...profiles.storage import OutputError
from ...reports.console import Console, Steady
from ..config import option
from ..errors import ConfigError, Exit
from ..options import read_options
from ..text import plain

SUMMARY = "Rebuild the summary and the report (report.html, report.md, report-tables/) of run folders, and print them."
FLAGS = {"json": "print each summary as JSON, one a line"}


class ReportOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    run: list[str] = option("which", "run folders", ["runs/latest"])


def main(argv: Sequence[str]) -> int:
    """Rebuild each folder's summary and report and print its table; returns the exit code. A folder that is no run's
    stops none of the others."""
    options, flags = read_options("report", SUMMARY, ReportOptions, FLAGS, argv, positional="run")
    if options is None:
        return Exit.OK
    problems, hints = [], []
    for path in dict.fromkeys(Path(name).resolve() for name in options.run):
        try:
            _report(path, as_json="json" in flags)
        except OutputError:
            raise
        except ValueError as error:
            problems.append(str(error))
            hints.append(getattr(error, "hint", "") or "give a folder that holds a run.json, or make a run")
    if problems:
        raise ConfigError(problems, hint=hints[0])
    return Exit.OK


def _report(path: Path, *, as_json: bool) -> None:
    # Here and not above: `--help` and errors of usage answer without them.
    from ...reports.table import run_table
    from ...reports.trace import trace_table
    from ..reporting import summarise_and_report

    if not path.is_dir():
        raise ConfigError(f"{path}: no such run folder", hint="give a folder that holds a run.json, or make a run")
    folder = RunFolder(path)
    summary = summarise_and_report(folder)
    if as_json:
        print(orjson.dumps({**summary, "run_folder": str(path)}).decode())
        return
    console = Console(sys.stdout)
    if summary["source"] == "imported":
        console.print(trace_table(summary))
    else:
        console.print(run_table(summary, (folder.read("run.json") or {}).get("law")))
    for name, place in (("run folder", path), ("report", path / "report.html")):
        print(plain(f"{name}: {place}"), file=Steady(sys.stdout))

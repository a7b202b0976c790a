"""`scalelab report RUN...`: rebuilds a run's summary, and what is said of it, from its folder alone. No torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from ...profiles.analysis.summary import write_summary
from ...profiles.runfolder import RunFolder
from ...reports.console import Console, Steady
from ...reports.table import run_table
from ..errors import ConfigError, Exit
from ..text import plain


def main(argv: Sequence[str]) -> int:
    """Rebuild each folder's summary.json and print its table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scalelab report", description="Rebuild the summary of run folders from their records, and print it."
    )
    parser.add_argument("run", nargs="*", default=["runs/latest"], metavar="RUN", help="run folders (runs/latest)")
    parser.add_argument("--json", action="store_true", help="print each summary as JSON, one a line")
    given = parser.parse_args(argv)
    for name in given.run:
        path = Path(name)
        if not path.is_dir():
            raise ConfigError(f"{name}: no such run folder", hint="give a folder that holds a run.json, or make a run")
        folder = RunFolder(path.resolve())
        try:
            summary = write_summary(folder)
        except ValueError as error:
            raise ConfigError(str(error), hint=getattr(error, "hint", "give a folder that a run has made")) from error
        if given.json:
            print(orjson.dumps({**summary, "run_folder": str(folder.path)}).decode())
            continue
        Console(sys.stdout).print(run_table(summary, (folder.read("run.json") or {}).get("law")))
        print(plain(f"run folder: {folder.path}"), file=Steady(sys.stdout))
    return Exit.OK

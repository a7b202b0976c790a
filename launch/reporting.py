"""The summary of a run and the report that is made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..profiles.analysis.load import load_run
from ..profiles.analysis.summary import write_summary
from ..profiles.runfolder import RunFolder
from ..profiles.storage import OutputError
from ..reports.page.write import PAGE, write_run_report


def summarise_and_report(folder: RunFolder) -> dict[str, Any]:
    """Write the summary and the report of `folder`; returns the summary. Raises OutputError, and ValueError for what is
    no run folder."""
    run = load_run(folder)
    summary = write_summary(folder, run=run)
    write_run_report(folder, run, summary)
    return summary


def report_after(folder: RunFolder, say: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
    """The same at the end of a run, whose result no report that cannot be written takes away: `say` says so, and the
    second value is whether it was written."""
    run = load_run(folder)
    summary = write_summary(folder, run=run)
    try:
        write_run_report(folder, run, summary)
    except OutputError as error:
        say(f"the report could not be written: {error}")
        say(f"hint: {error.hint}; then: scalelab report {folder.path}")
        return summary, False
    return summary, (folder.path / PAGE).is_file()

"""The summary of a run, its diagnosis, and the report that is made of both."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from ..profiles.analysis.diagnosis.diagnose import write_diagnosis
from ..profiles.analysis.load import load_run
from ..profiles.analysis.prices import Given
from ..profiles.analysis.summary import write_summary
from ..profiles.analysis.sweep import write_sweep_summary
from ..profiles.runfolder import RunFolder
from ..profiles.storage import OutputError
from ..profiles.sweepfolder import SweepFolder
from ..reports.page.write import write_run_report, write_sweep_report


def summarise_and_report(folder: RunFolder, given: Given | None = None) -> dict[str, Any]:
    """Write the summary, at the prices `given` if any, the diagnosis and the report of `folder`; returns the summary.
    Raises OutputError, and ValueError for what is no run folder."""
    run = load_run(folder)
    summary = write_summary(folder, given, run=run)
    write_diagnosis(folder, run, summary)
    write_run_report(folder, run, summary)
    return summary


def summarise_and_report_sweep(
    folder: SweepFolder,
    given: Given | None = None,
    *,
    cost_ratio: float | None = None,
    usd_per_million_samples: float | None = None,
) -> dict[str, Any]:
    """The same of a sweep; what may be asked beside prices is `write_sweep_summary`'s."""
    summary = write_sweep_summary(folder, given, cost_ratio=cost_ratio, usd_per_million_samples=usd_per_million_samples)
    write_sweep_report(folder.path, summary)
    return summary


def report_after(folder: RunFolder, say: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
    """The same at the end of a run, whose result no report that cannot be written takes away: `say` says so, and the
    second value is whether it was written."""
    run = load_run(folder)
    summary = write_summary(folder, run=run)
    try:
        write_diagnosis(folder, run, summary)
        write_run_report(folder, run, summary)
    except OutputError as error:
        say(f"the report could not be written: {error}")
        say(f"hint: {error.hint}; then: scalelab report {folder.path}")
        return summary, False
    except Exception as error:
        # A bug of ours: the run and its summary are none the worse.
        traceback.print_exc()
        say(f"the report could not be made: {type(error).__name__}: {error}; please report the lines above")
        say(f"hint: scalelab report {folder.path} tries again")
        return summary, False
    return summary, True

"""Summaries that lie in run folders: whether they are those of the records and the code of now."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any

from ..runfolder import RunFolder, SchemaError
from .load import load_run
from .summary import analyse, analysis_digest, write_summary

# Each holds the records of a run.
MOST_PROCESSES = 8


def current_summary(folder: RunFolder, *, own_prices: bool = False) -> dict[str, Any]:
    """The summary in `folder` where this code made it of the records that are there now, else a new one, written.
    `own_prices`: one that a reader of its report had priced otherwise stays in its place, and the run's is returned.

    Raises ValueError for what is no run folder, and SchemaError for one of a newer scalelab.
    """
    summary = _up_to_date(folder)
    if summary is None:
        return write_summary(folder)
    return analyse(folder, load_run(folder)) if own_prices and summary.get("repriced") else summary


def refresh_summaries(folders: Sequence[RunFolder]) -> None:
    """Write those summaries that `current_summary` would have to write, in as many processes as there are cores. What
    cannot be read is left as it is, for whoever asks for it."""
    stale = [folder for folder in folders if _is_stale(folder)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(len(stale), MOST_PROCESSES, cores)
    if workers < 2 or "torch" in sys.modules:
        return  # one core gains nothing, and a process with torch's threads is not to be forked
    # A process that ends for lack of memory leaves its summaries to whoever reads those runs, one by one.
    with (
        contextlib.suppress(BrokenExecutor, OSError),
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool,
    ):
        list(pool.map(_refresh, stale))


def _is_stale(folder: RunFolder) -> bool:
    try:
        return _up_to_date(folder) is None
    except (ValueError, OSError):
        return False


def _refresh(folder: RunFolder) -> None:
    with contextlib.suppress(Exception):  # told by whoever reads that run
        write_summary(folder)


def _up_to_date(folder: RunFolder) -> dict[str, Any] | None:
    """The summary in `folder`, where this code made it of the records that are there now."""
    path = folder.path / "summary.json"
    try:
        summary, made_ns = folder.read("summary.json"), path.stat().st_mtime_ns
    except (OSError, ValueError) as error:
        if isinstance(error, SchemaError):
            raise
        return None
    sources = [folder.path / name for name in ("run.json", "status.json")]
    for place in (folder.path / name for name in ("ranks", "telemetry", "traces")):
        # The folder's own time tells of a file that is gone, or came back with the time it had.
        sources += [place, *place.glob("*")]
    changed = any(file.stat().st_mtime_ns > made_ns for file in sources if file.exists())
    stale = changed or not isinstance(summary, dict) or summary.get("analysis") != analysis_digest()
    return None if stale else summary

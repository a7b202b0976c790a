"""The rows of a sweep's table."""

from __future__ import annotations

from typing import Any

from ...profiles.analysis.between import mean_between_runs
from ...profiles.sweepfolder import SweepFolder


def summary_of(folder: SweepFolder) -> dict[str, Any]:
    """Each cell with the means of its finished runs."""
    plan, (attempts, _) = folder.plan(), folder.attempts()
    rows = []
    for cell in plan.cells:
        own = [attempts[key] for key in sorted(attempts) if key[0] == cell.name]
        runs = [run for each in own if each.exit_code == 0 and (run := folder.run(each)) is not None]
        summaries = [summary for run in runs if (summary := run.read("summary.json"))]
        bad = next((each for each in own if each.exit_code != 0), None)
        state, why = ("measured", None) if summaries else ("missing", "not run yet")
        if cell.refused is not None:
            state, why = "refused", cell.refused
        elif bad is not None:
            state, why = "failed", bad.cause
        peaks = [each["memory"]["peak_bytes"] for each in summaries if each["memory"]["peak_bytes"] is not None]
        rows.append(
            {
                **cell.model_dump(exclude={"config", "refused", "gated"}),
                "state": state,
                "why": why,
                "measured_runs": len(summaries),
                "step_seconds": _mean([each["step_seconds"]["mean"] for each in summaries]),
                "samples_per_second": _mean([each["throughput"]["samples_per_second"] for each in summaries]),
                "peak_bytes": max(peaks, default=None),
                "parity": {"state": own[0].parity if own else "not checked", "why": None},
            }
        )
    return {"sweep_id": plan.sweep_id, "cells": rows}


def _mean(values: list[Any]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, interval = mean_between_runs(known)
    return {"mean": mean, "ci95": interval}

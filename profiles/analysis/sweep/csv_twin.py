"""sweep.csv: the cells of a sweep-summary.json, a row each."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

PLAIN = (
    "name",
    "strategy",
    "precision",
    "world_size",
    "micro_batch",
    "grad_accumulation",
    "global_batch",
    "state",
    "why",
)
ESTIMATES = (
    "step_seconds",
    "samples_per_second",
    "device_hours_per_million_samples",
    "usd_per_million_samples",
    "energy_usd_per_million_samples",
    "comm_share",
    "mfu",
)
REST = ("measured_runs", "peak_bytes", "oversubscribed", "device_name", "on_front", "recommended")
# What a spreadsheet would take for a formula (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cells_csv(summary: Mapping[str, Any]) -> str:
    """Means and their intervals; empty where unknown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{name}{part}" for name in ESTIMATES for part in ("", "_low", "_high")]
    writer.writerow([*PLAIN, *REST, *names, "parity", "runs"])
    for cell in summary["cells"]:
        figures = [value for name in ESTIMATES for value in _three(cell[name])]
        runs = " ".join(run["run"] for run in cell["runs"] if run["run"])
        row = [*(cell[name] for name in (*PLAIN, *REST)), *figures, cell["parity"]["state"], runs]
        writer.writerow([_inert(value) for value in row])
    return text.getvalue()


def _three(estimate: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
    if estimate is None:
        return None, None, None
    low, high = estimate["ci95"] or (None, None)
    return estimate["mean"], low, high


def _inert(value: Any) -> Any:
    """Text that a spreadsheet would compute is shown instead."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

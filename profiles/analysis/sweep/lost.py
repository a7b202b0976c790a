"""Lost efficiency by cause, between two world sizes of a series.

A sample takes d(N) = N x step seconds / samples device-seconds at N, the sum over causes d_c(N) of the step's ledger.
Efficiency from N to M is E = d(N) / d(M), so that what is lost,

    1 - E = (d(M) - d(N)) / d(M) = sum over causes of (d_c(M) - d_c(N)) / d(M),

is the sum of its parts, exactly; a part below 0 is a gain. d(N) is the geometric mean over runs, as in the efficiency
that is shown, and d_c(N) = d(N) x the mean share of c. Events lie outside of steps and of throughput, so also of this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .cells import HOURS, CellResult
from .estimates import difference_interval, ratio

UNTOLD = "compute, optimizer and communication"
CAUSES = ("input", "compute", "optimizer", "transfer", "waiting", "queued", "exposed", UNTOLD, "unattributed")
# Compute grows where the batch of a rank shrinks, as kernels are then smaller and fixed costs weigh more.
OF_LEAF = {
    "data": "input",
    "h2d": "input",
    "forward": "compute",
    "backward": "compute",
    "backward.gradient": "compute",
    "backward.recompute": "compute",
    "optimizer": "optimizer",
    "comm": "exposed",
    "comm.transfer": "transfer",
    "comm.waiting": "waiting",
    "comm.queued": "queued",
    "unattributed": "unattributed",
}
SPLIT = ("transfer", "waiting", "queued")
ADDS_UP_TO = 1e-9


def lost(before: CellResult, after: CellResult) -> dict[str, Any]:
    """What is lost from `before` to `after`, by cause, largest first."""
    sizes = (before.cell.world_size, after.cell.world_size)
    reasons: dict[str, str] = {}
    # Device-hours per sample, upside down.
    # Over all runs, as its parts are, which have to add up to it.
    efficiency = ratio(before.values(HOURS), after.values(HOURS))
    if efficiency["ci95"] is None:
        reasons["efficiency.ci95"] = "it takes two runs of both cells"
    found = {
        "from_world_size": sizes[0],
        "to_world_size": sizes[1],
        "oversubscribed": bool(before.row["oversubscribed"] or after.row["oversubscribed"]),
        "efficiency": efficiency,
        "lost": 1 - efficiency["mean"],
        "parts": None,
        "reasons": reasons,
    }
    unknown = [each for each in (before, after) if any(s["cost"]["by_cause_leaves"] is None for s in each.summaries)]
    if unknown:
        reasons["parts"] = f"{unknown[0].cell.name}: the phases of a step are not known"
        return found
    shares = {each.cell.name: [_shares(summary) for summary in each.summaries] for each in (before, after)}
    _alike(before, after, shares, reasons)
    found["parts"] = _parts(before, after, shares)
    total = sum(part["share"] for part in found["parts"])
    assert math.isclose(total, found["lost"], abs_tol=ADDS_UP_TO), f"parts sum to {total} of {found['lost']} lost"
    if efficiency["ci95"] is None:
        reasons["parts.ci95"] = reasons["efficiency.ci95"]
    return found


def _shares(summary: Mapping[str, Any]) -> dict[str, float]:
    """Shares of the step alone, by cause; they sum to 1."""
    found: dict[str, float] = {}
    for row in summary["cost"]["by_cause_leaves"]:
        if row["cause"] != "events":
            cause = OF_LEAF[row["cause"]]
            found[cause] = found.get(cause, 0.0) + row["seconds"]
    step = sum(found.values())
    return {cause: seconds / step for cause, seconds in found.items()}


def _alike(
    before: CellResult, after: CellResult, shares: Mapping[str, list[dict[str, float]]], reasons: dict[str, str]
) -> None:
    """Where one side does not tell causes apart as the other does, join them on both."""
    rows = [row for each in shares.values() for row in each]
    untold = [
        each.cell.name
        for each in (before, after)
        if each.cell.world_size > 1 and any(not row.keys() & {*SPLIT, "exposed"} for row in shares[each.cell.name])
    ]
    if untold:
        _join(rows, (*SPLIT, "exposed", "compute", "optimizer"), UNTOLD)
        reasons["parts.exposed"] = f"{untold[0]}: communication is not told apart from compute and optimizer"
    elif any("exposed" in row for row in rows):
        _join(rows, (*SPLIT, "exposed"), "exposed")
        reasons["parts.transfer"] = "why ranks were blocked is not known on both sides: exposed as a whole"


def _join(rows: Sequence[dict[str, float]], names: Sequence[str], into: str) -> None:
    for row in rows:
        row[into] = sum(row.pop(name, 0.0) for name in names)


def _parts(before: CellResult, after: CellResult, shares: Mapping[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A cause's part is s_c(M) - E s_c(N), s_c its mean share of the step. Its interval is that of first order in what
    runs differ by (the delta method), d(N) and d(M) within E among it."""
    logs = [np.log(each.values(HOURS)) for each in (before, after)]
    efficiency = math.exp(float(logs[0].mean() - logs[1].mean()))
    off = [each - each.mean() for each in logs]
    rows = []
    for cause in CAUSES:
        if not any(cause in row for each in shares.values() for row in each):
            continue
        one, two = (np.array([row.get(cause, 0.0) for row in shares[each.cell.name]]) for each in (before, after))
        base = float(one.mean())
        at_n, at_m = efficiency * (one + base * off[0]), two + efficiency * base * off[1]
        interval = difference_interval(at_m.tolist(), at_n.tolist())
        rows.append({"cause": cause, "share": float(at_m.mean() - at_n.mean()), "ci95": interval})
    return sorted(rows, key=lambda row: -row["share"])

"""Whether two runs learnt the same: their losses at the same steps."""

from __future__ import annotations

from typing import Any

from .alike import unlike
from .compared import ComparedRun
from .parity import TOLERANCES, deviations
from .reasons import Null

# The steps over which the tolerances hold (docs/strategies.md); later, differences of rounding have grown by training.
PARITY_STEPS = 10
# What decides, with model, data and batch, which losses a run has.
DECIDES = ("seed", "optimizer", "lr", "lr_warmup_steps", "lr_scaling", "base_batch", "clip_norm", "global_batch")


def same_losses(a: ComparedRun, b: ComparedRun, null: Null) -> dict[str, Any] | None:
    """Both losses at the last step that both have, and whether the first steps agree within the tolerance of parity:
    `same`, `differs`, or null where two runs are not meant to have the same losses."""
    series = [run.summary["loss"] for run in (a, b)]
    if not series[0] or not series[1]:
        lacking = a if not series[0] else b
        null("loss", f"{lacking.name}: {lacking.why_not('loss')}")
        return None
    last = min(map(len, series)) - 1
    verdict, first, tolerance = None, None, None
    if why := _not_meant(a, b):
        null("loss.verdict", why)
    else:
        names = [run.facts["precision"]["name"] for run in (a, b)]
        tolerance = max(TOLERANCES[name] for name in names)
        found, expected = ({"loss": each[: min(PARITY_STEPS, last + 1)]} for each in (series[1], series[0]))
        rows = deviations(found, expected, tolerance=tolerance)
        verdict, first = ("differs", rows[0].step) if rows else ("same", None)
    return {
        "step": last,
        "a": series[0][last],
        "b": series[1][last],
        "verdict": verdict,
        "tolerance": tolerance,
        "parity_steps": None if tolerance is None else min(PARITY_STEPS, last + 1),
        "first_apart": first,
    }


def _not_meant(a: ComparedRun, b: ComparedRun) -> str | None:
    configs = [run.facts["config"] for run in (a, b)]
    apart = [name for name in DECIDES if configs[0].get(name) != configs[1].get(name)]
    apart += [word for word in unlike(a, b) if word in ("different-data", "different-model")]
    if apart:
        return f"the two are not meant to have the same losses: {', '.join(apart)}"
    if any(run.facts["precision"]["name"] not in TOLERANCES for run in (a, b)):
        return "their precision has no tolerance"
    return None

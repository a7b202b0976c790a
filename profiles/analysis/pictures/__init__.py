"""Plain data for the pictures of a run's report, bounded in size however many ranks and steps there are. No torch.

Where a picture shows less than was recorded, its data says so: how many steps became how many buckets, which ranks
were put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runfolder import RunFolder
from ..load import Run
from ..withheld import is_withheld
from .facts import facts
from .ranks import ranks
from .shares import branches, exposed, fullest_ranks, kinds, losses, of_a_hundred, sent
from .steps import histogram, loss, step_series
from .timeline import timeline
from .verdict import verdict


def pictures(run: Run, summary: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """What a report shows beside the summary. Each part is None where there is nothing to draw, and those of time where
    the summary's figures of speed are withheld."""
    known, timed = facts(run, folder), not is_withheld(run.status)
    return {
        "facts": known,
        "verdict": verdict(summary, known),
        "steps": step_series(run) if timed else None,
        "histogram": histogram(run) if timed else None,
        "ranks": ranks(summary) if timed else None,
        "timeline": timeline(run) if timed else None,
        "exposed": exposed(summary),
        "sent": sent(summary, known["law"]),
        "kinds": kinds(summary),
        "of_a_hundred": of_a_hundred((summary["cost"] or {}).get("by_cause_leaves")),
        "fullest_ranks": fullest_ranks(summary),
        "branches": branches(summary),
        "loss": loss(summary["loss"]),
        "losses": losses(summary["loss"]),
        "grad_norm": loss(summary["grad_norm"]),
    }

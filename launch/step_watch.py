"""What follows from steps once they are written: a run that has gone bad ends, the display hears how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..profiles.capture.memory import peaks
from ..profiles.records import TRAINING, StepRecord
from .errors import NumericError
from .ranks import Rank
from .supervision.pulse import Pulse


class StepNotFiniteError(NumericError):
    """A step that is over had a number that is not finite, which the error names."""


def after_steps(rank: Rank, pulse: Pulse, records: Sequence[StepRecord]) -> None:
    """Stop at a loss that is not finite; tell the display how far rank 0 is."""
    for record in records:
        if record.role in TRAINING:
            _refuse_not_finite(record)
    if rank.rank != 0:
        return
    last = records[-1]
    figures: dict[str, Any] = {"step": last.step, "role": last.role, "seconds": last.seconds}
    if last.role in TRAINING:
        allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
        losses = [loss for loss in last.losses if loss is not None]
        figures["loss"] = sum(losses) / len(losses)
        figures["memory_bytes"] = allocated or peaks(torch.device("cpu")).rss_peak_bytes
    pulse.news(**figures)


def _refuse_not_finite(record: StepRecord) -> None:
    """Raise StepNotFiniteError for a step whose loss, or a gradient that was not skipped, is not finite."""
    if None not in record.losses and (not record.not_finite or record.skipped):
        return
    what = "the loss" if None in record.losses else "a gradient"
    first = f": first {record.not_finite}" if record.not_finite else ""
    if None in record.losses and first.startswith(": first the gradient"):
        first = ""  # it follows from the loss, whatever made that
    raise StepNotFiniteError(
        f"{what} of step {record.step} is not finite{first}",
        hint="lower --lr, warm it up with --lr-warmup-steps, or clip with --clip-norm 1",
    )

"""The part of the summary that says what was learnt: losses, gradient norms, held-out quality."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..records import EventRecord
from .load import Run
from .reasons import Null

OWN_NORM = "a job's own loop does not tell its gradients' norms"
OWN_METRIC = "a job's own loop does not tell what its evaluations gave"


def loss(run: Run) -> list[float | None] | None:
    """Mean over ranks and micro-batches, a number for each step that every rank finished, from the first warm-up."""
    sums, counts = (run.trained([rank.steps.losses[part] for rank in run.ranks]).sum(axis=0) for part in (0, 1))
    return _numbers(np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0))


def losses_not_finite(run: Run) -> int:
    """Steps that every rank finished, warm-up included, in which some rank's loss was not finite."""
    sums, counts = (run.trained([rank.steps.losses[part] for rank in run.ranks]) for part in (0, 1))
    return int((np.isnan(sums) & (counts > 0)).any(axis=0).sum())


def grad_norm(run: Run, null: Null) -> list[float | None] | None:
    """Global norm before clipping: a sum of squares that k ranks hold alike counts for 1 / k on each."""
    if not run.run_json["config"]["record_grad_norm"]:
        null("grad_norm", OWN_NORM if run.own_loop else "not recorded; --record-grad-norm records it")
        return None
    squares, replicas = (
        run.trained([rank.steps.numbers[name] for rank in run.ranks]) for name in ("grad_square_sum", "grad_replicas")
    )
    norms = _numbers(np.sqrt((squares / np.where(replicas > 0, replicas, np.nan)).sum(axis=0)))
    if norms is None:
        null("grad_norm", run.why_no_step)
    return None if norms is None else norms[: run.run_json["config"].get("grad_norm_steps")]


def _numbers(values: np.ndarray) -> list[float | None] | None:
    """Null for what is NaN; None for no steps."""
    return [None if math.isnan(value) else value for value in values.tolist()] or None


def quality(run: Run, null: Null) -> dict[str, Any]:
    """The best of the held-out metric over evaluations, and when the target was first met on rank 0's timeline:
    from the first step's begin to the end of that evaluation. Its cost is added where prices are known."""
    evaluations = [event for event in run.ranks[0].events if event.event == "evaluation"] if run.ranks else []
    target = run.run_json["target"]
    metric = target["metric"] if target else "ap_mean"
    scores = [(event, event.values.get(metric)) for event in evaluations]
    known = [(event, score) for event, score in scores if score is not None]
    found = {"metric": metric, "best": None, "seconds_to_target": None, "usd_to_target": None}
    if not known:
        why = "no evaluation gave a metric; --eval-every N evaluates on held-out scenes"
        null("quality.metric", OWN_METRIC if run.own_loop else why)
        null("quality.best", reason := OWN_METRIC if run.own_loop else "no evaluation gave a metric")
        null("quality.seconds_to_target", reason)
        return {**found, "metric": None}
    found["best"] = max(score for _, score in known)
    met = [event for event, score in known if target and score >= target["value"]]
    if met:
        found["seconds_to_target"] = _ended(met[0])
    else:
        null("quality.seconds_to_target", "the target was not met" if target else "no --target was given")
    return found


def _ended(event: EventRecord) -> float:
    return event.start_seconds + event.seconds

"""The part of the summary that says what was learnt: losses, gradient norms, held-out quality."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..records import EventRecord, StepRecord
from .load import Run
from .reasons import Null


def loss(run: Run) -> list[float | None] | None:
    """Mean over ranks and micro-batches, a number for each step that every rank finished, from the first warm-up."""
    return _by_step(run, lambda steps: _mean([loss for step in steps for loss in step.losses]))


def grad_norm(run: Run, null: Null) -> list[float | None] | None:
    """Global norm before clipping: a sum of squares that k ranks hold alike counts for 1 / k on each."""

    def norm(steps: list[StepRecord]) -> float | None:
        parts = [(step.grad_square_sum, step.grad_replicas) for step in steps]
        shares = [square / replicas for square, replicas in parts if square is not None and replicas]
        return math.sqrt(sum(shares)) if len(shares) == len(parts) else None

    if not run.run_json["config"]["record_grad_norm"]:
        null("grad_norm", "not recorded; --record-grad-norm records it")
        return None
    return _by_step(run, norm)


def _by_step(run: Run, value: Callable[[list[StepRecord]], float | None]) -> list[float | None] | None:
    by_rank = [{step.step: step for step in rank.steps} for rank in run.ranks]
    common = sorted(set.intersection(*(set(steps) for steps in by_rank))) if by_rank else []
    return [value([steps[index] for steps in by_rank]) for index in common] or None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


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
        null("quality.metric", "no evaluation gave a metric; --eval-every N evaluates on held-out scenes")
        null("quality.best", reason := "no evaluation gave a metric")
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

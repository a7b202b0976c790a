"""Ranks get unequal work: a rank's own time follows what its batches hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Headroom, Remedy
from ._contract import Rule


@dataclass(frozen=True)
class _Fit:
    """Own time per element of what batches hold, with its 95 % interval, and what that makes of each rank's excess."""

    name: str
    held: np.ndarray
    slope: float
    low: float
    high: float
    correlation: float
    between_ranks: bool

    @property
    def more(self) -> np.ndarray:
        """How much more than the ranks' mean a rank's batch holds, by step."""
        return self.held - self.held.mean(axis=0)


def find(facts: Facts) -> Answer:
    held = facts.held
    if held is None:
        return CannotTell(
            label="data_imbalance",
            lacks="what the ranks' batches held",
            rerun="the model under scalelab run" if facts.own_loop else "the run again to its end",
            matters=False,
        )
    # What others on its core take of a rank's time follows nothing that its batch holds.
    own = facts.own["forward"] + facts.own["backward"]
    if facts.device == "cpu" and facts.run_delay is not None:
        own = own - facts.run_delay
    fits = [fit for name, values in held.items() if (fit := _fit(name, values, own, facts)) is not None]
    if not fits:
        return None
    best = max(fits, key=lambda fit: fit.slope * float(np.abs(fit.more).mean()))
    parts = {name: facts.own[name] / np.maximum(facts.own["forward"] + facts.own["backward"], 1e-12) for name in
             ("forward", "backward")}  # fmt: skip

    def removed(slope: float) -> dict[str, np.ndarray]:
        return {name: slope * best.more * part for name, part in parts.items()}

    headroom, low, high = (facts.headroom(removed(slope)) for slope in (best.slope, best.low, best.high))
    ci95 = None
    if low.ci95 is not None and high.ci95 is not None:
        ci95 = min(low.ci95[0], high.ci95[0]), max(low.ci95[1], high.ci95[1])
    return Finding(
        label="data_imbalance",
        evidence=_evidence(facts, best),
        remedy=Remedy(
            says="give ranks like amounts of work: batch samples of like length together (a length-grouped sampler), "
            "or bound what a batch may hold by its elements, not its samples"
        ),
        headroom=Headroom(
            seconds=headroom.seconds,
            ci95=ci95,
            method=f"own time by {best.name} of a batch, evened out over ranks step by step",
        ),
        removed=removed(best.slope),
    )


def _fit(name: str, held: np.ndarray, own: np.ndarray, facts: Facts) -> _Fit | None:
    """Own time on what a batch holds: within ranks, from step to step; where that hardly varies, between ranks."""
    limits = facts.limits
    mean = float(held.mean())
    if mean <= 0 or float(np.abs(held - held.mean(axis=0)).mean()) < limits.held_spread * mean:
        return None
    x, y = held - held.mean(axis=1, keepdims=True), own - own.mean(axis=1, keepdims=True)
    if float(x.std()) >= limits.held_spread * mean:
        slope = float((x * y).sum() / (x * x).sum())
        degrees = x.size - len(x) - 1
        error = float(np.sqrt(((y - slope * x) ** 2).sum() / degrees / (x * x).sum()))
        correlation = float((x * y).sum() / np.sqrt((x * x).sum() * max((y * y).sum(), 1e-30)))
        if slope - 2 * error <= 0 or correlation < limits.held_correlation:
            return None
        return _Fit(name, held, slope, slope - 2 * error, slope + 2 * error, correlation, between_ranks=False)
    x, y = held.mean(axis=1) - mean, own.mean(axis=1) - own.mean()
    slope = float((x * y).sum() / (x * x).sum())
    # What a batch holds cannot cost more than in proportion: more than that is the rank's, not the data's.
    proportional, wide = float(own.mean()) / mean, limits.proportional
    if not 0 < slope <= limits.proportional * proportional:
        return None
    correlation = float((x * y).sum() / np.sqrt((x * x).sum() * max((y * y).sum(), 1e-30)))
    if correlation < limits.held_correlation:
        return None
    return _Fit(name, held, slope, (2 - wide) * slope, wide * slope, correlation, between_ranks=True)


def _evidence(facts: Facts, fit: _Fit) -> tuple[Evidence, ...]:
    means = facts.ranks_by(fit.held.mean(axis=1))
    (most, high), (least, low) = means[0], means[-1]
    ratio = float(np.median(fit.held.max(axis=0) / np.maximum(fit.held.min(axis=0), 1)))
    how = "between ranks" if fit.between_ranks else "from step to step"
    return (
        Evidence(
            says=f"in a step the fullest batch holds {ratio:.2f} times the {fit.name} of the emptiest (median); rank "
            f"{most} has {high / max(low, 1):.2f} times what rank {least} has",
            values={"what": fit.name, "most_over_least": ratio, "rank_most": most, "rank_least": least},
        ),
        Evidence(
            says=f"own time of forward and backward follows it {how} (correlation {fit.correlation:.2f}): "
            f"{milliseconds(fit.slope * 1000)} per thousand",
            values={"correlation": fit.correlation, "seconds_per_element": fit.slope},
        ),
    )


rule = Rule(
    label="data_imbalance",
    devices=("cpu", "cuda"),
    least_ranks=2,
    find=find,
    explains=("straggler_rank",),
)

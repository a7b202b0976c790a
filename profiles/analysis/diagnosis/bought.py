"""What a change has bought: runs with it held against runs without, made in turn, as plain data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ...runfolder import RunFolder
from ..alike import unlike
from ..between import Difference, student_t
from ..compared import ComparedRun, Side
from ..comparison import compare
from ..effects import Against
from ..load import Run, load_run
from ..verdict import CONFIDENCE, MARGIN, MOST_REPEATS, ratio_effect, repeats_needed
from .host import core_use
from .thresholds import LIMITS

_WORDS = {"higher": "slower", "lower": "faster", "no change": "no change", "cannot tell": "cannot tell"}
# Steps whose mean loss is held against the other side's: one step's says little.
LOSS_SHARE = 0.2
# A change that trains as well: its loss is surely less than this share higher.
WORSE = 0.05


def bought(
    before: Side,
    after: Side,
    label: str,
    options: Mapping[str, Any],
    share: float | None,
    ci95: tuple[float, float] | None,
) -> dict[str, Any]:
    """`saved_share` of a step's time (of a sample's, where batches differ) with its 95 % interval between runs and the
    verdict: `faster`, `slower`, `no change`, `cannot tell`. Counted with what lies between steps, where that is known.
    `cause_share` is what removing the cause altogether was said to buy; `against_said`, whether the change surely
    bought `more` or `less` of a step. `crowded`: others kept enough of the cores busy to matter. `learns`: where the
    batch or the precision was changed, whether the loss got as far. `reasons` of nulls."""
    held = compare(before, after)
    reasons: dict[str, str] = {}
    took, counts = _time(before, after, held["per"])
    effect, needed = ratio_effect(took), None if took.spread is None else repeats_needed(took.spread)
    verdict = _WORDS[effect.word]
    if effect.ci95 is None:
        reasons["ci95"] = "one run a side has no spread"
    if needed is None:
        reasons["needed"] = reasons.get("ci95", f"more than {MOST_REPEATS} runs a side")
    decides = bool({"different-batch", "different-precision"} & set(unlike(before.runs[0], after.runs[0])))
    learns, losses = None, held["loss"]
    if decides:
        learns = _learns(before.runs, after.runs, reasons)
    else:
        reasons["learns"] = "the change decides neither batch nor precision"
        if losses is not None and losses["verdict"] == "differs":
            verdict = "cannot tell"
            reasons["verdict"] = (
                f"with it the run trains something else: losses differ from step {losses['first_apart']} on"
            )
    crowd = others_cores_share([load_run(RunFolder(run.path)) for side in (before, after) for run in side.runs])
    if crowd is None:
        reasons["others_cores_share"] = "the hosts of these runs were not read often enough"
    saved = None if effect.ci95 is None else (-effect.ci95[1], -effect.ci95[0])
    if share is None:
        reasons["cause_share"] = "it was no matter of time"
    return {
        "label": label,
        "options": dict(options),
        "verdict": verdict,
        "per": held["per"],
        "counts": counts,
        "saved_share": -effect.effect,
        "ci95": None if saved is None else list(saved),
        "cause_share": share,
        "cause_ci95": None if ci95 is None else list(ci95),
        "against_said": against_said(saved, ci95) if held["per"] == "step" else None,
        "rounds": min(len(before.runs), len(after.runs)),
        "needed": needed,
        "others_cores_share": crowd,
        "crowded": crowd is not None and crowd >= LIMITS.others_cores_share,
        "peak_memory": _peak_memory(before.runs, after.runs, reasons),
        "decides_learning": decides,
        "learns": learns,
        "runs": {"before": [run.name for run in before.runs], "after": [run.name for run in after.runs]},
        "reasons": reasons,
    }


def against_said(saved: tuple[float, float] | None, said: tuple[float, float] | None) -> Literal["more", "less"] | None:
    """Whether a change bought `more` or `less` than was said, by intervals that have no value in common."""
    if saved is None or said is None:
        return None
    return "more" if saved[0] > said[1] else "less" if saved[1] < said[0] else None


def others_cores_share(runs: Sequence[Run]) -> float | None:
    """How much of the cores others kept busy while these ran, the mean over runs: the noise that rounds fight. None
    where no run's hosts tell."""
    known = [uses for run in runs if (uses := core_use(run)) is not None]
    shares = [sum(use.others + use.stolen for use in uses) / sum(use.cores for use in uses) for uses in known]
    return float(np.mean(shares)) if shares else None


def _time(before: Side, after: Side, per: str) -> tuple[Difference, str]:
    """The difference of logarithms of both sides' time a step or a sample, and what is counted in it."""
    against = Against(before, after, None, MARGIN, "")
    whole = "seconds_per_step" if per == "step" else "device_hours_per_million_samples"
    if (found := against.of(f"cost.by_cause_total.{whole}")) is not None:
        return found, "steps and what lies between them"
    alone = "step_seconds.mean" if per == "step" else "cost.device_hours_per_million_samples"
    found = against.of(alone)
    assert found is not None, "a run without a step is not compared, nor a batch that is not known per sample"
    return found, "steps alone"


def _peak_memory(
    before: Sequence[ComparedRun], after: Sequence[ComparedRun], reasons: dict[str, str]
) -> dict[str, Any] | None:
    """The highest of any rank, mean over runs: of the allocator where there is one, else of the whole process."""
    for name in ("peak_bytes", "rss_peak_bytes"):
        sides = [[run.summary["memory"][name] for run in runs] for runs in (before, after)]
        if all(value is not None for values in sides for value in values):
            means = [float(np.mean(values)) for values in sides]
            return {"of": name, "before_bytes": means[0], "after_bytes": means[1]}
    reasons["peak_memory"] = "not every run ended in order"
    return None


def _learns(
    before: Sequence[ComparedRun], after: Sequence[ComparedRun], reasons: dict[str, str]
) -> dict[str, Any] | None:
    """The loss that both sides have come to after as many samples, and how much higher it is with the change. A round
    has the same seed on both sides, and another than the others."""
    others = {run.round: run for run in after}
    pairs = [(run, others[run.round]) for run in before if run.round in others]
    losses = [_after_samples(a, b) for a, b in pairs]
    known = [pair for pair in losses if pair is not None]
    if not known or len(known) < len(losses):
        reasons["learns"] = "losses after equal numbers of samples are not known of every run"
        return None
    ratios = np.log([b / a for a, b, _ in known])
    mean = float(ratios.mean())
    interval = None
    if len(ratios) > 1:
        half = student_t(len(ratios) - 1, CONFIDENCE) * float(ratios.std(ddof=1)) / math.sqrt(len(ratios))
        interval = [math.expm1(mean - half), math.expm1(mean + half)]
    else:
        reasons["learns.ci95"] = "one run a side has no spread"
    verdict = "cannot tell"
    if interval is not None and interval[1] < WORSE:
        verdict = "as well"
    elif interval is not None and interval[0] > 0:
        verdict = "worse"
    return {
        "verdict": verdict,
        "samples": known[0][2],
        "loss_before": float(np.mean([a for a, _, _ in known])),
        "loss_after": float(np.mean([b for _, b, _ in known])),
        "higher_share": math.expm1(mean),
        "ci95": interval,
        "margin": WORSE,
    }


def _after_samples(a: ComparedRun, b: ComparedRun) -> tuple[float, float, int] | None:
    """Mean losses of both over the last LOSS_SHARE of as many samples, which both had; None where one is not known or
    not positive, so that no ratio can be told."""
    batches = [run.facts["config"].get("global_batch") for run in (a, b)]
    series = [run.summary["loss"] for run in (a, b)]
    if not all(batches) or not all(series):
        return None
    both = math.lcm(*batches)
    samples = min(batch * len(each) for batch, each in zip(batches, series, strict=True)) // both * both
    means = []
    for batch, each in zip(batches, series, strict=True):
        end = samples // batch
        part = list(itertools.islice(each, max(0, end - max(1, round(LOSS_SHARE * end))), end))
        if not part or any(value is None for value in part) or not (mean := sum(part) / len(part)) > 0:
            return None
        means.append(mean)
    return means[0], means[1], samples

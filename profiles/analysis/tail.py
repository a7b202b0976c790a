"""What the tail of a run says: what a step saves when a cause is taken away, and what measuring costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..records import BlockRecord, Cause
from .load import Run
from .reasons import Null
from .statistics import moving_blocks

BARE: Cause = "bare"


@dataclass(frozen=True)
class Saving:
    """Seconds a step is shorter without a cause, the 95 % interval of that, and the step with the cause."""

    seconds: float
    ci95: tuple[float, float]
    step_seconds: float


def counterfactual(run: Run, null: Null) -> dict[str, Any] | None:
    """The headroom of each cause that was taken away."""
    if not run.run_json["config"].get("counterfactual"):
        null("counterfactual", "no counterfactual tail was run; --counterfactual runs one")
        return None
    found = {cause: row for cause, row in savings(run).items() if cause != BARE}
    if not found:
        null("counterfactual", "the run ended before its counterfactual tail was complete")
        return None
    return {cause: {"headroom_seconds": row.seconds, "ci95": list(row.ci95)} for cause, row in found.items()}


def overhead(run: Run, null: Null) -> dict[str, Any] | None:
    """The share of the bare step that measuring adds: blocks of the tail with the probe against blocks without."""
    row = savings(run).get(BARE)
    if row is None:
        null("overhead", "the cost of measuring is measured in the tail of a run; --counterfactual runs one")
        return None
    bare = row.step_seconds - row.seconds
    return {
        "share_of_step": row.seconds / bare,
        "ci95": [row.ci95[0] / bare, row.ci95[1] / bare],
        "method": "blocks of steps with and without the probe, in turn; collectives go through the recording group in "
        "both, which alone costs some 15 us each",
    }


def savings(run: Run) -> dict[Cause, Saving]:
    """By cause. In each round, two blocks without the cause lie between two with it: means over ranks, step by step."""
    blocks = _mean_over_ranks([rank.blocks for rank in run.ranks])
    pairs: dict[Cause, list[tuple[np.ndarray, np.ndarray]]] = {}
    for index in range(1, len(blocks) - 2):
        (cause, first), (_, second) = blocks[index], blocks[index + 1]
        before, after = blocks[index - 1], blocks[index + 2]
        if cause is not None and before[0] is None and after[0] is None and blocks[index + 1][0] == cause:
            pairs.setdefault(cause, []).append((_joined(before[1], after[1]), _joined(first, second)))
    return {cause: _saving(rounds) for cause, rounds in pairs.items()}


def _mean_over_ranks(ranks: Sequence[Sequence[BlockRecord]]) -> list[tuple[Cause | None, np.ndarray]]:
    """The blocks that every rank ran, each as its steps' seconds, the first ones dropped."""
    found = []
    for alike in zip(*ranks, strict=False):
        if len({(block.cause, block.round, block.dropped, len(block.step_seconds)) for block in alike}) > 1:
            break
        steps = np.mean([block.step_seconds for block in alike], axis=0)
        found.append((alike[0].cause, steps[alike[0].dropped :]))
    return found


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.stack([first, second])


def _saving(rounds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Saving:
    """The mean difference over rounds, and its bootstrap: the steps of each block are drawn again by moving blocks."""
    differences = [float(with_cause.mean() - without.mean()) for with_cause, without in rounds]
    drawn = np.mean(
        [
            _drawn_means(with_cause, seed=4 * number) - _drawn_means(without, seed=4 * number + 2)
            for number, (with_cause, without) in enumerate(rounds)
        ],
        axis=0,
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    step = float(np.mean([with_cause.mean() for with_cause, _ in rounds]))
    return Saving(float(np.mean(differences)), (float(low), float(high)), step)


def _drawn_means(pair: np.ndarray, seed: int) -> np.ndarray:
    return np.mean([moving_blocks(block, seed + index).mean(axis=1) for index, block in enumerate(pair)], axis=0)

"""What the tail of a run says: what a step saves when a cause is taken away, and what measuring costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..records import BlockRecord, Cause
from .load import Run
from .reasons import Null

BARE: Cause = "bare"
PASSED_TWICE: Cause = "passed_twice"
NO_TAIL = "a job's own loop has no tail of blocks with and without a cause"


@dataclass(frozen=True)
class Saving:
    """How much shorter a step is without a cause, in seconds, by pair of blocks, and the step with the cause."""

    differences: np.ndarray
    step_seconds: float

    @property
    def seconds(self) -> float:
        return float(self.differences.mean())

    @property
    def ci95(self) -> tuple[float, float]:
        """The 95 % interval of the mean: Student's. Blocks are the unit, not steps: what moves a whole block, the
        machine's other work or where memory lies, would be taken for certain otherwise."""
        from scipy import stats  # half a second to import: for those who ran a tail

        count = len(self.differences)
        half = float(stats.t.ppf(0.975, count - 1)) * float(stats.sem(self.differences))
        return self.seconds - half, self.seconds + half


def counterfactual(run: Run, null: Null) -> dict[str, Any] | None:
    """The headroom of each cause that was taken away."""
    if not run.run_json["config"].get("counterfactual"):
        why = "no counterfactual tail was run; --counterfactual runs one"
        null("counterfactual", NO_TAIL if run.own_loop else why)
        return None
    found = {cause: row for cause, row in savings(run).items() if cause not in (BARE, PASSED_TWICE)}
    if not found:
        null("counterfactual", "the run ended before its counterfactual tail was complete")
        return None
    return {cause: {"headroom_seconds": row.seconds, "ci95": list(row.ci95)} for cause, row in found.items()}


def overhead(run: Run, null: Null) -> dict[str, Any] | None:
    """The share of the bare step that measuring adds: blocks of the tail with the probe against blocks without."""
    found = savings(run)
    if (row := found.get(BARE)) is None:
        why = "the cost of measuring is measured in the tail of a run; --counterfactual runs one"
        if run.run_json["config"].get("counterfactual"):
            why = "the run ended before its counterfactual tail was complete"
        null("overhead", NO_TAIL if run.own_loop else why)
        return None
    method = METHOD
    bare = row.step_seconds - row.seconds
    if (twice := found.get(PASSED_TWICE)) is not None:
        # A bare step still has one way through Python; one more costs what that one does.
        count = min(len(row.differences), len(twice.differences))
        passing = row.differences[:count] - twice.differences[:count]
        row = Saving(row.differences[:count] + passing, row.step_seconds)
        bare -= float(passing.mean())
        method += PASSING
    timed = [block.call_seconds for rank in run.ranks for block in rank.blocks if block.call_seconds is not None]
    if not timed:
        null("overhead.calls_share_of_step", "the run ended before a block whose calls of the probe are timed")
    return {
        "share_of_step": row.seconds / bare,
        "ci95": [row.ci95[0] / bare, row.ci95[1] / bare],
        "calls_share_of_step": float(np.mean(timed)) / bare if timed else None,
        "method": method,
    }


METHOD = (
    "blocks of steps with the probe, its hooks and the recording group, and without all of them, in turn; beside it "
    "the time in the probe's own calls, in blocks in which those are timed: without the hooks, the group, and what "
    "measuring does to caches and memory; noting the shapes of measured micro-batches, for their operations, is in "
    "neither"
)
PASSING = (
    "; what autograd's engine sends comes by Python in a bare step too, which is counted by blocks in which it does so "
    "twice"
)


def savings(run: Run) -> dict[Cause, Saving]:
    """By cause. In each round, two blocks without the cause lie between two with it: means over ranks, step by step."""
    blocks = _mean_over_ranks([rank.blocks for rank in run.ranks])
    rounds: dict[Cause, list[tuple[list[np.ndarray], list[np.ndarray]]]] = {}
    for index in range(1, len(blocks) - 2):
        (cause, first), (_, second) = blocks[index], blocks[index + 1]
        before, after = blocks[index - 1], blocks[index + 2]
        if cause is not None and before[0] is None and after[0] is None and blocks[index + 1][0] == cause:
            rounds.setdefault(cause, []).append(([before[1], after[1]], [first, second]))
    return {cause: _saving(found) for cause, found in rounds.items()}


def _mean_over_ranks(ranks: Sequence[Sequence[BlockRecord]]) -> list[tuple[Cause | None, np.ndarray]]:
    """The blocks that every rank ran, each as its steps' seconds, the first ones dropped."""
    found = []
    for alike in zip(*ranks, strict=False):
        if len({(block.cause, block.round, block.dropped, len(block.step_seconds)) for block in alike}) > 1:
            break
        steps = np.mean([block.step_seconds for block in alike], axis=0)
        found.append((alike[0].cause, steps[alike[0].dropped :]))
    return found


def _saving(rounds: Sequence[tuple[list[np.ndarray], list[np.ndarray]]]) -> Saving:
    """Each half of a round, A B or B A, gives one difference."""
    pairs = [pair for with_cause, without in rounds for pair in zip(with_cause, without, strict=True)]
    differences = np.array([with_cause.mean() - without.mean() for with_cause, without in pairs])
    return Saving(differences, float(np.mean([with_cause.mean() for with_cause, _ in pairs])))

"""Why no rank is called late: the criterion that its excess did not meet, by name."""

from __future__ import annotations

import numpy as np
import pytest
from scalelab.profiles.analysis.communication import communication
from scalelab.profiles.analysis.load import Run
from scalelab.profiles.analysis.straggler import Straggler, find_straggler

from tests.profiles.diagnosis.made import STEPS, made

NOISE = np.random.default_rng(2).standard_normal(STEPS)


def found(run: Run) -> Straggler | str:
    known = communication(run)
    assert known.exposed is not None
    assert known.split is not None
    return find_straggler(run, known.exposed, known.split.last)


def late(mean: float, spread: float) -> Run:
    """Rank 1 in forward, by `mean` seconds on average, more or less by `spread`; rank 0 where that is below 0."""

    def extra(rank: int, step: int, name: str) -> float:
        more = mean + spread * float(NOISE[step] - NOISE.mean())
        return 0.0 if name != "forward" else max(more, 0.0) if rank else max(-more, 0.0)

    return made(extra=extra)


@pytest.mark.parametrize(
    ("mean", "spread", "says"),
    [
        (0.002, 0.0, "not more than 5%"),
        (0.02, 0.2, "includes 0"),
        (0.008, 0.015, "begins below 5%"),
    ],
)
def test_the_criterion_that_was_not_met_is_named(mean: float, spread: float, says: str) -> None:
    told = found(late(mean, spread))
    assert isinstance(told, str)
    assert "no rank is late: rank 1" in told
    assert says in told


def test_a_rank_that_comes_last_now_and_then_is_not_late() -> None:
    """However long it takes then."""
    told = found(made(extra=lambda rank, step, name: 0.5 * (rank == 1 and step % 3 == 0 and name == "forward")))
    assert isinstance(told, str)
    assert isinstance(found(made(extra=lambda rank, step, name: 0.05 * rank * (name == "forward"))), Straggler)
    assert "last in only" in told

"""Seconds that two causes take: counted once, and both causes named."""

from __future__ import annotations

from typing import Any

import pytest
from scalelab.profiles.analysis.load import Run

from tests.profiles.diagnosis.made import made, readings, told


def waiting_for_cores(delays: tuple[float, float], slower: float = 0.0) -> Run:
    """Two ranks that wait so long for a core in forward, the second of which is `slower` in backward besides."""

    def extra(rank: int, step: int, name: str) -> float:
        return delays[rank] if name == "forward" else slower * rank if name == "backward" else 0.0

    return made(
        extra=extra,
        hosts=readings(others=2.0),
        fields=lambda rank, step: {"run_delay_seconds": delays[rank]},
    )


def rows(run: Run) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in told(run)["findings"]}


def test_a_late_rank_that_waits_for_cores_like_the_others_is_still_late() -> None:
    """Contention explains no more of it than that rank waited longer than the others did."""
    found = rows(waiting_for_cores((0.15, 0.15), slower=0.08))
    assert found["cpu_contention"]["counts"]
    assert found["straggler_rank"]["counts"]
    assert found["straggler_rank"]["headroom_seconds"] == pytest.approx(0.08, rel=0.1)
    some = rows(waiting_for_cores((0.15, 0.19), slower=0.08))
    assert some["straggler_rank"]["headroom_seconds"] == pytest.approx(0.08, rel=0.1)
    assert some["straggler_rank"]["counted_under"] == ["cpu_contention"]


def test_a_cause_that_another_takes_whole_is_named_with_it() -> None:
    """A rank that is late because it waits for a core: measured, and counted under contention."""
    found = told(waiting_for_cores((0.0, 0.08)))
    assert found["verdict"]["label"] == "cpu_contention"
    late = next(row for row in found["findings"] if row["label"] == "straggler_rank")
    assert not late["counts"]
    assert late["counted_under"] == ["cpu_contention"]
    assert late["alone_share"] > 0.15
    assert "counted under cpu_contention" in late["method"]


def test_ranks_that_wait_by_turns_beside_contention_are_told_and_decide_nothing() -> None:
    """Why they wait may be the contention: that is said, and not left out."""
    run = made(
        extra=lambda rank, step, name: 0.08 + 0.08 * (step % 2 == rank) if name == "forward" else 0.0,
        hosts=readings(others=2.0),
        fields=lambda rank, step: {"run_delay_seconds": 0.08},
    )
    found = told(run)
    assert found["verdict"]["label"] == "cpu_contention"
    lack = next(each for each in found["cannot_tell"] if each["label"] == "straggler_rank")
    assert not lack["matters"]
    assert "cpu_contention" in lack["rerun"]

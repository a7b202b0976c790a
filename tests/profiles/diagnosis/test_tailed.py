"""What the tail of a run says of a cause, beside what the breakdown of its steps measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from scalelab.profiles.analysis.load import Run
from scalelab.profiles.records import BlockRecord, Cause

from tests.profiles.diagnosis.made import made, readings, told

SMALL = [1 << 12] * 200


def blocks(cause: Cause, step: float, saves: Sequence[float]) -> list[BlockRecord]:
    """A round A B B A for each two of `saves`: what one block without `cause` saves of a step."""
    found = []
    for number in range(len(saves) // 2):
        for without in (None, saves[2 * number], saves[2 * number + 1], None):
            seconds = step if without is None else step - without
            taken = None if without is None else cause
            found.append(BlockRecord(round=number, cause=taken, dropped=0, step_seconds=[seconds] * 5))
    return found


def tailed(cause: Cause, saves: Sequence[float], **more: Any) -> Run:
    return made(config={"counterfactual": True}, blocks=blocks(cause, 0.15, saves), **more)


def row(found: dict[str, Any], label: str) -> dict[str, Any] | None:
    return next((each for each in found["findings"] if each["label"] == label), None)


def test_a_tail_too_noisy_to_tell_erases_nothing_that_the_breakdown_measured() -> None:
    """Its blocks differ by more than a step's share that is looked for: the breakdown's number with its interval."""
    found = told(tailed("free_wire", [-0.1, 0.08, -0.06, 0.04], wire_seconds=0.05, sizes=SMALL))
    assert found["verdict"]["label"] == "comm_latency"
    assert found["verdict"]["headroom_seconds"] == pytest.approx(0.04, rel=0.1)  # 0.8 of it is the calls'
    assert "too noisy, 4 blocks" in found["findings"][0]["method"]
    assert not found["findings"][0]["by_tail"]


def test_a_tail_that_tells_overrules_the_breakdown() -> None:
    found = told(tailed("free_wire", [0.001, 0.002, 0.001, 0.002], wire_seconds=0.05, sizes=SMALL))
    assert found["verdict"]["label"] == "healthy"


def test_a_tail_with_no_more_than_noise_is_not_listed() -> None:
    """6 % with 0 nearly in its interval, of a wait that the breakdown does not know."""
    found = told(tailed("cached_batch", [0.0005, 0.0105, 0.0005, 0.0105]))
    assert row(found, "input_bound") is None


def test_shares_that_may_overlap_are_named() -> None:
    """A tail that saves more than what the wire takes in a step has freed cores for others: that may be counted twice.
    Within the breakdown each second is counted once."""
    crowded: dict[str, Any] = {
        "extra": lambda rank, step, name: 0.06 if name == "forward" else 0.0,
        "hosts": readings(others=2.0),
        "fields": lambda rank, step: {"run_delay_seconds": 0.06},
    }
    found = told(tailed("free_wire", [0.11, 0.112, 0.11, 0.112], wire_seconds=0.05, sizes=SMALL, **crowded))
    assert row(found, "comm_latency") is not None
    assert "comm_latency" in found["overlap"]
    assert "together the shares say" in found["overlap"]
    alone = told(made(wire_seconds=0.05, sizes=SMALL, **crowded))
    assert alone["overlap"] is None
    assert sum(each["severity_share"] for each in alone["findings"]) <= 1

"""From storages to the summary: kinds that sum, a timeline that keeps extremes, the allocator's figures beside them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.capture.allocator import Allocator
from scalelab.profiles.capture.ledger import MOST_POINTS, Change, ledger
from scalelab.profiles.records import EndRecord, Record
from scalelab.profiles.used import (
    MEMORY_KINDS,
    AllocatorRecord,
    MemoryPeak,
    MemoryRecord,
    MemoryStepRecord,
    MemoryTimeline,
)

from tests.profiles.test_summary import explained, folder_with, run_json, silent, step

GIB = 2**30


def random_changes(count: int) -> list[Change]:
    """Storages that come and go, never more going than there are."""
    generator = np.random.default_rng(0)
    held = dict.fromkeys(MEMORY_KINDS, 0)
    changes = []
    for index in range(count):
        kind = MEMORY_KINDS[int(generator.integers(len(MEMORY_KINDS)))]
        delta = int(generator.integers(1, 1000))
        if generator.random() < 0.5 and held[kind]:
            delta = -int(generator.integers(1, held[kind] + 1))
        held[kind] += delta
        changes.append(Change(index * 1e-3, kind, delta, "forward", f"layer{index}"))
    return changes


@pytest.mark.parametrize("count", [0, 10, 20_000])
def test_a_timeline_keeps_the_highest_of_every_kind_and_the_peak(count: int) -> None:
    """However much is left out: maxima of kinds and of all together are there, and no more points than allowed."""
    before, changes = {"parameters": 500, "optimizer": 7}, random_changes(count)
    peak, timeline = ledger(before, changes)
    held = {kind: before.get(kind, 0) for kind in MEMORY_KINDS}
    highest, most = dict(held), sum(held.values())
    where = None
    for change in changes:
        held[change.kind] += change.delta
        highest[change.kind] = max(highest[change.kind], held[change.kind])
        if sum(held.values()) > most:
            most, where = sum(held.values()), change
    assert (peak.bytes, sum(peak.by_kind.values())) == (most, most)
    assert (peak.phase, peak.module) == ((where.phase, where.module) if where else (None, None))
    assert {kind: max(row) for kind, row in timeline.by_kind.items()} == highest
    assert max(map(sum, zip(*timeline.by_kind.values(), strict=True))) == most
    assert {kind: row[-1] for kind, row in timeline.by_kind.items()} == held
    assert len(timeline.seconds) <= min(MOST_POINTS, count + 1)
    assert timeline.seconds == sorted(timeline.seconds)


def test_a_kind_below_nothing_is_a_bug() -> None:
    """What was never there cannot go."""
    with pytest.raises(AssertionError, match="less than nothing"):
        ledger({}, [Change(0.0, "batch", 5, None, None), Change(0.1, "temporary", -5, None, None)])


def test_the_allocators_figures_of_a_step() -> None:
    """Peaks since the last step began, the highest of all before it, and the driver's count of the card."""
    peaks = iter([(5, 8), (4, 9), (2, 2), (3, 4)])
    now: tuple[int, int] = (0, 0)
    calls: list[str] = []

    def allocated(device: Any) -> int:
        nonlocal now
        now = next(peaks)
        return now[0]

    cuda = SimpleNamespace(
        max_memory_allocated=allocated,
        max_memory_reserved=lambda device: now[1],
        reset_peak_memory_stats=lambda device: calls.append("reset"),
        mem_get_info=lambda device: (70, 80),
        memory_reserved=lambda device: 4,
        memory_stats=lambda device: {"num_alloc_retries": 2},
    )
    allocator = Allocator(torch.device("cuda"), cuda)
    for _ in range(3):
        allocator.begin()
    assert allocator.end() == AllocatorRecord(
        allocated_peak_bytes=3,
        reserved_peak_bytes=4,
        earlier_allocated_peak_bytes=5,
        earlier_reserved_peak_bytes=9,
        reserved_bytes=4,
        driver_used_bytes=10,
        retries=2,
    )
    assert calls == ["reset"] * 3


def memory_step(peak_bytes: int, left: list[int], allocator: AllocatorRecord | None = None) -> MemoryStepRecord:
    by_kind = dict.fromkeys(MEMORY_KINDS, 0) | {"parameters": 100, "activations": peak_bytes - 100}
    return MemoryStepRecord(
        step=3,
        peak=MemoryPeak(bytes=peak_bytes, by_kind=by_kind, seconds=0.1, phase="backward", module="blocks.1"),
        timeline=MemoryTimeline(
            seconds=[0.0], phase=["backward"], by_kind={kind: [count] for kind, count in by_kind.items()}
        ),
        left_bytes=left,
        left_by="blocks.0",
        allocator=allocator,
    )


def summary_of(tmp_path: Path, steps: list[MemoryStepRecord], device: str = "cpu", **end: Any) -> dict[str, Any]:
    ranks: list[list[Record]] = [
        [
            step(0, 1.0),
            MemoryRecord(step=0, parameters_bytes=100, gradients_bytes=50, optimizer_bytes=200),
            record,
            EndRecord(rss_peak_bytes=1000, **end),
        ]
        for record in steps
    ]
    summary = summarise(load_run(folder_with(tmp_path, run_json(len(steps), device=device), *ranks)))
    for path in silent(summary["memory"], "memory"):
        assert explained(path, summary["reasons"]), path
    return summary


def test_kinds_and_timeline_are_the_worst_ranks(tmp_path: Path) -> None:
    """Peak, its instant, kinds that sum to it and the timeline of the rank that held most; each rank's own beside."""
    memory = summary_of(tmp_path, [memory_step(300, [4] * 4), memory_step(400, [4] * 4)])["memory"]
    assert memory["peak_bytes"] == sum(memory["by_kind"].values()) == 400
    assert memory["peak_at"] == {"phase": "backward", "module": "blocks.1", "seconds": 0.1}
    assert memory["timeline"]["rank"] == 1
    assert memory["timeline"]["by_kind"]["activations"] == [300]
    assert [row["peak_bytes"] for row in memory["per_rank"]] == [300, 400]
    assert memory["state"] == {"parameters": 100, "gradients": 50, "optimizer": 200}
    assert (memory["growth_bytes_per_step"], memory["growth_ci95"]) == (0.0, [0.0, 0.0])


def test_measured_state_stands_beside_the_law_of_the_same_rank(tmp_path: Path) -> None:
    """Rank 1 held most, by law it should have been rank 0: rank 1 is compared with its own law."""
    ranks: list[list[Record]] = [
        [step(0, 1.0), MemoryRecord(step=0, parameters_bytes=held, gradients_bytes=1, optimizer_bytes=1)]
        for held in (10, 20)
    ]
    law = {"ranks": [{"parameters": 30, "gradients": 1, "optimizer": 1}, {"parameters": 5, "gradients": 1}]}
    memory = summarise(load_run(folder_with(tmp_path, {**run_json(2), "law": law}, *ranks)))["memory"]
    assert (memory["state_rank"], memory["state"]["parameters"]) == (1, 20)
    assert memory["state_by_law"] == law["ranks"][1]


def test_growth_has_an_interval_and_a_place(tmp_path: Path) -> None:
    """A steady leak is certain, one step that left more is not; the rank that grows most is told."""
    steady = summary_of(tmp_path / "a", [memory_step(300, [4] * 4), memory_step(300, [10, 110, 210, 310])])["memory"]
    assert (steady["growth_bytes_per_step"], steady["growth_ci95"]) == (100.0, [100.0, 100.0])
    assert steady["growth_by"] == "blocks.0"
    once = summary_of(tmp_path / "b", [memory_step(300, [10, 10, 310, 310])])["memory"]
    assert once["growth_bytes_per_step"] == 100.0
    # Student's for three differences: 4.303 standard errors.
    assert once["growth_ci95"] == pytest.approx([100 - 430.3, 100 + 430.3], abs=0.1)
    assert once["growth_by"] is None
    short = summary_of(tmp_path / "c", [memory_step(300, [10, 110])])
    assert short["memory"]["growth_bytes_per_step"] is None
    assert "too few" in short["reasons"]["memory.growth_bytes_per_step"]


def test_on_cuda_the_rest_of_the_allocators_peak_is_shown(tmp_path: Path) -> None:
    """What was not seen storage by storage is `unaccounted`, what the driver counts beside torch has its own line."""
    figures = AllocatorRecord(
        allocated_peak_bytes=3 * GIB,
        reserved_peak_bytes=4 * GIB,
        earlier_allocated_peak_bytes=5 * GIB,
        earlier_reserved_peak_bytes=6 * GIB,
        reserved_bytes=4 * GIB,
        driver_used_bytes=7 * GIB,
        retries=2,
    )
    end = {"allocated_peak_bytes": 3 * GIB, "reserved_peak_bytes": 4 * GIB, "driver_used_bytes": 7 * GIB}
    memory = summary_of(tmp_path, [memory_step(2 * GIB, [4] * 4, figures)], device="cuda", **end)["memory"]
    assert memory["source"] == "allocator"
    assert memory["peak_bytes"] == sum(memory["by_kind"].values()) == 5 * GIB
    assert memory["by_kind"]["unaccounted"] == 3 * GIB
    assert memory["peak_at"] is None  # it was in another step than the one that was followed
    assert memory["non_torch_bytes"] == 3 * GIB
    assert (memory["fragmentation"], memory["alloc_retries"]) == (pytest.approx(1 / 6), 2)
    assert memory["per_rank"][0]["allocated_peak_bytes"] == 5 * GIB
    assert memory["reserved_bytes"] == 6 * GIB


def test_an_allocator_that_is_switched_off_says_nothing(tmp_path: Path) -> None:
    """PYTORCH_NO_CUDA_MEMORY_CACHING: its figures stay 0, which is no peak."""
    figures = AllocatorRecord(
        allocated_peak_bytes=0,
        reserved_peak_bytes=0,
        earlier_allocated_peak_bytes=0,
        earlier_reserved_peak_bytes=0,
        reserved_bytes=0,
        driver_used_bytes=7 * GIB,
        retries=0,
    )
    memory = summary_of(tmp_path, [memory_step(2 * GIB, [4] * 4, figures)], device="cuda")["memory"]
    assert (memory["peak_bytes"], memory["source"]) == (2 * GIB, "followed storages")
    assert (memory["fragmentation"], memory["reserved_bytes"], memory["alloc_retries"]) == (None, None, None)
    assert memory["per_rank"][0]["allocated_peak_bytes"] is None


def test_a_step_that_could_not_be_followed_says_why(tmp_path: Path) -> None:
    """Kinds are null with that reason; model state, counted in every run, stays."""
    summary = summary_of(tmp_path, [MemoryStepRecord(step=3, failed="a step failed: planted")])
    assert summary["memory"]["peak_at"] is None
    assert summary["reasons"]["memory.peak_at"] == "rank 0: a step failed: planted"
    assert summary["memory"]["by_kind"]["activations"] is None
    assert summary["memory"]["by_kind"]["parameters"] == 100

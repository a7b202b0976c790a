"""`scalelab sweep --best-batch`: the largest micro-batch of each cell, found once and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.launch.config import build
from scalelab.launch.errors import Exit
from scalelab.launch.supervision.interrupts import Interrupts
from scalelab.launch.sweep.best_batch import RESOLUTION, fitted, largest
from scalelab.launch.sweep.child import Ended, arguments
from scalelab.launch.sweep.opening import opened, refilled
from scalelab.launch.sweep.runner import Outcome, run_sweep
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.sweep import summarise_sweep
from scalelab.profiles.sweepfolder import SweepFolder

from tests.launch.test_sweep_runs import CPU, Fake, Silent, planned


@settings(deadline=None)
@given(start=st.integers(1, 20), most=st.integers(1, 5000), true=st.integers(0, 6000))
def test_the_largest_batch_is_found_to_within_its_resolution(start: int, most: int, true: int) -> None:
    """Never one that does not fit; a larger one by more than the resolution does not."""
    asked: list[int] = []

    def refuses(size: int) -> str | None:
        asked.append(size)
        return None if size <= true else "too large"

    found = largest(start, most, refuses)
    best = min(true, most)
    assert max(asked) <= most
    assert len(asked) <= 2 * 13 + 2
    if found.micro_batch is None:
        assert best == 0
    else:
        assert found.micro_batch <= best <= found.micro_batch * (1 + RESOLUTION) + 1


def test_best_batches_are_found_once_and_are_not_gated(tmp_path: Path) -> None:
    """Each cell has its own; trials of an earlier call count, and a cell that nothing fits is refused."""
    room = {"ddp": 11, "zero1": 24, "zero3": 0}

    class Trials(Fake):
        def __call__(self, given: Mapping[str, Any], **more: Any) -> Ended:
            fits = given["micro_batch"] <= room[given["strategy"]]
            self._code = lambda name: 0 if fits else 7
            return super().__call__(given, **more)

    argv = ("--strategies=ddp,zero1,zero3", "--best-batch", "--repeats=1")
    matrix, _, plan = planned(*argv)
    first, second = Trials(), Trials()
    with opened(tmp_path, plan, lambda text: None) as (folder, _):
        found = fitted(folder, matrix, CPU, None, Silent(), Interrupts(), first)
        assert fitted(folder, matrix, CPU, None, Silent(), Interrupts(), second) == found
    assert second.made == []
    cells_by_name = {each.cell.strategy: each.cell for each in found}
    assert {name: cells_by_name[name].micro_batch for name in ("ddp", "zero1")} == {"ddp": 11, "zero1": 24}
    assert "no micro-batch fits" in (cells_by_name["zero3"].refused or "")
    assert not any(cell.gated for cell in cells_by_name.values())
    assert all(given["steps"] == 1 for given in first.given.values())


def test_trials_of_cells_with_a_target_are_runs_that_can_be_made(tmp_path: Path) -> None:
    """A target needs evaluations, which a trial has none of."""
    argv = ("--strategies=ddp", "--best-batch", "--best-batch-max=4", "--target=ap_mean>=0.2", "--eval-every=2")
    matrix, _, plan = planned(*argv)
    make = Fake()
    with opened(tmp_path, plan, lambda text: None) as (folder, _):
        fitted(folder, matrix, CPU, 4, Silent(), Interrupts(), make)
    assert make.given
    for trial in make.given.values():
        build(trial)
        assert not any("--target" in each for each in arguments(trial))


def test_a_trial_that_fails_for_another_reason_than_memory_bounds_nothing(tmp_path: Path) -> None:
    """Its cell is failed with the cause and has no run, the sweep exits 10; the next call tries again."""

    class Trials(Fake):
        def __call__(self, given: Mapping[str, Any], **more: Any) -> Ended:
            broken = given["strategy"] == "ddp" and given["micro_batch"] > 8
            self._code = lambda name: 5 if broken else 0
            return super().__call__(given, **more)

    def call(trials: Fake) -> tuple[Fake, Outcome, SweepFolder]:
        matrix, _, plan = planned("--strategies=ddp,zero1", "--best-batch", "--repeats=1")
        runs = Fake()
        with opened(tmp_path, plan, lambda text: None) as (folder, plan):
            found = fitted(folder, matrix, CPU, 32, Silent(), Interrupts(), trials)
            plan = refilled(folder, plan, found)
            given = {each.cell.name: each.given for each in found}
            return runs, run_sweep(folder, plan, given, Silent(), Interrupts(), repeats=1, make=runs), folder

    runs, outcome, folder = call(Trials())
    assert runs.made == ["zero1-fp32-2ranks-r1"]
    assert outcome.exit_code == Exit.SOME_FAILED
    attempt = outcome.attempts["ddp-fp32-2ranks", 1]
    assert (attempt.exit_code, attempt.cause) == (5, "a trial of micro-batch 16 failed: x")
    cells_of = summarise_sweep(folder, Given(), {"cost_ratio": None, "usd_per_million_samples": None})["cells"]
    assert [(cell["state"], cell["why"]) for cell in cells_of if cell["strategy"] == "ddp"] == [
        ("failed", attempt.cause)
    ]
    runs, outcome, folder = call(Fake())
    assert (runs.made, outcome.exit_code) == (["ddp-fp32-2ranks-r1"], Exit.OK)
    assert {cell.micro_batch for cell in folder.plan().cells} == {32}


def test_repeats_of_a_cell_have_the_batch_that_its_first_had(tmp_path: Path) -> None:
    """Though less fits at the next call, and its trials are gone; without a run of that batch it is sought anew."""

    def call(room: int, repeats: int) -> tuple[Fake, Fake]:
        matrix, _, plan = planned("--strategies=ddp", "--best-batch", f"--repeats={repeats}")
        runs, trials = Fake(), Fake(code=lambda name: 7 * (int(name.rpartition("-b")[2]) > room))
        with opened(tmp_path, plan, lambda text: None) as (folder, plan):
            (folder.path / "trials.jsonl").unlink(missing_ok=True)
            found = fitted(folder, matrix, CPU, None, Silent(), Interrupts(), trials)
            given = {each.cell.name: each.given for each in found}
            plan = refilled(folder, plan, found)
            run_sweep(folder, plan, given, Silent(), Interrupts(), repeats=repeats, make=runs)
        return runs, trials

    call(24, 1)
    runs, trials = call(8, 3)
    assert (len(runs.made), trials.made) == (2, [])
    assert {given["micro_batch"] for given in runs.given.values()} == {24}
    for run in tmp_path.glob("sweep-*/*/run.json"):
        run.unlink()
    runs, _ = call(8, 3)
    assert (len(runs.made), {given["micro_batch"] for given in runs.given.values()}) == (3, {8})

"""The runs of a sweep: failures stop nothing, a second call makes what is missing, losses are held against DDP's."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.launch.devices import Devices
from scalelab.launch.errors import Exit
from scalelab.launch.lock import FolderInUse
from scalelab.launch.options import Options
from scalelab.launch.supervision.interrupts import Interrupts
from scalelab.launch.sweep.child import Ended
from scalelab.launch.sweep.gate import references
from scalelab.launch.sweep.matrix import Planned, cells
from scalelab.launch.sweep.opening import opened, plan_of
from scalelab.launch.sweep.options import SweepOptions, request
from scalelab.launch.sweep.runner import Outcome, expected_seconds, run_sweep
from scalelab.profiles.analysis.parity import PARITY
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.summary import write_summary
from scalelab.profiles.analysis.sweep import summarise_sweep
from scalelab.profiles.records import Record
from scalelab.profiles.runfolder import SchemaError
from scalelab.profiles.storage import OutputError
from scalelab.profiles.sweepfolder import Attempt, SweepFolder, SweepPlan

from tests.profiles.test_summary import folder_with, run_json, step

CPU = Devices("cpu", 0, "a processor", why_no_cuda="none here")


class Silent:
    """Shows nothing."""

    def begins(self, key: Any, number: int, total: int) -> None: ...
    def tick(self) -> None: ...
    def trial(self, cell: str, micro_batch: int, log: Path) -> None: ...
    def say(self, text: str) -> None: ...
    def ended(self, attempt: Attempt, number: int, total: int, left_seconds: float | None) -> None: ...
    def judged(self, attempt: Attempt) -> None: ...


class Killed(BaseException):
    """Ends a sweep where it stands, as kill -9 would."""


class Fake:
    """Makes run folders at once. `code` says how a run ends, `loss` what it trained, both by its name."""

    def __init__(
        self,
        code: Callable[[str], int] = lambda name: 0,
        loss: Callable[[str], float] = lambda name: 1.0,
        kill_at: int | None = None,
        signal_at: int | None = None,
    ) -> None:
        self.made: list[str] = []
        self.given: dict[str, dict[str, Any]] = {}
        self._code, self._loss, self._kill_at, self._signal_at = code, loss, kill_at, signal_at

    def __call__(
        self,
        given: Mapping[str, Any],
        *,
        out: Path,
        name: str,
        log: Path,
        interrupts: Interrupts,
        tick: Callable[[], None],
    ) -> Ended:
        if len(self.made) == self._kill_at:
            raise Killed
        self.made.append(name)
        self.given[name] = dict(given)
        if len(self.made) == self._signal_at:
            interrupts.signals.append(signal.SIGINT)
            return Ended(Exit.INTERRUPTED, "stopped by Ctrl-C", None, 1.0)
        code = self._code(name)
        if code == Exit.USAGE:
            return Ended(code, "refused", None, 0.5)
        rank: list[Record] = [
            step(i, 1.0, "warmup" if i < 5 else "measured", losses=[self._loss(name)]) for i in range(8)
        ]
        folder = folder_with(out, run_json(), rank, rank)
        folder.write("status.json", {"state": "finished" if not code else "failed", "exit_code": code, "cause": "x"})
        write_summary(folder)
        return Ended(code, "x" if code else None, folder, 2.0)


def planned(*argv: str) -> tuple[list[Planned], list[Planned], SweepPlan]:
    values, _, problems = Options("sweep", "", SweepOptions, {}).read(argv)
    asked = request(values, problems)
    matrix = cells(asked, CPU)
    hidden = references(matrix, CPU)
    return matrix, hidden, plan_of(matrix, hidden, asked, CPU, ["scalelab", "sweep", *argv])


def sweep(out: Path, make: Fake, *argv: str) -> tuple[SweepFolder, Outcome]:
    matrix, hidden, plan = planned(*argv)
    given = {each.cell.name: each.given for each in (*matrix, *hidden)}
    asked = plan.repeats
    with opened(out, plan, lambda text: None) as (folder, plan):
        return folder, run_sweep(folder, plan, given, Silent(), Interrupts(), repeats=asked, make=make)


FOUR = ("--strategies=ddp,zero1", "--precisions=fp32,bf16", "--repeats=2")


def test_all_runs_are_made_in_the_order_that_was_written_down(tmp_path: Path) -> None:
    """And found again by their attempts; a further call makes none."""
    make = Fake()
    folder, outcome = sweep(tmp_path, make, *FOUR)
    plan, (attempts, unreadable) = folder.plan(), folder.attempts()
    assert outcome.exit_code == Exit.OK
    assert make.made == [f"{name}-r{repeat}" for name, repeat in plan.order]
    assert (set(attempts), unreadable) == (set(plan.order), 0)
    assert all(folder.run(attempt) is not None for attempt in attempts.values())
    assert (tmp_path / "latest").resolve() == folder.path.resolve()
    again = Fake()
    assert sweep(tmp_path, again, *FOUR)[1].exit_code == Exit.OK
    assert again.made == []


@settings(deadline=None, max_examples=9)
@given(kill_at=st.integers(0, 8))
def test_a_sweep_that_was_killed_goes_on_where_it_was(kill_at: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """However far it came, a second call makes exactly the runs that are missing."""
    out = tmp_path_factory.mktemp("out")
    first, second = Fake(kill_at=kill_at), Fake()
    with contextlib.suppress(Killed):
        sweep(out, first, *FOUR)
    folder, outcome = sweep(out, second, *FOUR)
    assert first.made + second.made == [f"{name}-r{repeat}" for name, repeat in folder.plan().order]
    assert outcome.exit_code == Exit.OK
    assert all(attempt.parity for attempt in outcome.attempts.values())


@pytest.mark.fault(68)
@pytest.mark.parametrize("code", [Exit.USAGE, Exit.WORKER_DIED, Exit.OUT_OF_MEMORY])
def test_a_run_that_fails_stops_no_other_and_is_made_again(tmp_path: Path, code: Exit) -> None:
    """The sweep ends with 10; a second call repeats that run alone, and ends with 0."""
    bad = Fake(code=lambda name: code if name == "zero1-bf16-2ranks-r1" else 0)
    folder, outcome = sweep(tmp_path, bad, *FOUR)
    assert (outcome.exit_code, len(bad.made)) == (Exit.SOME_FAILED, 8)
    attempt = folder.attempts()[0]["zero1-bf16-2ranks", 1]
    assert (attempt.exit_code, attempt.run is None) == (code, code == Exit.USAGE)
    good = Fake()
    _, outcome = sweep(tmp_path, good, *FOUR)
    assert (outcome.exit_code, good.made) == (Exit.OK, ["zero1-bf16-2ranks-r1"])


def test_more_repeats_add_rounds_and_fewer_take_none_away(tmp_path: Path) -> None:
    """In the same folder; what has been made stays in the plan."""
    sweep(tmp_path, Fake(), *FOUR[:2], "--repeats=1")
    more = Fake()
    folder, _ = sweep(tmp_path, more, *FOUR[:2], "--repeats=2")
    assert sorted(more.made) == sorted(f"{cell.name}-r2" for cell in folder.plan().cells)
    fewer = Fake()
    folder, _ = sweep(tmp_path, fewer, *FOUR[:2], "--repeats=1")
    assert (fewer.made, folder.plan().repeats, len(folder.plan().order)) == ([], 2, 8)


def test_a_run_whose_folder_is_gone_is_made_again(tmp_path: Path) -> None:
    """What a line of attempts.jsonl says is not enough."""
    folder, outcome = sweep(tmp_path, Fake(), *FOUR)
    run = outcome.attempts["ddp-fp32-2ranks", 2].run
    (folder.path / str(run) / "run.json").unlink()
    again = Fake()
    sweep(tmp_path, again, *FOUR)
    assert again.made == ["ddp-fp32-2ranks-r2"]


def test_ctrl_c_ends_it_and_leaves_the_rest_for_the_next_call(tmp_path: Path) -> None:
    """Exit 130, and the interrupted run counts as missing."""
    first = Fake(signal_at=3)
    folder, outcome = sweep(tmp_path, first, *FOUR)
    assert (outcome.exit_code, len(first.made), outcome.left) == (Exit.INTERRUPTED, 3, 6)
    summary = summarise_sweep(folder, Given(), {"cost_ratio": None, "usd_per_million_samples": None})
    assert (summary["runs"]["missing"], summary["runs"]["failed"]) == (outcome.left, 0)
    (why,) = [run["why"] for cell in summary["cells"] for run in cell["runs"] if run["exit_code"]]
    assert why == "interrupted: stopped by Ctrl-C"
    assert not any(each.failed for each in outcome.attempts.values())
    second = Fake()
    sweep(tmp_path, second, *FOUR)
    assert second.made == [f"{name}-r{repeat}" for name, repeat in folder.plan().order][2:]


@pytest.mark.fault(42)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_what_trains_something_else_has_no_speed(tmp_path: Path, order: int) -> None:
    """Whichever is run first: exit 8 with the series, its step and both values, and no figure in its summary."""
    make = Fake(loss=lambda name: 1.0 + 2e-5 * name.startswith("zero1-fp32"))
    folder, outcome = sweep(tmp_path, make, *FOUR[:2], "--repeats=1", f"--seed={order}")
    attempt = outcome.attempts["zero1-fp32-2ranks", 1]
    assert (outcome.exit_code, attempt.exit_code) == (Exit.SOME_FAILED, Exit.NUMERIC)
    assert (attempt.cause or "").startswith(PARITY)
    assert "loss of step 0 is 1.00002, ddp's 1.0" in (attempt.cause or "")
    run = folder.run(attempt)
    assert run is not None
    assert (run.read("status.json")["exit_code"], run.read("status.json")["cause"]) == (8, attempt.cause)
    assert run.read("summary.json")["throughput"]["samples_per_second"] is None
    assert all("Not finished" in (run.path / name).read_text() for name in ("report.html", "report.md"))
    others = [each for key, each in outcome.attempts.items() if key[0] != attempt.cell]
    assert [each.exit_code for each in others] == [0] * 3
    bf16 = outcome.attempts["zero1-bf16-2ranks", 1]
    assert "over 5 steps" in (bf16.parity or "")


def test_losses_are_held_against_the_same_world_batch_and_precision(tmp_path: Path) -> None:
    """Each world and precision has a training of its own; none is a deviation of another."""
    losses = {"fp32-1": 1.0, "fp32-2": 2.0, "bf16-1": 3.0, "bf16-2": 4.0}
    make = Fake(loss=lambda name: next(v for k, v in losses.items() if f"{k}rank" in name))
    _, outcome = sweep(tmp_path, make, "--strategies=ddp,zero1", "--precisions=fp32,bf16", "--gpus=1,2", "--repeats=1")
    assert outcome.exit_code == Exit.OK
    assert len(outcome.attempts) == 8


def test_without_ddp_a_reference_comes_first_and_is_no_cell(tmp_path: Path) -> None:
    """It is made once, only where it is needed, and what it says holds for all repeats."""
    make = Fake(loss=lambda name: 1.0 + 1e-3 * name.startswith("fsdp2"))
    folder, outcome = sweep(tmp_path, make, "--strategies=zero1,fsdp2", "--repeats=2")
    assert make.made[0] == "reference-fp32-2ranks-r1"
    assert len(make.made) == 5
    assert {key: each.exit_code for key, each in outcome.attempts.items() if key[0].startswith("fsdp2")} == {
        ("fsdp2-fp32-2ranks", 1): 8,
        ("fsdp2-fp32-2ranks", 2): 8,
    }
    assert "reference" not in str(folder.plan().order)
    again = Fake()
    assert sweep(tmp_path, again, "--strategies=zero1,fsdp2", "--repeats=2")[1].exit_code == Exit.OK
    assert sorted(again.made) == ["fsdp2-fp32-2ranks-r1", "fsdp2-fp32-2ranks-r2"]


def test_where_no_ddp_run_finished_that_is_said(tmp_path: Path) -> None:
    """Speeds stay, and that losses were not checked; the reference's own failure fails no cell."""
    make = Fake(code=lambda name: 7 if name.startswith("reference") else 0)
    folder, outcome = sweep(tmp_path, make, "--strategies=zero1", "--repeats=1")
    assert outcome.exit_code == Exit.OK
    assert outcome.attempts["zero1-fp32-2ranks", 1].parity is None
    (cell,) = summarise_sweep(folder, Given(), {"cost_ratio": None, "usd_per_million_samples": None})["cells"]
    assert cell["parity"]["state"] == "not checked"
    assert "no run of ddp has finished" in cell["parity"]["why"]


def test_runs_are_judged_when_the_run_of_ddp_comes_that_was_missing(tmp_path: Path) -> None:
    """The first call has none to hold them against; the second makes it, and finds what trained something else."""
    argv = ("--strategies=ddp,zero2", "--repeats=1")
    failing = Fake(code=lambda name: 5 * name.startswith("ddp"), loss=lambda name: 1.0 + 1e-3 * ("zero2" in name))
    _, first = sweep(tmp_path, failing, *argv)
    assert first.attempts["zero2-fp32-2ranks", 1].parity is None
    again = Fake()
    _, second = sweep(tmp_path, again, *argv)
    assert again.made == ["ddp-fp32-2ranks-r1"]
    assert (second.attempts["zero2-fp32-2ranks", 1].cause or "").startswith(PARITY)
    assert second.exit_code == Exit.SOME_FAILED


@pytest.mark.fault(30)
def test_the_same_cells_with_other_threads_are_another_sweep_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, as it begins; a sweep of other cells is not mentioned."""
    said: list[str] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first, _ = sweep(tmp_path, Fake(), "--strategies=ddp", "--repeats=1")
    sweep(tmp_path, Fake(), "--strategies=ddp", "--repeats=1", "--steps=7")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    _, _, plan = planned("--strategies=ddp", "--repeats=1")
    for _ in range(2):
        with opened(tmp_path, plan, said.append) as (folder, _):
            assert folder.path != first.path
    assert len(said) == 1
    assert f"{first.path.name} has the same cells and is another sweep, as threads (OMP_NUM_THREADS)" in said[0]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A file in the place of the output folder: nothing is started."""
    (tmp_path / "file").write_text("")
    make = Fake()
    with pytest.raises(OutputError, match="a file is in the place of a folder"):
        sweep(tmp_path / "file", make, *FOUR)
    assert make.made == []


@pytest.mark.fault(49)
def test_two_sweeps_in_one_folder_exclude_each_other(tmp_path: Path) -> None:
    """The second is told who holds it."""
    *_, plan = planned(*FOUR)
    with opened(tmp_path, plan, lambda text: None):
        with pytest.raises(FolderInUse, match="in use by process"):
            with opened(tmp_path, plan, lambda text: None):
                pass


def test_a_damaged_plan_is_written_anew_and_a_newer_one_refused(tmp_path: Path) -> None:
    """Its runs are in attempts.jsonl; half a line there is counted, not believed."""
    folder, _ = sweep(tmp_path, Fake(), *FOUR)
    path, attempts = folder.path / "sweep.json", folder.path / "attempts.jsonl"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with attempts.open("a") as file:
        file.write('{"cell": "ddp-fp')
    notes: list[str] = []
    *_, plan = planned(*FOUR)
    with opened(tmp_path, plan, notes.append) as (found, _):
        assert found.plan().order == plan.order
    assert ["1 line(s)" in notes[0], "sweep.json: not JSON" in notes[1]] == [True, True]
    again = Fake()
    sweep(tmp_path, again, *FOUR)
    assert again.made == []
    path.write_text(whole.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(SchemaError, match="newer"):
        sweep(tmp_path, Fake(), *FOUR)


def test_expected_time_is_of_what_ended_here() -> None:
    """Of the same cell where it has ended, else of all; unknown where nothing has."""

    def attempt(cell: str, repeat: int, seconds: float, code: int = 0) -> Attempt:
        return Attempt(cell=cell, repeat=repeat, run="x", exit_code=code, started_utc="now", seconds=seconds)

    known = {("a", 1): attempt("a", 1, 10.0), ("b", 1): attempt("b", 1, 20.0), ("c", 1): attempt("c", 1, 1.0, 5)}
    assert expected_seconds([("a", 2), ("b", 2), ("c", 1)], known) == 10 + 20 + 15
    assert expected_seconds([("a", 1)], {}) is None
    assert expected_seconds([("a", 1)], {("c", 1): known["c", 1]}) is None

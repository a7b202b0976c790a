"""Rankings go by the runs that their intervals are of, and by one price."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.launch.commands.sweep import _repriced
from scalelab.profiles.analysis.between import Difference, difference
from scalelab.profiles.analysis.causes import causes
from scalelab.profiles.analysis.compared import ComparedRun
from scalelab.profiles.analysis.current import current_summary
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.summary import write_summary
from scalelab.profiles.analysis.sweep import summarise_sweep
from scalelab.profiles.analysis.sweep.estimates import ratio
from scalelab.profiles.runfolder import RunFolder
from scalelab.reports.page.section import Table
from scalelab.reports.page.sweep import cells, recommendation

from ..support.sweeps import MadeSweep, run_json, write_run
from .test_sweep_summary import printed

ASKED: dict[str, float | None] = {"cost_ratio": None, "usd_per_million_samples": None}
ILL = [1.0, 1.01, 0.99, 1.0, 1.0, 3.0]
WELL = [1.05, 1.06, 1.04, 1.05, 1.05]
ROUNDS = (range(5), range(6))


@pytest.mark.parametrize("measure", ["cheapest", "fastest"])
def test_a_round_that_one_cell_alone_has_makes_the_other_none_the_better(tmp_path: Path, measure: str) -> None:
    """DDP is 5 % ahead in each of five rounds; a sixth went ill for it, and failed for the other."""
    made = MadeSweep(tmp_path / "sweep", repeats=6)
    made.cell("ddp", 2, ILL)
    failed = made.cell("zero2", 2, WELL)
    made.attempt(failed, 5, None, 5, "a rank died")
    summary = summarise_sweep(made.write(), Given(), ASKED)
    found = summary[measure]
    (against,) = found["against"]
    assert (found["best"], found["verdict"], against["cell"]) == ("ddp-fp32-x2", "one", "zero2-fp32-x2")
    assert against["verdict"] == ("more" if measure == "cheapest" else "less")
    assert against["interval"][0] <= against["ratio"] <= against["interval"][1]
    assert "not so by the means of all runs" in found["why"]
    assert summary["recommended"]["cell"] == "ddp-fp32-x2"


def test_no_cell_is_taken_while_cells_of_one_run_are_ahead(tmp_path: Path) -> None:
    """An interrupted second round: the only cell of two runs is passed over, and the runs that would tell are named."""
    made = MadeSweep(tmp_path / "sweep", repeats=2)
    made.cell("zero1", 1, [0.25, 2.9])
    made.cell("zero3", 1, [0.17])
    made.cell("ddp", 2, [0.25])
    made.cell("fsdp2", 2, [9.0])
    summary = summarise_sweep(made.write(), Given(), ASKED)
    taken = summary["recommended"]
    assert (taken["cell"], taken["verdict"]) == (None, "open")
    assert "zero3-fp32-x1 and ddp-fp32-x2, of one run each, are ahead" in taken["why"]
    assert "fsdp2" not in taken["why"]
    assert not any(cell["recommended"] for cell in summary["cells"])
    assert "No recommendation" in recommendation.section(summary).title


def test_an_interval_of_more_than_an_order_of_magnitude_is_none(tmp_path: Path) -> None:
    """Of two runs that differ by a factor of 12: null with the reason, no recommendation, and words where a table or a
    page would show it. Of two runs 5 % apart it stays."""
    made = MadeSweep(tmp_path / "sweep", repeats=2)
    made.cell("zero1", 1, [0.25, 2.9])
    made.cell("ddp", 1, [5.0, 5.25])
    summary = summarise_sweep(made.write(), Given(), ASKED)
    wide, narrow = summary["cells"]
    assert wide["samples_per_second"]["ci95"] is None
    assert wide["reasons"]["samples_per_second.ci95"].startswith("too few runs to say")
    low, high = narrow["samples_per_second"]["ci95"]
    assert high < 10 * low
    assert summary["recommended"]["cell"] is None
    assert "too few runs to say" in summary["recommended"]["why"]
    (table,) = (each for each in cells.section(summary).blocks if isinstance(each, Table) and each.name == "cells")
    shown = [str(each) for each in table.rows[0]]
    assert "too few runs to say" in shown
    assert "too few runs to say" in printed(summary)


@settings(deadline=None, max_examples=25)
@given(
    times=st.lists(
        st.lists(st.sampled_from([0.5, 0.9, 1.0, 1.05, 1.1, 2.0, 8.0]), min_size=1, max_size=6), min_size=2, max_size=4
    )
)
def test_what_is_recommended_is_on_the_front(times: list[list[float]]) -> None:
    """Whatever the runs are: no other cell is both faster and cheaper than the one to take."""
    with TemporaryDirectory() as place:
        made = MadeSweep(Path(place) / "sweep", repeats=6)
        for index, each in enumerate(times):
            made.cell(f"s{index}", 1 + index % 2, each)
        summary = summarise_sweep(made.write(), Given(), ASKED)
    assert all(cell["on_front"] for cell in summary["cells"] if cell["recommended"])
    assert summary["recommended"]["cell"] in (None, *summary["pareto"]["front"])


def test_causes_add_up_to_the_cost_that_is_shown(tmp_path: Path) -> None:
    """Of runs that differ: geometric means, money and hours, in a cell and in a comparison."""
    made = MadeSweep(tmp_path / "sweep", repeats=2)
    made.cell("ddp", 2, [1.0, 4.0], usd_per_gpu_hour=2.0)
    (cell,) = summarise_sweep(made.write(), Given(), ASKED)["cells"]
    for name in ("usd_per_million_samples", "device_hours_per_million_samples"):
        assert sum(row[name] for row in cell["by_cause"]) == pytest.approx(cell[name]["mean"])
        for row in cell["by_cause"]:
            assert row[name] == pytest.approx(row["share"] * cell[name]["mean"])
    assert sum(row["seconds"] for row in cell["by_cause"]) == pytest.approx(2.0)


def test_a_ratio_lies_in_its_interval() -> None:
    times = ratio(WELL, ILL, rounds=ROUNDS)
    assert times["mean"] == pytest.approx(1.05, rel=1e-3)
    assert times["ci95"][0] < times["mean"] < times["ci95"][1]


def test_seconds_of_a_cause_are_of_the_runs_that_its_interval_is_of(tmp_path: Path) -> None:
    """Both sides' and their difference."""

    def side(times: list[float]) -> list[ComparedRun]:
        return [ComparedRun(path=tmp_path, facts={}, summary=_summary(each)) for each in times]

    def held(a: Sequence[float], b: Sequence[float]) -> Difference:
        return difference(a, b, rounds_a=range(6), rounds_b=range(5))

    found = causes(side(ILL), side(WELL), "step", held, lambda path, why: None)
    assert found is not None
    whole = found["whole"]
    assert (whole["a"], whole["b"]) == (pytest.approx(1.0, rel=1e-4), pytest.approx(1.05, rel=1e-4))
    assert whole["difference_seconds"] == pytest.approx(0.05, rel=1e-3)
    assert whole["ci95"][0] <= whole["difference_seconds"] <= whole["ci95"][1]


def test_cells_of_different_prices_are_ranked_in_device_hours(tmp_path: Path) -> None:
    """A cell at half the price and 1.5 times the hours is not the cheaper; at one price given to report, in USD."""
    made = MadeSweep(tmp_path / "sweep", repeats=3)
    made.cell("ddp", 2, [1.0, 1.01, 0.99], usd_per_gpu_hour=2.0)
    made.cell("zero2", 2, [1.5, 1.51, 1.49], usd_per_gpu_hour=1.0)
    summary = summarise_sweep(made.write(), Given(), ASKED)
    assert summary["cheapest"]["measure"] == summary["pareto"]["cost"] == "device_hours_per_million_samples"
    assert summary["recommended"]["cell"] == "ddp-fp32-x2"
    assert "ddp-fp32-x2 was not checked to train what ddp does" in summary["recommended"]["why"]
    assert any("priced differently" in note for note in summary["notes"])
    priced = summarise_sweep(made.folder, Given(usd_per_gpu_hour=3.0), ASKED)
    assert priced["cheapest"]["measure"] == "usd_per_million_samples"
    assert not any("priced differently" in note for note in priced["notes"])


def test_a_run_that_was_repriced_counts_at_its_own_price(tmp_path: Path) -> None:
    """`scalelab report` on one run changes what that shows, not what its sweep takes."""
    folder = RunFolder.create(tmp_path, "x")
    write_run(folder, run_json("x", 2, usd_per_gpu_hour=2.0))
    own = write_summary(folder)
    write_summary(folder, Given(usd_per_gpu_hour=5.0))
    assert current_summary(folder)["cost"]["usd_per_gpu_hour"] == 5.0
    assert current_summary(folder, own_prices=True) == own
    assert current_summary(folder)["cost"]["usd_per_gpu_hour"] == 5.0


def test_a_sweep_called_with_another_price_shows_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that are there were made at their own; the one that is given now is used, and said to be."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 2, [1.0], usd_per_gpu_hour=1.25, facts=run_json("ddp", 2, usd_per_gpu_hour=1.25))
    folder = made.write()
    attempts, _ = folder.attempts()
    assert _repriced(folder, attempts.values(), {"usd_per_gpu_hour": 1.25}) is None
    assert _repriced(folder, attempts.values(), {"steps": 5}) is None
    assert capsys.readouterr().err == ""
    given = _repriced(folder, attempts.values(), {"usd_per_gpu_hour": 3.0})
    assert given == Given(usd_per_gpu_hour=3.0)
    assert "--usd-per-gpu-hour 3" in capsys.readouterr().err
    assert given is not None
    assert summarise_sweep(folder, given, ASKED)["price"]["usd_per_gpu_hour"] == 3.0


def _summary(seconds: float) -> dict[str, Any]:
    return {
        "step_seconds": {"mean": seconds},
        "throughput": {"samples_per_second": 1 / seconds},
        "phases": {"forward": {"mean": 0.4 * seconds}, "backward": {"mean": 0.6 * seconds}},
        "reasons": {},
    }

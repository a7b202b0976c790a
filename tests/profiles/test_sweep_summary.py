"""A sweep's summary: every cell and run is in it with what became of it, and no ranking goes beyond what runs tell."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from scalelab.launch.commands.sweep import _conclude
from scalelab.launch.errors import Exit
from scalelab.launch.sweep.runner import Outcome
from scalelab.profiles.analysis.current import current_summary
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.summary import analysis_digest
from scalelab.profiles.analysis.sweep import summarise_sweep, write_sweep_summary
from scalelab.profiles.runfolder import RunFolder
from scalelab.profiles.sweepfolder import SweepFolder
from scalelab.reports.console import Console
from scalelab.reports.sweep_results import sweep_results

from ..support.sweep_example import example_summary, example_sweep
from ..support.sweeps import MadeSweep, run_json, write_run

ASKED: dict[str, float | None] = {"cost_ratio": None, "usd_per_million_samples": None}
FIGURES = ("step_seconds", "samples_per_second", "device_hours_per_million_samples", "by_cause", "peak_bytes")


def summary_of(made: MadeSweep, **given: float) -> dict[str, Any]:
    return summarise_sweep(made.write(), Given(**given), ASKED)


def cell_of(summary: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [cell for cell in summary["cells"] if cell["name"] == name]
    return found


def test_cells_without_figures_keep_their_words() -> None:
    """Refused, failed, apart from ddp, missing: each has a row, no figure, and says why in each reason."""
    summary = example_summary()
    expected = {
        "deepspeed-fp32-x2": ("refused", "deepspeed: fp16 needs CUDA; use bf16"),
        "zero2-fp32-x2": ("parity_failed", "loss parity: loss of step 3 is 1.2, expected 1.1"),
        "zero1-fp32-x2": ("failed", "rank 1 ran out of memory"),
        "fsdp2-fp32-x2": ("missing", "not run yet"),
    }
    for name, (state, why) in expected.items():
        cell = cell_of(summary, name)
        assert (cell["state"], cell["why"], cell["measured_runs"]) == (state, why, 0)
        for figure in FIGURES:
            assert cell[figure] is None
            assert cell["reasons"][figure] == why
        assert not cell["on_front"]
        assert not cell["recommended"]
    assert cell_of(summary, "zero2-fp32-x2")["parity"]["state"] == "failed"
    assert summary["runs"]["refused_cells"] == 1
    assert len(summary["cells"]) == 14


def test_every_null_of_a_row_has_its_reason() -> None:
    """With a price and without."""
    for price in (2.0, None):
        summary = example_summary(price)
        for cell in summary["cells"]:
            for name in (*FIGURES, "usd_per_million_samples", "mfu", "comm_share", "oversubscribed"):
                assert cell[name] is not None or cell["reasons"].get(name), (cell["name"], name)
            for name in ("step_seconds", "samples_per_second"):
                alone = cell[name] is not None and cell[name]["ci95"] is None
                assert alone == (f"{name}.ci95" in cell["reasons"])
        assert (summary["price"]["usd_per_gpu_hour"] is None) == ("price.usd_per_gpu_hour" in summary["reasons"])
        assert summary["cheapest"]["measure"].startswith("usd" if price else "device_hours")


def test_a_mean_is_over_runs_and_money_is_hours_times_price(tmp_path: Path) -> None:
    """Geometric, the run as the unit; and a price given to the report replaces the runs'."""
    made = MadeSweep(tmp_path / "sweep", repeats=2)
    made.cell("ddp", 2, [1.0, 4.0], batch=8, usd_per_gpu_hour=1.0)
    summary = summary_of(made, usd_per_gpu_hour=3.0)
    cell = cell_of(summary, "ddp-fp32-x2")
    assert cell["step_seconds"]["mean"] == pytest.approx(2.0)
    hours = cell["device_hours_per_million_samples"]
    assert hours["values"] == pytest.approx([2 * each / 8 / 3600 * 1e6 for each in (1.0, 4.0)])
    assert cell["usd_per_million_samples"]["values"] == [each * 3.0 for each in hours["values"]]
    assert "given to report" in summary["price"]["price_source"]
    assert sum(row["share"] for row in cell["by_cause"]) == pytest.approx(1)


def test_one_repeat_gives_a_quick_look_and_no_verdict(tmp_path: Path) -> None:
    """However far apart the cells are."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 2, [1.0])
    made.cell("zero3", 2, [9.0])
    summary = summary_of(made)
    assert summary["recommended"]["cell"] is None
    assert summary["cheapest"]["verdict"] == "quick look"
    assert summary["cheapest"]["order"] == ["ddp-fp32-x2", "zero3-fp32-x2"]
    assert not any(cell["recommended"] for cell in summary["cells"])


def test_cells_that_runs_do_not_tell_apart_are_a_tie(tmp_path: Path) -> None:
    """The fastest of them is recommended; far apart, the cheapest; none as long as a cell of one run is ahead."""
    close, far = (1.0, 1.1, 0.95), (3.0, 3.1, 2.9)
    made = MadeSweep(tmp_path / "tie", repeats=3)
    made.cell("ddp", 1, close)
    made.cell("zero3", 2, [each * 0.5 for each in (1.02, 0.97, 1.12)])
    made.cell("fsdp2", 2, far)
    summary = summary_of(made)
    assert summary["cheapest"]["verdict"] == "tie"
    assert summary["recommended"]["cell"] == "zero3-fp32-x2"
    made.cell("zero1", 2, [0.1])
    summary = summary_of(made)
    assert (summary["cheapest"]["verdict"], summary["recommended"]["cell"]) == ("open", None)
    assert "zero1-fp32-x2, of one run, is ahead of it: a second run" in summary["cheapest"]["why"]
    assert {row["cell"]: row["verdict"] for row in summary["cheapest"]["against"]} == {
        "zero1-fp32-x2": "one run",
        "zero3-fp32-x2": "cannot tell",
        "fsdp2-fp32-x2": "more",
    }
    made = MadeSweep(tmp_path / "one", repeats=3)
    made.cell("ddp", 2, [1.0, 1.01, 0.99])
    made.cell("zero3", 2, [2.0, 2.01, 1.99])
    summary = summary_of(made)
    assert (summary["cheapest"]["verdict"], summary["recommended"]["cell"]) == ("one", "ddp-fp32-x2")
    assert [cell["recommended"] for cell in summary["cells"]] == [True, False]


def test_the_front_holds_what_nothing_beats_in_time_and_cost(tmp_path: Path) -> None:
    """One cell that is fastest, one that is cheapest; not one that is slower and dearer than another."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1, [1.0])
    made.cell("ddp", 2, [0.6])
    made.cell("zero3", 2, [0.7])
    found = summary_of(made)["pareto"]
    assert found["front"] == ["ddp-fp32-x2", "ddp-fp32-x1"]
    assert [point["on_front"] for point in found["points"]] == [True, False, True]


def test_oversubscribed_cells_are_shown_and_not_ranked(tmp_path: Path) -> None:
    made = MadeSweep(tmp_path / "sweep", repeats=2)
    made.cell("ddp", 2, [1.0, 1.1])
    made.cell("ddp", 8, [0.1, 0.11], facts={"oversubscribed": True})
    summary = summary_of(made)
    assert cell_of(summary, "ddp-fp32-x8")["samples_per_second"] is not None
    assert summary["fastest"]["order"] == summary["cheapest"]["order"] == ["ddp-fp32-x2"]
    assert any("ddp-fp32-x8" in note and "oversubscribed" in note for note in summary["notes"])


def test_mixed_hardware_is_named_and_not_ranked(tmp_path: Path) -> None:
    """Between cells, all that compares them is null; within a cell, its own figures too."""
    made = MadeSweep(tmp_path / "sweep", repeats=1)
    made.cell("ddp", 1, [1.0])
    made.cell("ddp", 2, [0.5], facts={"device_name": "another processor"})
    summary = summary_of(made)
    for part in ("cheapest", "fastest", "pareto", "recommended", "series"):
        assert summary[part] is None
        assert summary["reasons"][part]
    assert any("another processor" in note and "ddp-fp32-x2" in note for note in summary["notes"])
    within = MadeSweep(tmp_path / "within", repeats=2)
    cell = within.cell("ddp", 1, [1.0])
    other = MadeSweep(tmp_path / "other")
    other.cell("ddp", 1, [1.0], facts={"device_name": "another processor"})
    (made_there,) = (path for path in other.folder.path.iterdir() if path.is_dir())
    moved = made_there.rename(within.folder.path / "20260101T000009Z-moved-ffffff")
    facts = orjson.loads((moved / "run.json").read_bytes())
    (moved / "run.json").write_bytes(orjson.dumps({**facts, "run_id": moved.name}))
    os.utime(moved / "summary.json")
    within.attempt(cell, 1, moved.name)
    row = cell_of(summary_of(within), "ddp-fp32-x1")
    assert (row["state"], row["samples_per_second"]) == ("mixed_hardware", None)
    assert "another processor" in row["why"]


def test_folders_of_every_kind_are_shown_by_name(tmp_path: Path) -> None:
    """Gone, without records, damaged, of a newer schema, twice the same run, running, of an earlier attempt."""
    made = MadeSweep(tmp_path / "sweep", repeats=1)
    good = made.cell("ddp", 1, [1.0])
    names = {}
    for kind in ("gone", "empty", "damaged", "newer", "none"):
        cell = made.cell(kind, 2)
        folder = made.run_folder(cell, 0)
        names[kind] = folder.run_id
        made.attempt(cell, 0, folder.run_id)
        told = {**run_json(cell.name, 2), "run_id": folder.run_id}
        if kind in ("empty", "newer"):
            folder.write("run.json", told | ({"schema": 99} if kind == "newer" else {}))
        if kind == "damaged":
            (folder.path / "run.json").write_bytes(b"{")
        if kind == "gone":
            folder.path.rmdir()
    twin = made.cell("twin", 1)
    (first,) = (path.name for path in made.folder.path.iterdir() if "ddp-fp32" in path.name)
    made.attempt(twin, 0, first)
    running = made.cell("running", 2)
    half = made.run_folder(running, 0)
    half.write("run.json", run_json(f"{running.name}-r0", 2))
    half.write("status.json", {"state": "running", "exit_code": None})
    stray = made.run_folder(good, 8)
    stray.write("run.json", run_json(good.name, 1))
    stray.write("status.json", {"state": "failed", "exit_code": 5, "cause": "rank 0 was killed"})
    folder = made.write()
    with (folder.path / "attempts.jsonl").open("a") as lines:
        lines.write('{"cell": "half')
    (folder.path / "latest").symlink_to(first)
    summary = write_sweep_summary(folder)
    found = {cell["strategy"]: (cell["state"], str(cell["why"])) for cell in summary["cells"]}
    assert found["ddp"] == ("measured", "None")
    assert found["gone"] == ("missing", f"its folder {names['gone']} is gone")
    assert found["none"][0] == "missing"
    for kind, word in (("empty", names["empty"]), ("damaged", "not JSON"), ("newer", "upgrade")):
        assert found[kind][0] == "unreadable"
        assert word in found[kind][1]
    assert found["twin"][0] == "unreadable"
    assert "same run as that of ddp-fp32-x1" in found["twin"][1]
    assert found["running"][0] == "running"
    others = {row["run"]: row for row in summary["other_runs"]}
    assert others[stray.run_id]["why"] == "rank 0 was killed"
    assert first not in others
    assert "latest" not in others
    assert any("attempts.jsonl" in note for note in summary["notes"])


def test_cells_of_one_name_are_named(tmp_path: Path) -> None:
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1, [1.0])
    made.cells.append(made.cells[0])
    summary = summary_of(made)
    assert len(summary["cells"]) == 1
    assert any("ddp-fp32-x1 more than once" in note for note in summary["notes"])


def test_a_summary_is_read_while_nothing_it_was_made_of_has_changed(tmp_path: Path) -> None:
    """Made again when a record is newer than it, when other code made it, when it is damaged or gone."""
    folder = RunFolder.create(tmp_path, "x")
    write_run(folder, run_json("x", 2), seconds=1.0)
    path = folder.path / "summary.json"
    assert current_summary(folder)["step_seconds"]["mean"] == pytest.approx(1.0)

    def marked() -> bool:
        """Whether a mark in the file is read back."""
        folder.write("summary.json", {**orjson.loads(path.read_bytes()), "mark": True})
        return bool(current_summary(folder).get("mark"))

    assert marked()
    later = path.stat().st_mtime + 10
    os.utime(folder.rank_file(1), (later, later))
    assert "mark" not in current_summary(folder)
    os.utime(folder.rank_file(1), (1, 1))
    assert marked()
    folder.write("summary.json", {**orjson.loads(path.read_bytes()), "analysis": "other code"})
    assert current_summary(folder)["analysis"] == analysis_digest()
    assert "mark" not in current_summary(folder)
    for content in (b"{", b"[]", None):
        path.unlink() if content is None else path.write_bytes(content)
        assert current_summary(folder)["step_seconds"]["mean"] == pytest.approx(1.0)


def test_a_cell_whose_losses_are_not_held_is_not_said_to_have_another_batch(tmp_path: Path) -> None:
    """The cells of a verification have the same."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 2, [1.0], gated=False)
    (cell,) = summary_of(made)["cells"]
    why = "losses are not held against ddp's in a sweep of this kind"
    assert cell["parity"] == {"state": "not checked", "why": why}


def test_records_that_are_gone_or_came_back_are_noticed(tmp_path: Path) -> None:
    """Also with the time that the file had before."""
    folder = RunFolder.create(tmp_path, "x")
    write_run(folder, run_json("x", 2))
    assert current_summary(folder)["step_seconds"]["mean"] is not None
    long_ago(folder)
    kept = folder.rank_file(1).rename(tmp_path / "r001.jsonl")
    assert current_summary(folder)["step_seconds"]["mean"] is None
    long_ago(folder)
    kept.rename(folder.rank_file(1))
    assert current_summary(folder)["step_seconds"]["mean"] is not None


def long_ago(folder: RunFolder) -> None:
    """Give all of a run's files the same old time, its summary a later one."""
    for path in (*folder.path.rglob("*"), folder.path):
        os.utime(path, (1000, 1000))
    os.utime(folder.path / "summary.json", (2000, 2000))


def test_a_run_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ended well, so that the same command does not make it again as long as its folder is there."""
    made = MadeSweep(tmp_path / "sweep")
    cell = made.cell("ddp", 2)
    run = RunFolder.create(made.folder.path, "x")
    write_run(run, run_json("ddp", 2))
    run.rank_file(1).unlink()
    made.attempt(cell, 0, run.run_id)
    outcome = Outcome(Exit.OK, made.write().attempts()[0], 0)
    assert _conclude(made.folder, outcome, None, as_json=False) == [run.run_id]
    told = capsys.readouterr()
    assert f"error: 1 run cannot be read: {run.run_id}" in told.err
    page = (made.folder.path / "report.md").read_text()
    assert "1 repeat in random order" in page
    assert "hint: put back what is missing, or move it out of the sweep's folder" in told.err


def test_the_table_has_its_twin_as_csv_and_no_formula_in_it(tmp_path: Path) -> None:
    """Means and intervals of every cell; a name that a spreadsheet would compute is text."""
    made = MadeSweep(tmp_path / "sweep", repeats=2)
    made.cell("ddp", 1, [1.0, 1.1], name='=HYPERLINK("http://x")')
    made.cell("zero3", 2, refused="-1 is no batch, @you")
    summary = write_sweep_summary(made.write())
    rows = list(csv.DictReader(io.StringIO((made.folder.path / "sweep.csv").read_text())))
    assert rows[0]["name"] == '\'=HYPERLINK("http://x")'
    assert rows[1]["why"] == "'-1 is no batch, @you"
    rate = summary["cells"][0]["samples_per_second"]
    assert [float(rows[0][f"samples_per_second{part}"]) for part in ("", "_low", "_high")] == [
        rate["mean"],
        *rate["ci95"],
    ]
    assert rows[1]["samples_per_second"] == ""


def test_the_table_names_every_cell_and_what_may_be_concluded(tmp_path: Path) -> None:
    """Refused cells with their words, money at the price given, the laws; whatever a name holds, it is text."""
    folder = example_sweep(tmp_path / "sweep", None)
    summary = write_sweep_summary(folder, Given(usd_per_gpu_hour=2.5), cost_ratio=1.2)
    summary["cells"][0]["name"] = "[red]x[/red]"
    shown = printed(summary)
    for cell in summary["cells"]:
        assert cell["name"] in shown
    for word in (
        "fp16 needs CUDA",
        "out of memory",
        "take ",
        "knee",
        "priced at 2.5 USD",
        "1.2 times",
        "oversubscribed",
    ):
        assert word in shown, word


def test_a_table_without_verdict_or_price_says_so(tmp_path: Path) -> None:
    """Mixed hardware, one repeat, nothing yet."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1, [1.0])
    assert "not priced: no price was given" in printed(summary_of(made))
    assert "no verdict" in printed(summary_of(made))
    made.cell("ddp", 2, [0.5], facts={"device_name": "another"})
    assert "no verdict: the runs are of different hardware" in printed(summary_of(made))
    assert "no cell has a figure" in printed(summary_of(MadeSweep(tmp_path / "none")))


def printed(summary: dict[str, Any]) -> str:
    console = Console(io.StringIO(), width=250)
    console.print(sweep_results(summary))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"cells": 3}', b'{"schema_version": 99}'])
def test_a_damaged_sweep_folder_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """And a summary that was there stays."""
    (tmp_path / "sweep.json").write_bytes(content)
    (tmp_path / "sweep-summary.json").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"sweep\.json"):
        write_sweep_summary(SweepFolder(tmp_path))
    assert (tmp_path / "sweep-summary.json").read_bytes() == b"old"


def test_a_sweep_of_nothing_yet_is_shown(tmp_path: Path) -> None:
    """No attempt, or refused cells alone: rows, no ranking, no crash."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1)
    made.cell("zero3", 1, refused="no")
    folder = made.write()
    (folder.path / "attempts.jsonl").unlink()
    summary = write_sweep_summary(SweepFolder(folder.path))
    assert [cell["state"] for cell in summary["cells"]] == ["missing", "refused"]
    assert summary["cheapest"]["verdict"] == summary["recommended"]["verdict"] == "none"
    assert summary["series"] == []

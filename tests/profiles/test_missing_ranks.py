"""A run of which a rank's records are gone: what is said over all ranks is not known, and is not made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from scalelab.launch.cli import run_command
from scalelab.launch.reporting import summarise_and_report
from scalelab.profiles.analysis.compared import UnfitError, compared_run
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import EndRecord, Record
from scalelab.profiles.runfolder import RunFolder

from tests.profiles.test_summary import folder_with, run_json, step


def test_figures_over_ranks_are_null_and_name_the_missing_rank(tmp_path: Path) -> None:
    """Half the samples are not half the throughput."""
    ranks: list[list[Record]] = [[step(index, 1.0) for index in range(4)] for _ in range(2)]
    folder = folder_with(tmp_path, run_json(), *ranks)
    whole = summarise(load_run(folder))
    assert whole["throughput"]["samples_per_second"]
    folder.rank_file(1).unlink()
    found = summarise(load_run(folder))
    for path in ("throughput.samples_per_second", "step_seconds.mean", "cost.device_hours_per_million_samples", "loss"):
        part, _, name = path.partition(".")
        assert (found[part][name] if name else found[part]) is None, path
        assert "rank 1 " in found["reasons"][path], path
    with pytest.raises(UnfitError, match="records of rank 1"):
        compared_run(folder)


def damaged(tmp_path: Path, how: str) -> RunFolder:
    """A run of 2 ranks and 5 measured steps that finished, of which rank 1's records were then cut."""
    ranks: list[list[Record]] = [[step(index, 1.0) for index in range(5)] for _ in range(2)]
    folder = folder_with(tmp_path, run_json(steps=5), *ranks)
    folder.write("status.json", {"state": "finished", "exit_code": 0})
    path = folder.rank_file(1)
    lines = path.read_bytes().splitlines(keepends=True)
    content = {"cut": b"".join(lines[:2]) + lines[2][:-20], "emptied": b"", "garbled": b"#" + b"".join(lines)[1:]}
    path.unlink() if how == "deleted" else path.write_bytes(content[how])
    return folder


@pytest.mark.parametrize(
    ("how", "steps", "said"),
    [
        ("cut", 2, ["2 of 5 measured steps of all ranks are there: rank 1 has 2", "1 line of ranks/r001.jsonl"]),
        ("emptied", 0, ["0 of 5 measured steps of all ranks are there: rank 1 has none"]),
        ("deleted", 0, ["0 of 5 measured steps of all ranks are there: rank 1 has none"]),
        ("garbled", 4, ["4 of 5 measured steps of all ranks are there: rank 1 has 4", "1 line of ranks/r001.jsonl"]),
    ],
)
def test_a_run_whose_records_were_cut_is_called_damaged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, how: str, steps: int, said: list[str]
) -> None:
    """In the summary, in the box on top and on the terminal: what is left would pass for a shorter run."""
    folder = damaged(tmp_path, how)
    summary = summarise_and_report(folder)
    assert (summary["steps"]["measured"], summary["steps"]["expected"]) == (steps, 5)
    assert [line.startswith(words) for line, words in zip(summary["damage"], said, strict=True)] == [True] * len(said)
    page, twin = (folder.path / "report.html").read_text(), (folder.path / "report.md").read_text()
    assert f"## Damaged: {steps} of 5 measured steps are there" in twin
    assert 'class="box warning"' in page
    assert run_command(["report", str(folder.path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"damaged: {line}" in told for line in summary["damage"])


def test_a_whole_run_and_one_that_did_not_finish_are_not_called_damaged(tmp_path: Path) -> None:
    """An own loop's ranks may make unlike many steps, and one that was stopped has as many as it has."""
    folder = damaged(tmp_path / "stopped", "cut")
    folder.write("status.json", {"state": "interrupted", "exit_code": 130})
    assert summarise(load_run(folder))["damage"] == []
    ranks: list[list[Record]] = [
        [*(step(index, 1.0) for index in range(5 + rank)), EndRecord(rss_peak_bytes=1)] for rank in range(2)
    ]
    folder = folder_with(tmp_path / "own", run_json(strategy="own", engine="own"), *ranks)
    folder.write("status.json", {"state": "finished", "exit_code": 0})
    assert summarise(load_run(folder))["damage"] == []


def test_a_rank_without_a_step_is_named(tmp_path: Path) -> None:
    """As the reason of what is null, and a speed without an interval says why it has none."""
    summary = summarise(load_run(damaged(tmp_path, "emptied")))
    assert summary["reasons"]["throughput.samples_per_second"] == "the records of rank 1 hold no measured step"
    folder = damaged(tmp_path / "two", "cut")
    summarise_and_report(folder)
    twin = (folder.path / "report.md").read_text()
    assert "(not recorded)" not in twin
    assert "Throughput: **8.00 samples/s** (the step has no interval)" in twin

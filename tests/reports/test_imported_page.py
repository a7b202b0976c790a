"""The report and the table of imported traces: what traces tell, and nothing of a run that was not measured here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scalelab.launch.cli import run_command

from tests.launch.test_import import job
from tests.support.traces import event, launched, step, write_trace

OF_A_RUN = ("None", "warm-up", "timed by", "followed", "--counterfactual", "Precision", "measured steps")


def report_of(tmp_path: Path, *traces: Path) -> str:
    assert run_command(["import", *map(str, traces), f"--out={tmp_path / 'runs'}"]) == 0
    (twin,) = (tmp_path / "runs").glob("2*/report.md")
    return twin.read_text().split("## What is not known")[0]


def box(report: str) -> str:
    return " ".join(line.removeprefix("> ") for line in report.splitlines() if line.startswith("> "))


def test_the_box_quotes_where_the_devices_time_went(tmp_path: Path) -> None:
    """Of 26 ms 12 are computing, 6 exposed communication, 8 idle: the largest first, whatever phases are known."""
    report = report_of(tmp_path, write_trace(tmp_path / "t.json", *job(0)))
    assert "is computing: 46.2%, 4.00 ms; idle 30.8%, exposed communication 23.1%, exposed copies 0.0%." in box(report)
    assert "The largest part of a step is exposed communication" not in report


def test_a_trace_without_steps_is_quoted_as_a_whole(tmp_path: Path) -> None:
    """And one that shows no device says why nothing can be quoted."""
    work = [*launched("gemm", (0, 1), (10, 30), 1), *launched("gemm", (2, 3), (90, 110), 2)]
    assert "part of the trace of the devices is idle: 60.0%" in box(
        report_of(tmp_path / "a", write_trace(tmp_path / "a.json", work))
    )
    host = [step(0, 0, 100), event("nccl:all_reduce", 60, 61, "user_annotation")]
    assert "holds no kernel" in box(report_of(tmp_path / "b", write_trace(tmp_path / "b.json", host)))


def test_nothing_is_said_of_a_run_that_was_not_made(tmp_path: Path) -> None:
    """No `None`, no precision, no warm-up, no clock of ours: traces were recorded elsewhere and read from files."""
    report = report_of(tmp_path, write_trace(tmp_path / "t.json", *job(0)))
    assert not [words for words in OF_A_RUN if words in report]
    assert report.splitlines()[2].startswith("imported traces: rank 0 of 2 · Card 9000 · ")
    assert "recorded elsewhere by torch's profiler, read from 1 file;" in report
    assert not re.search(r"\*\*–\*\*$", report, re.MULTILINE), "a figure that is not known has its reason"


def test_parts_of_idle_time_stand_below_what_they_are_a_part_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The host loads data, then launches two kernels at once: the second waits on the device."""
    events = [
        step(0, 0, 1000),
        *launched("gemm", (0, 10), (20, 30), 1),
        event("enumerate(DataLoader)#_Iter.__next__", 30, 400, "user_annotation"),
        *launched("gemm", (500, 510), (520, 600), 2),
        *launched("gemm", (511, 515), (700, 800), 3),
    ]
    report_of(tmp_path, write_trace(tmp_path / "t.json", events))
    lines = capsys.readouterr().out.splitlines()
    at = next(place for place, line in enumerate(lines) if "not launched yet by the host" in line)
    assert "of it, while the host loaded data" in lines[at + 1]
    assert "being launched" in lines[at + 2]


def test_a_trace_that_is_cut_off_is_named_in_the_box_and_is_in_no_mean(tmp_path: Path) -> None:
    """What is missing of its steps is not known; the other rank's are whole."""
    whole = write_trace(tmp_path / "rank0.json", *job(0)).read_bytes()
    write_trace(tmp_path / "rank1.json", *job(1))
    (tmp_path / "rank0.json").write_bytes(whole[: whole.rindex(b"cudaLaunchKernel") - 40])
    report = report_of(tmp_path / "both", tmp_path / "rank0.json", tmp_path / "rank1.json")
    assert "Damaged: trace of rank 0: it is cut off" in box(report)
    assert "computing: 46.2%, 4.00 ms" in box(report)
    report = report_of(tmp_path / "cut", tmp_path / "rank0.json")
    assert "every trace is cut off" in box(report)
    assert "Profiled steps that all have: **–** (every trace is cut off" in report

"""The page, its Markdown twin and its tables say the same, and nothing that was not meant to be said."""

from __future__ import annotations

import csv
import errno
import html
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from scalelab.launch import reporting
from scalelab.launch.cli import run_command
from scalelab.launch.errors import Exit
from scalelab.launch.reporting import report_after, summarise_and_report
from scalelab.profiles.analysis.diagnosis.diagnose import write_diagnosis
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.pictures import pictures
from scalelab.profiles.analysis.pictures.buckets import BUCKETS, edges
from scalelab.profiles.analysis.pictures.ranks import ROWS
from scalelab.profiles.analysis.pictures.shares import of_a_hundred
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.runfolder import RunFolder
from scalelab.reports import units
from scalelab.reports.page.html import page as html_page
from scalelab.reports.page.markdown import escape, markdown
from scalelab.reports.page.section import NAME_SHOWN, Column, Name, Number, Report, Section, Table, tables_of
from scalelab.reports.page.tables import as_csv
from scalelab.reports.page.write import run_report, sweep_report, write_run_report

from tests.support.reported import HOSTILE, made_run
from tests.support.sweep_example import example_summary


def report_of(folder: RunFolder) -> Report:
    run = load_run(folder)
    summary = summarise(run)
    return run_report(summary, pictures(run, summary, folder))


def test_both_twins_have_every_heading_and_every_table(tmp_path: Path) -> None:
    """Of a run and of a sweep: the same headings in the same order, the same tables, and a CSV file of each."""
    folder = made_run(tmp_path)
    report = report_of(folder)
    summarise_and_report(folder)
    page, twin = (folder.path / "report.html").read_text(), (folder.path / "report.md").read_text()
    for section in report.sections:
        assert f">{html.escape(section.title)}</h2>" in page
        assert f"## {escape(section.title)}" in twin
    for table in tables_of(report):
        assert f'id="about-{table.name}"' in page
        assert f"**{escape(table.caption)}**" in twin
        rows = list(
            csv.reader(io.StringIO((folder.path / "report-tables" / f"{table.name}.csv").read_text(), newline=""))
        )
        assert len(rows) == len(table.rows) + 1
    assert len({table.name for table in tables_of(report)}) == len(tables_of(report))
    sweep = sweep_report(example_summary())
    assert len({table.name for table in tables_of(sweep)}) == len(tables_of(sweep))
    assert markdown(sweep).count("\n## ") == len(sweep.sections)


def test_every_reason_is_told(tmp_path: Path) -> None:
    """Each entry of `reasons` is in the page by its path and its words."""
    folder = made_run(tmp_path)
    summary = summarise_and_report(folder)
    page = html.unescape((folder.path / "report.html").read_text())
    for path, why in summary["reasons"].items():
        assert path in page
        assert why in page


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"config": {"probe": "off"}, "steps": 0}, "finished"),
        ({"ranks": 1}, "finished"),
        ({"steps": 0}, "failed"),
        ({"steps": 3}, "running"),
        ({"config": {"device": "cuda"}}, "interrupted"),
        ({"config": {"strategy": "own", "engine": "own"}, "given": None}, "finished"),
    ],
    ids=str,
)
def test_whatever_a_run_left_is_shown_and_marked(tmp_path: Path, facts: dict[str, Any], state: str) -> None:
    """Runs without steps, alone, under way, cut short, of a loop of their own: each has its report, and one that did
    not finish is called partial."""
    folder = made_run(tmp_path, status={"state": state, "exit_code": None, "cause": None}, **facts)
    report = report_of(folder)
    assert ("partial" in report.sections[0].title) == (state != "finished")


@pytest.mark.fault(60, 61)
@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_stay_text_in_every_twin(tmp_path: Path, name: str) -> None:
    """No markup, no control character, no formula, no break of a row, in the page's data either."""
    folder = made_run(
        tmp_path, name=name, host=name, device_name=name, notes=[name], model={"name": name, "parameters": 1}
    )
    summarise_and_report(folder)
    page, twin = (folder.path / "report.html").read_text(), (folder.path / "report.md").read_text()
    assert page.count("</script>") == 3
    twin = re.sub(r"^(`{3,})\n.*?\n\1$", "", twin, flags=re.MULTILINE | re.DOTALL)
    assert "<img" not in page + twin
    for text in (page.replace("\u2028", ""), twin):
        assert not re.search(
            "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text.partition("window.Plotly")[0]
        )
    assert not re.search(r"(?<!\\)\]\(", twin)
    for path in (folder.path / "report-tables").glob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text(), newline="")):
            assert not any(cell.startswith(("=", "+", "@")) for cell in row)


def test_numbers_in_csv_are_in_si_and_formulas_are_text() -> None:
    """What is shown as milliseconds is seconds there; what is unknown is empty; a minus of a number stays."""
    columns = [Column("name", "name", numeric=False), Column("time", "seconds")]
    rows = [["=1+1", Number("1.5 ms", 0.0015)], ["-x", Number("–", None)], ["a,b\n", Number("-2 s", -2)]]
    assert as_csv(Table("t", "t", columns, rows)) == "name,seconds\r\n'=1+1,0.0015\r\n'-x,\r\n\"a,b\n\",-2\r\n"


def test_a_long_name_is_shown_by_its_begin_and_is_whole_in_csv() -> None:
    """Kernels' names fill pages: the whole one is in the title of its cell."""
    name = "void at::native::vectorized_elementwise_kernel<4, " + "float, " * 60 + ">"
    table = Table("t", "t", [Column("kernel", "name", numeric=False)], [[Name(name)], [Name("short")]])
    assert name in as_csv(table)
    report = Report("t", "s", [Section("s", "S", [table])], "f")
    text = html_page(report)
    assert f'title="{html.escape(name)}"' in text
    assert text.count("title=") == 1
    shown = re.search(r">(void at::native[^<]*(&lt;[^<]*)?)</td>", text)
    assert shown is not None
    assert len(html.unescape(shown[1])) <= NAME_SHOWN
    assert name not in html.unescape(markdown(report))


def test_the_interval_of_the_step_is_two_numbers(tmp_path: Path) -> None:
    """In seconds, as every number of a table; what is not known of the spread has its reason beside it."""
    folder = made_run(tmp_path)
    summary = summarise_and_report(folder)
    with (folder.path / "report-tables" / "step-spread.csv").open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    assert [float(row["ci95_low_seconds"]), float(row["ci95_high_seconds"])] == summary["step_seconds"]["ci95"]
    assert row["p99_seconds"] == ""
    assert f"Not known: p99: {summary['reasons']['step_seconds.p99']}" in (folder.path / "report.md").read_text()


@pytest.mark.parametrize("text", ["data.folder", "cost.by_cause.data.usd", "http://x.test/", "www.x.test", "mailto:a"])
def test_names_can_be_copied_from_the_twin_and_are_no_links(text: str) -> None:
    """No character is put in that a reader would copy along; what would become a link is parted by a comment."""
    found = escape(text)
    assert found.replace("\\", "").replace("<!-- -->", "") == text
    assert not re.search(r"http:|www\.|mailto:", found)


def test_of_each_hundred_says_what_the_table_below_it_says(tmp_path: Path) -> None:
    """To the tenth, whatever the tenths sum to; causes of less than a half are the rest."""
    shares = [0.48151, 0.30040, 0.20435, 0.0041, 0.0039, 0.00574]
    rows = of_a_hundred([{"cause": str(place), "share": share} for place, share in enumerate(shares)])
    assert [row["cause"] for row in rows] == ["0", "1", "2", "5", None]
    assert [f"{row['amount']:.1f}%" for row in rows[:-1]] == [units.percent(shares[place]) for place in (0, 1, 2, 5)]
    assert rows[-1]["amount"] == 0.8
    folder = made_run(tmp_path)
    summary = summarise_and_report(folder)
    line = re.search(r"Of each 100 device-hours: (.*)\.\n", (folder.path / "report.md").read_text())
    assert line is not None
    amounts = [f"{part.split()[0]}%" for part in line[1].split(", ") if not part.endswith(" the rest")]
    leaves = [units.percent(row["share"]) for row in summary["cost"]["by_cause_leaves"]]
    assert amounts == leaves[: len(amounts)]


def test_what_has_no_metric_is_not_called_by_one(tmp_path: Path) -> None:
    """A run without evaluations."""
    folder = made_run(tmp_path)
    run = load_run(folder)
    summary = summarise(run)
    summary["quality"] = {**summary["quality"], "metric": None, "best": None}
    assert "no metric" not in markdown(run_report(summary, pictures(run, summary, folder)))


def test_a_batch_that_is_not_known_says_why(tmp_path: Path) -> None:
    """As every figure that is not known: of a loop of its own that told no samples."""
    unknown = dict.fromkeys(("micro_batch", "grad_accumulation", "global_batch"))
    folder = made_run(tmp_path, config={"strategy": "own", "engine": "own", **unknown})
    summarise_and_report(folder)
    assert "- Global batch: **–** (a job's own loop does not tell it)" in (folder.path / "report.md").read_text()


def test_the_box_says_how_much_of_the_step_the_cause_takes(tmp_path: Path) -> None:
    """As the terminal does."""
    folder = made_run(tmp_path)
    run = load_run(folder)
    summary, drawn = summarise(run), pictures(run, summarise(run), folder)
    found = write_diagnosis(folder, run, summary)
    found["verdict"] |= {"label": "input_bound", "severity_share": 0.39, "says": ""}
    drawn["facts"]["diagnosis"] = {**found, "findings": []}
    assert "Diagnosis: input\\_bound, 39% of the step." in markdown(run_report(summary, drawn))


@pytest.mark.fault(62)
def test_no_secret_of_the_environment_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that nobody asked for is in none of the files."""
    monkeypatch.setenv("CANARY_TOKEN", "canary-31415926")
    folder = made_run(tmp_path)
    summarise_and_report(folder)
    assert not any(b"canary-31415926" in path.read_bytes() for path in folder.path.rglob("*") if path.is_file())


def test_the_parts_of_the_whole_run_are_shown(tmp_path: Path) -> None:
    """Start-up, warm-up, measured steps and what came after, each with its seconds and share."""
    folder = made_run(tmp_path)
    run = load_run(folder)
    summary = summarise(run)
    seconds = {"start_up": 5.0, "warmup": 2.0, "measured": 10.0, "evaluation": 1.0, "after_training": 2.0}
    parts = [{"part": name, "seconds": each, "share": each / 20} for name, each in seconds.items()]
    summary["cost"]["whole_run"] = {"seconds": 20.0, "parts": parts, "device_hours": 0.01, "samples": None, "usd": 1.0}
    twin = markdown(run_report(summary, pictures(run, summary, folder)))
    for row in ("start-up | 5.00 s | 25.0%", "warm-up steps | 2.00 s | 10.0%", "after training | 2.00 s | 10.0%"):
        assert row in twin


def test_a_large_run_is_reduced_and_says_so(tmp_path: Path) -> None:
    """More steps than buckets and more ranks than bars: bounded data, and captions that say what was put together."""
    folder = made_run(tmp_path, ranks=ROWS + 8, steps=BUCKETS + 50, calls=1)
    run = load_run(folder)
    summary = summarise(run)
    drawn = pictures(run, summary, folder)
    assert len(drawn["steps"]["mean"]) == BUCKETS
    assert len(drawn["ranks"]["rows"]) == ROWS - 12
    assert len(drawn["timeline"]["ranks"]) == 8
    twin = markdown(run_report(summary, drawn))
    assert f"{BUCKETS + 50} steps are shown as {BUCKETS} buckets" in twin
    assert f"{ROWS + 8} ranks are shown as {ROWS - 12} groups of up to 2 neighbours" in twin
    assert f"8 of {ROWS + 8} ranks" in twin


def test_the_step_that_stands_out_is_named(tmp_path: Path) -> None:
    """One step of 38 took three times as long, in waiting for input."""
    folder = made_run(tmp_path)
    run = load_run(folder)
    found = pictures(run, summarise(run), folder)["histogram"]
    assert [(each["step"], each["phase"]) for each in found["named"]] == [(37, "data")]
    assert sum(found["counts"]) + found["outliers"] == found["of"] == 38


@pytest.mark.parametrize("count", [1, 399, 400, 401, 1000, 12345])
def test_buckets_tile_the_series(count: int) -> None:
    """Every step is in one bucket, and buckets differ by one step at most."""
    sizes = [end - begin for begin, end in zip(edges(count), edges(count)[1:], strict=False)]
    assert sum(sizes) == count
    assert len(sizes) <= BUCKETS
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.fault(29, 67)
def test_the_old_report_stays_where_a_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the disk full the files are the old ones, whole, and the run's result is told all the same."""
    folder = made_run(tmp_path)
    summarise_and_report(folder)
    before = {path.name: path.read_bytes() for path in folder.path.glob("report.*")}
    folder.write("status.json", {"state": "failed", "exit_code": 5, "cause": "x"})
    written = os.write

    def full(descriptor: int, content: Any) -> int:
        if "/.report." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "no space")
        return written(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    said: list[str] = []
    summary, reported = report_after(folder, said.append)
    assert not reported
    assert summary["outcome"]["exit_code"] == 5
    assert "the disk is full" in said[0]
    assert before == {path.name: path.read_bytes() for path in folder.path.glob("report.*")}
    assert not list(folder.path.glob("*.partial")) + list(folder.path.glob(".*.partial"))
    assert run_command(["report", str(folder.path)]) == Exit.PREFLIGHT


def test_a_bug_in_a_rule_costs_no_run_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, with the traceback; the summary is there."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(reporting, "write_diagnosis", broken)
    folder = made_run(tmp_path)
    said: list[str] = []
    summary, reported = report_after(folder, said.append)
    assert (reported, folder.read("summary.json")["run_id"]) == (False, summary["run_id"])
    assert "planted" in said[0]
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"schema": 1}', '{"schema": 1, "verd', "[]", '{"verdict": {}, "findings": 3}'])
def test_a_diagnosis_that_cannot_be_read_is_none_and_that_is_said(tmp_path: Path, content: str) -> None:
    """Half-written, of something else, or empty: the report is written, and says how to have a new one. With the
    summary it is made anew."""
    folder = made_run(tmp_path, status={"state": "finished"})
    (folder.path / "diagnosis.json").write_text(content)
    run = load_run(folder)
    write_run_report(folder, run, summarise(run))
    assert "The diagnosis cannot be read" in (folder.path / "report.md").read_text()
    assert summarise_and_report(folder)["outcome"] == {"state": "finished", "exit_code": None}
    assert "The diagnosis cannot be read" not in (folder.path / "report.md").read_text()


def test_a_folder_that_is_no_runs_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is refused by its name, and the report of the run between them is written."""
    folder, half, newer = made_run(tmp_path), tmp_path / "half", tmp_path / "newer"
    half.mkdir()
    newer.mkdir()
    (newer / "run.json").write_text('{"schema": 999}')
    (tmp_path / "other").mkdir()
    summed = made_run(tmp_path / "other").path
    (summed / "summary.json").write_text('{"schema": 999}')
    names = [str(tmp_path / "none"), str(half), str(folder.path), str(newer), str(summed)]
    assert run_command(["report", *names]) == Exit.USAGE
    told = capsys.readouterr().err
    assert all(name in told for name in (names[0], names[1], names[3], names[4]))
    assert told.count("upgrade") == 2
    assert (summed / "summary.json").read_text() == '{"schema": 999}'
    assert run_command(["report", str(folder.path / "run.json")]) == Exit.USAGE
    assert "run.json: a file, not a folder" in capsys.readouterr().err
    assert (folder.path / "report.html").is_file()

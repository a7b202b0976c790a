"""`scalelab import`: a run folder from traces that others recorded; unknown is null with its reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scalelab.launch.cli import run_command
from scalelab.profiles.analysis.traces import trace_files

from tests.support.traces import event, kernel, launched, recorded, step, write_trace


def imported(capsys: pytest.CaptureFixture[str], tmp_path: Path, *argv: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON on stdout, and stderr."""
    code = run_command(["import", *map(str, argv), f"--out={tmp_path / 'runs'}", "--json"])
    said = capsys.readouterr()
    return int(code), json.loads(said.out) if said.out.strip() else {}, said.err


def job(rank: int, world: int = 2, ms: float = 10.0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Three steps of `ms`, each with 4 ms of computing and 2 of exposed communication on the device."""
    events = []
    for number in range(3):
        at = number * ms * 1000
        events += [step(number, at, at + ms * 1000)]
        events += launched("gemm", (at, at + 10), (at + 100, at + 4100), 2 * number + 1)
        events += launched("ncclDevKernel_AllReduce", (at + 20, at + 30), (at + 4100, at + 6100), 2 * number + 2)
    properties = [{"id": 0, "name": "Card 9000"}]
    return events, {"distributedInfo": {"rank": rank, "world_size": world}, "deviceProperties": properties}


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all that is known in a nest of objects, objects included."""
    if not isinstance(value, dict):
        return [] if value is None else [path]
    inside = [leaf for name, each in value.items() for leaf in leaves(each, (*path, name))]
    return [path, *inside] if inside else []


def holes(value: Any, path: str = "") -> list[str]:
    """Dotted paths of every null that stands alone in a nest of objects."""
    if isinstance(value, dict):
        return [hole for name, each in value.items() for hole in holes(each, f"{path}.{name}" if path else name)]
    return [path] if value is None else []


def test_what_traces_tell_is_in_the_summary_and_all_else_is_null_with_a_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for rank in (1, 0):
        write_trace(tmp_path / f"trace_{rank}.json.gz", *job(rank))
    code, summary, _ = imported(capsys, tmp_path, tmp_path / "trace_1.json.gz", tmp_path / "trace_0.json.gz")
    assert code == 0
    assert (summary["source"], summary["device"], summary["world_size"]) == ("imported", "cuda", 2)
    assert summary["device_name"] == "Card 9000"
    assert summary["steps"]["profiled"] == 3
    # On the device's timeline: 10 ms from first kernel to first kernel, and the last step's own 6.
    assert summary["step_seconds"]["mean"] == pytest.approx((0.01 + 0.01 + 0.006) / 3)
    assert summary["comm"]["exposed_seconds"] == pytest.approx(0.002)
    exposed = summary["phases"]["comm_exposed"]
    assert (exposed["mean"], exposed["share"]) == (pytest.approx(0.002), pytest.approx(0.006 / 0.026))
    assert [row["rank"] for row in summary["trace"]["per_rank"]] == [0, 1]
    assert summary["trace"]["merged"]["left_out_events"] == 0
    assert summary["trace"]["merged"]["clocks"] == "as the files have them"
    for name in ("throughput.samples_per_second", "loss", "memory.peak_bytes", "strategy", "comm.straggler"):
        assert summary["reasons"][name]
    alone = [path for path in holes(summary) if not path.startswith(("trace.", "reasons"))]
    told = summary["reasons"]
    assert [path for path in alone if not any(path == each or path.startswith(each + ".") for each in told)] == []
    known = {".".join(path) for path in leaves(summary)}
    assert not known & set(told)


def test_a_summary_can_be_rebuilt_from_the_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", *job(7, world=8))
    _, summary, _ = imported(capsys, tmp_path, tmp_path / "t.json")
    folder = Path(summary["run_folder"])
    assert list(trace_files(folder)) == [7]
    assert "Imported traces" in (folder / "report.md").read_text()
    assert (folder / "report.html").is_file()
    (tmp_path / "t.json").unlink()
    before = (folder / "summary.json").read_bytes()
    assert run_command(["report", str(folder), "--json"]) == 0
    assert (folder / "summary.json").read_bytes() == before
    capsys.readouterr()
    assert run_command(["report", str(folder)]) == 0
    assert "communication, exposed" in capsys.readouterr().out


def test_a_damaged_trace_beside_a_good_one_is_named_and_passed_over(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_trace(tmp_path / "rank0.json", *job(0))
    (tmp_path / "rank1.json").write_text("{}")
    code, summary, _ = imported(capsys, tmp_path, tmp_path / "rank0.json", tmp_path / "rank1.json")
    assert code == 0
    assert "not a trace that can be used" in summary["trace"]["per_rank"][1]["unusable"]
    assert summary["comm"]["exposed_seconds"] == pytest.approx(0.002)


def test_damage_is_told_in_the_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A trace that is cut off, and one with events that cannot be: both stand in the page's section of traces."""
    events, metadata = job(0)
    whole = write_trace(tmp_path / "rank0.json", [*events, event("late", 5, 2)], metadata).read_bytes()
    (tmp_path / "rank0.json").write_bytes(whole[: whole.rindex(b"late") - 80])
    odd, metadata = job(1)
    write_trace(tmp_path / "rank1.json", [*odd, event("negative", 5, 2)], metadata)
    code, summary, _ = imported(capsys, tmp_path, tmp_path / "rank0.json", tmp_path / "rank1.json")
    assert code == 0
    page = (Path(summary["run_folder"]) / "report.md").read_text()
    assert "the trace is damaged: it is cut off" in page
    assert "1 event could not be used: times that cannot be" in page


def test_work_without_length_divides_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A step whose one kernel takes no time: shares are null with the reason."""
    events = [step(0, 0, 10), *launched("gemm", (1, 2), (5, 5), 1)]
    code, summary, errors = imported(capsys, tmp_path, write_trace(tmp_path / "t.json", events))
    assert code == 0, errors
    assert summary["phases"]["comm_exposed"]["share"] is None
    assert "no length" in summary["reasons"]["phases.comm_exposed.share"]


@pytest.mark.parametrize("backend", ["gloo", "recorded_gloo", "cpu:gloo"])
def test_the_devices_of_a_cpu_jobs_machine_are_not_the_jobs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, backend: str
) -> None:
    """kineto writes them down wherever it was built for CUDA; the backend tells that the job used none."""
    metadata = {
        "distributedInfo": {"rank": 0, "world_size": 1, "backend": backend},
        "deviceProperties": [{"name": "x"}],
    }
    path = write_trace(tmp_path / "t.json", [step(0, 0, 10), event("aten::mm", 1, 9)], metadata)
    _, summary, _ = imported(capsys, tmp_path, path)
    assert summary["trace"]["per_rank"][0]["devices"][0]["device"] is None


def test_what_cannot_be_imported_is_refused_with_the_way_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And no folder is made."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("hello")
    for name, rank, world in (("a", 0, 2), ("b", 0, 2), ("c", 1, 4)):
        write_trace(tmp_path / f"{name}.json", *job(rank, world))
    cases = [
        ([], "none was given"),
        ([tmp_path / "gone.json"], "no such file"),
        ([tmp_path / "empty"], "holds no .json"),
        ([tmp_path / "text.json"], "not a trace that can be used"),
        ([tmp_path / "a.json", tmp_path / "b.json"], "all are of rank 0"),
        ([tmp_path / "a.json", tmp_path / "c.json"], "of different jobs: of 2, 4 ranks"),
    ]
    for argv, expected in cases:
        code, failure, errors = imported(capsys, tmp_path, *argv)
        assert code == 2, argv
        assert expected in errors.replace("\n", " ")
        assert failure["error"]["hint"]
    assert not (tmp_path / "runs").exists()


def test_a_trace_without_steps_or_communication_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", [kernel("gemm", 0, 5), event("aten::mm", 0, 1)])
    _, summary, _ = imported(capsys, tmp_path, tmp_path / "t.json")
    assert summary["step_seconds"]["mean"] is None
    assert summary["comm"]["exposed_seconds"] is None
    assert "marks no step" in summary["reasons"]["comm.exposed_seconds"]
    assert "marks no step" in summary["reasons"]["trace.device_mean"]
    assert summary["trace"]["per_rank"][0]["devices"][0]["compute_seconds"] == pytest.approx(5e-6)
    assert summary["world_size"] is None
    assert summary["comm"]["calls_per_step"] is None


@pytest.mark.parametrize("name", ["a100x2_nccl_rank0", "world128_sampled_rank0", "resnet50_workers0_worker0"])
def test_recorded_traces_become_run_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    shutil.copy(recorded(name), tmp_path)
    code, summary, errors = imported(capsys, tmp_path, tmp_path / recorded(name).name)
    assert code == 0, errors
    device = summary["trace"]["device_mean"]
    parts = ("compute_seconds", "exposed_communication_seconds", "exposed_copies_seconds", "idle_seconds")
    assert sum(device[part] for part in parts) == pytest.approx(device["span_seconds"])
    assert summary["steps"]["profiled"] >= 2
    (row,) = summary["trace"]["per_rank"]
    assert row["kernels"]
    assert not row["damage"]


def test_ranks_of_unlike_windows_are_divided_each_by_their_own_steps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Three steps of one rank, six of another, each with 2 ms exposed: 2 ms a step."""
    first, facts = job(0)
    second, other = job(1)
    more, _ = job(1)
    shifted = [{**row, "ts": row["ts"] + 30_000.0, "args": {**row["args"]}} for row in more]
    for row in shifted:
        row["name"] = {f"ProfilerStep#{n}": f"ProfilerStep#{n + 3}" for n in range(3)}.get(row["name"], row["name"])
        if "correlation" in row["args"]:
            row["args"]["correlation"] += 100
    write_trace(tmp_path / "a.json", first, facts)
    write_trace(tmp_path / "b.json", [*second, *shifted], other)
    _, summary, _ = imported(capsys, tmp_path, tmp_path / "a.json", tmp_path / "b.json")
    assert summary["comm"]["exposed_seconds"] == pytest.approx(0.002)
    assert summary["steps"]["profiled"] == 3


def test_a_ranks_device_is_the_one_that_works(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Not device 0, on which every process leaves a stray fill; and two that work are not one."""
    events, facts = job(0)
    moved = [{**row, "args": {**row["args"], "device": 1}} if row["pid"] == 0 else row for row in events]
    stray = {**kernel("fill", 50, 52), "args": {"device": 0, "stream": 7}}
    write_trace(tmp_path / "a.json", [*moved, stray], facts)
    _, summary, _ = imported(capsys, tmp_path, tmp_path / "a.json")
    assert summary["comm"]["exposed_seconds"] == pytest.approx(0.002)
    write_trace(tmp_path / "b.json", [*moved, *events], facts)
    _, summary, _ = imported(capsys, tmp_path, tmp_path / "b.json")
    assert summary["comm"]["exposed_seconds"] is None
    assert "worked on 2 devices" in summary["reasons"]["comm.exposed_seconds"]


def test_a_gpu_job_without_kernels_is_no_cpu_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing is known of its devices then, and nothing of it enters the means of others."""
    host = [step(0, 0, 100), event("aten::mm", 1, 50), event("nccl:all_reduce", 60, 61, "user_annotation")]
    write_trace(tmp_path / "a.json", *job(0))
    write_trace(tmp_path / "b.json", host, {"distributedInfo": {"rank": 1, "world_size": 2, "backend": "nccl"}})
    _, summary, _ = imported(capsys, tmp_path, tmp_path / "a.json", tmp_path / "b.json")
    assert summary["comm"]["exposed_seconds"] is None
    assert "holds no kernel" in summary["reasons"]["comm.exposed_seconds"]
    _, alone, _ = imported(capsys, tmp_path, tmp_path / "b.json")
    assert alone["device"] == "cuda"
    assert alone["comm"]["exposed_seconds"] is None


def test_a_host_that_runs_ahead_does_not_shorten_the_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Launched within 1 ms each, 6 ms of work: steps of 6 ms."""
    events = []
    for number in range(3):
        at = number * 1000.0
        events += [step(number, at, at + 1000)]
        events += launched("gemm", (at, at + 10), (100 + number * 6000.0, 6100 + number * 6000.0), number + 1)
    write_trace(tmp_path / "a.json", events)
    _, summary, _ = imported(capsys, tmp_path, tmp_path / "a.json")
    assert summary["step_seconds"]["mean"] == pytest.approx(0.006)
    assert summary["phases"]["comm_exposed"]["share"] == 0.0


def test_ranks_come_from_the_traces_as_far_as_they_tell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_trace(tmp_path / "x_r1.json", *job(3, world=8))
    write_trace(tmp_path / "x_r2.json", *job(5, world=8))
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "all_ranks.json.gz").write_bytes(b"")
    _, summary, _ = imported(capsys, tmp_path, tmp_path)
    assert [(row["rank"], row["unusable"] is None) for row in summary["trace"]["per_rank"]] == [
        (3, True), (5, True), (6, False),
    ]  # fmt: skip
    shutil.copy(tmp_path / "x_r1.json", tmp_path / "rank7.json")
    code, _, errors = imported(capsys, tmp_path, tmp_path / "x_r1.json", tmp_path / "rank7.json")
    assert code == 2
    assert "all are of rank 3" in errors


def test_a_file_that_is_no_trace_is_called_what_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Empty, not packed as its name says, or of something else."""
    for name, content, said in (
        ("empty.json", b"", "it is empty"),
        ("empty.json.gz", b"", "it is empty"),
        ("text.json.gz", b"hello", "it is no gzip file, as its name says"),
        ("other.json", b"{}", "it holds no list of trace events"),
    ):
        (tmp_path / name).write_bytes(content)
        code, _, errors = imported(capsys, tmp_path, tmp_path / name)
        assert code == 2
        assert said in " ".join(errors.split())


def test_garbage_in_the_middle_is_no_cut(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The end of the list is there, and what stands beside it; the events around the garbage are lost."""
    events, metadata = job(0)
    text = json.dumps({"traceEvents": events, **metadata})
    middle = text.index('"name"', len(text) // 3)
    (tmp_path / "t.json").write_text(text[:middle] + '\x00{{"]' + text[middle + 9 :])
    _, summary, _ = imported(capsys, tmp_path, tmp_path / "t.json")
    (row,) = summary["trace"]["per_rank"]
    assert (row["damage"], row["cut"]) == (["some of its events cannot be read"], False)
    assert row["dropped"] == {"not readable": 1}
    assert summary["world_size"] == 2
    assert summary["damage"] == ["trace of rank 0: some of its events cannot be read"]


def test_a_rank_that_cannot_be_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is not made into another in silence."""
    for rank in (-3, 10**30):
        write_trace(tmp_path / "t.json", job(0)[0])
        text = (tmp_path / "t.json").read_text()
        (tmp_path / "t.json").write_text(f'{{"distributedInfo": {{"rank": {rank}}}, ' + text[1:])
        _, summary, _ = imported(capsys, tmp_path, tmp_path / "t.json")
        assert summary["damage"][0].startswith(f"trace of rank 0: its distributedInfo.rank is {rank}, which is no rank")


def test_the_terminal_says_why_a_trace_shows_no_device(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """And one usable trace is not merged with one that is not."""
    host = [step(0, 0, 100), event("aten::mm", 1, 50), event("nccl:all_reduce", 60, 61, "user_annotation")]
    write_trace(tmp_path / "rank0.json", host)
    (tmp_path / "rank1.json").write_text("{}")
    assert run_command(["import", str(tmp_path), f"--out={tmp_path / 'runs'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "rank 0: the trace is of a job on GPUs and holds no kernel" in said
    assert "all ranks in one" not in said


HOSTILE = [
    {"deviceProperties": [[[]]]},
    {"distributedInfo": {"rank": 10**30, "world_size": True}},
    {"baseTimeNanoseconds": 10**400},
]


@pytest.mark.fault(63)
@pytest.mark.parametrize("metadata", HOSTILE, ids=str)
def test_hostile_metadata_is_no_metadata(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, metadata: dict[str, Any]
) -> None:
    events, _ = job(0)
    odd = [step(10**30, 0, 10), {**event("aten::mm", 1, 2), "tid": "\ud800"}, {**event("aten::mm", 3, 4), "tid": [1]}]
    text = json.dumps({**metadata, "traceEvents": [*events, *odd]})
    (tmp_path / "t.json").write_text(text)
    code, summary, errors = imported(capsys, tmp_path, tmp_path / "t.json")
    assert code == 0, errors
    assert summary["world_size"] is None
    assert summary["steps"]["profiled"] == 3
    (tmp_path / "deep.json").write_text(
        '{"x":' + "[" * 100_000 + "]" * 100_000 + ',"traceEvents":' + json.dumps(events) + "}"
    )
    code, summary, errors = imported(capsys, tmp_path, tmp_path / "deep.json")
    assert code == 0, errors

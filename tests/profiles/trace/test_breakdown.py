"""Where a device's time went, why it was idle and where its host waited: by hand, and against another tool's figures
on traces that others recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scalelab.profiles.analysis.trace.breakdown import breakdowns
from scalelab.profiles.analysis.trace.events import Kind, Trace
from scalelab.profiles.analysis.trace.idle import why_idle
from scalelab.profiles.analysis.trace.intervals import length
from scalelab.profiles.analysis.trace.reader import read_trace
from scalelab.profiles.analysis.trace.said import facts_of, launching_processes, said_by
from scalelab.profiles.analysis.trace.window import profiler_steps, within
from scalelab.profiles.analysis.traces import read_traces

from tests.support.traces import event, kernel, launched, recorded, step, write_trace

NCCL = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevComm*)"


def microseconds(found: dict[str, float], *names: str) -> list[float]:
    return [round(found[f"{name}_seconds"] * 1e6, 3) for name in names]


def test_every_moment_of_a_device_has_one_place(tmp_path: Path) -> None:
    """Computing before communication before copies before idle, whatever overlaps, on any stream."""
    events = [
        kernel("gemm", 0, 10),
        kernel("gemm", 5, 12, stream=8),
        kernel(NCCL, 8, 20, stream=9),
        kernel("Memcpy DtoD", 18, 25, category="gpu_memcpy"),
        kernel("gemm", 40, 50),
    ]
    (device,) = said_by(read_trace(write_trace(tmp_path / "t.json", events)))["devices"]
    names = ("span", "compute", "exposed_communication", "exposed_copies", "idle", "overlapped_communication")
    assert microseconds(device, *names) == [50, 22, 8, 5, 15, 4]


def test_a_device_is_idle_for_want_of_work_or_for_other_work(tmp_path: Path) -> None:
    """Three gaps: the host came late, partly while it loaded data; its launch took its time; the work was there."""
    events = [
        *launched("a", (0, 2), (5, 10), 1),
        event("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 8, 24, "user_annotation"),
        *launched("b", (25, 27), (30, 40), 2),
        *launched("c", (35, 36), (60, 70), 3),
        kernel("d", 75, 80),
    ]
    (device,) = said_by(read_trace(write_trace(tmp_path / "t.json", events)))["devices"]
    assert device["idle"]["gaps"] == 3
    names = ("not_launched", "loading", "launching", "on_device", "unknown")
    assert microseconds(device["idle"], *names) == [15, 14, 5, 20, 5]
    assert device["launch_delay_seconds"]["median"] == pytest.approx(5e-6)


def test_idle_time_after_the_host_had_waited_is_told_apart(tmp_path: Path) -> None:
    """Where the device ran empty during the wait; not where the host was merely slow, nor where it had gone on before,
    nor what it then spent loading."""
    sync = "cudaStreamSynchronize"
    events = [
        *launched("a", (0, 2), (5, 20), 1),
        event(sync, 6, 21, "cuda_runtime"),
        *launched("b", (25, 27), (30, 40), 2),
        *launched("c", (50, 51), (55, 60), 3),
        event(sync, 56, 58, "cuda_runtime"),
        *launched("d", (62, 63), (65, 70), 4),
        event(sync, 66, 71, "cuda_runtime"),
        event("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 72, 78, "user_annotation"),
        *launched("e", (80, 81), (82, 90), 5),
    ]
    (device,) = said_by(read_trace(write_trace(tmp_path / "t.json", events)))["devices"]
    names = ("not_launched", "loading", "after_sync")
    assert microseconds(device["idle"], *names) == [5 + 10 + 2 + 10, 6, 5 + 4]


def test_a_host_without_a_device_computes_in_operators_and_not_in_what_wraps_them(tmp_path: Path) -> None:
    """A wrapper that waits inside for gloo is not taken for computing."""
    events = [
        event("aten::mm", 0, 10),
        event("WrapperBackward", 10, 40),
        event("aten::add", 35, 40),
        event("gloo:all_reduce", 5, 30, "user_annotation", tid=2),
        event("c10d::allreduce_", 10, 12),
    ]
    (host,) = said_by(read_trace(write_trace(tmp_path / "t.json", events)))["devices"]
    assert host["device"] is None
    assert host["idle"] is None
    names = ("span", "compute", "exposed_communication", "overlapped_communication", "idle")
    assert microseconds(host, *names) == [40, 15, 20, 5, 5]


def test_waits_of_the_host_are_named_by_call_operator_and_line(tmp_path: Path) -> None:
    own, library = "train.py(12): loss_of", "/x/site-packages/torch/_tensor.py(3): item"
    events = [
        event("<built-in>", 0, 100, "python_function"),
        event(own, 1, 60, "python_function"),
        event(library, 2, 59, "python_function"),
        event("aten::item", 3, 50),
        event("aten::_local_scalar_dense", 4, 49),
        event("cudaStreamSynchronize", 10, 40, "cuda_runtime", correlation=1),
        event("aten::to", 61, 90),
        event("cudaMemcpyAsync", 62, 80, "cuda_runtime", correlation=2),
        kernel("Memcpy HtoD (Pageable -> Device)", 63, 79, 2, category="gpu_memcpy"),
        event("cudaMemcpyAsync", 92, 93, "cuda_runtime", correlation=3),
        kernel("Memcpy HtoD (Pinned -> Device)", 92, 99, 3, category="gpu_memcpy"),
    ]
    found = said_by(read_trace(write_trace(tmp_path / "t.json", events)))["host_syncs"]
    assert [(each["call"], each["operator"], each["source"]) for each in found] == [
        ("cudaStreamSynchronize", "aten::item", "train.py:12 (loss_of)"),
        ("cudaMemcpyAsync of pageable memory", "aten::to", None),
    ]
    assert [each["blocked_seconds"] for each in found] == pytest.approx([30e-6, 18e-6])


def test_what_would_wait_is_named_where_there_is_no_device(tmp_path: Path) -> None:
    events = [event("m.py(3): f", 0, 50, "python_function"), event("aten::mm", 41, 49)]
    events += [event("aten::_fused_adamw_", 31, 40), event("aten::item", 32, 33)]  # its own way on a CPU
    for begin in (1, 11, 21):
        events += [event("aten::item", begin, begin + 5), event("aten::_local_scalar_dense", begin + 1, begin + 4)]
    (found,) = said_by(read_trace(write_trace(tmp_path / "t.json", events)))["host_syncs"]
    assert found == {
        "call": "aten::item", "operator": None, "source": "m.py:3 (f)", "count": 3, "blocked_seconds": None,
    }  # fmt: skip


def test_steps_hold_what_they_launched(tmp_path: Path) -> None:
    """Kernels run behind the step that launched them; what was launched before the first or after the last is out."""
    events = [
        *launched("before", (0, 1), (12, 20), 1),
        step(4, 10, 20),
        *launched("first", (11, 12), (25, 30), 2),
        step(5, 20, 30),
        *launched("second", (28, 29), (45, 50), 3),
        *launched("after", (31, 32), (50, 60), 4),
    ]
    found = said_by(read_trace(write_trace(tmp_path / "t.json", events)))
    took = [(row["number"], round(row["seconds"] * 1e6), round(row["host_seconds"] * 1e6)) for row in found["steps"]]
    assert took == [(4, 20, 10), (5, 5, 10)]
    assert {each["name"] for each in found["kernels"]} == {"first", "second"}
    assert microseconds(found["devices"][0], "span", "compute") == [25, 10]


def test_what_runs_on_through_a_window_fills_it(tmp_path: Path) -> None:
    """Launched before the window, a collective on another stream is no idle time of it; nor does its delay count."""
    events = [
        *launched(NCCL, (0, 1), (5, 90), 1, stream=9),
        *launched("late", (2, 3), (91, 92), 2),
        step(4, 10, 60),
        *launched("first", (11, 12), (20, 30), 3),
        *launched("second", (50, 51), (60, 70), 4),
    ]
    (device,) = said_by(read_trace(write_trace(tmp_path / "t.json", events)))["devices"]
    assert microseconds(device, "span", "compute", "exposed_communication", "idle") == [50, 20, 30, 0]
    assert device["launch_delay_seconds"]["p90"] < 11e-6


def test_an_event_that_outlasts_its_parent_is_still_in_what_holds_it(tmp_path: Path) -> None:
    events = [event("aten::linear", 0, 100), event("aten::addmm", 10, 80), event("aten::mm", 20, 80.002)]
    rows = said_by(read_trace(write_trace(tmp_path / "t.json", events)))["operators"]
    own = {row["name"]: row["seconds"] * 1e6 for row in rows}
    assert own["aten::linear"] < 1
    assert own["aten::mm"] == pytest.approx(60, abs=0.01)


def test_marks_of_the_profiler_are_no_operators_and_an_empty_one_no_step(tmp_path: Path) -> None:
    events = [
        {**step(1, 0, 10), "cat": "Operator"},
        event("aten::mm", 1, 5),
        {**step(2, 10, 20), "cat": "Operator"},
        event("aten::mm", 11, 15),
        {**step(3, 20, 21), "cat": "Operator"},
    ]
    found = said_by(read_trace(write_trace(tmp_path / "t.json", events)))
    assert [each["number"] for each in found["steps"]] == [1, 2]
    assert {each["name"] for each in found["operators"]} == {"aten::mm"}


def test_several_processes_in_one_file_are_refused(tmp_path: Path) -> None:
    """Correlations tie a kernel to its launch within one process alone."""
    events = launched("a", (0, 1), (5, 10), 1)
    other = [{**row, "pid": 8} if row["pid"] == 7 else row for row in launched("b", (100, 101), (105, 110), 1)]
    path = write_trace(tmp_path / "t.json", [*events, *other])
    assert launching_processes(read_trace(path)) == 2
    (row,) = read_traces({0: path})
    assert "2 processes launch" in row["unusable"]


# Name of the trace: idle, compute, the rest and the span (microseconds), and the share of communication (%) that was
# overlapped, by HolisticTraceAnalysis 0.5.0 (get_temporal_breakdown, get_comm_comp_overlap).
BY_HTA = {
    "a100x2_nccl_rank0": (338781, 75169, 21636, 435586, 14.31),
    "world128_sampled_rank0": (321378, 106252, 172428, 600058, 11.81),
    "resnet50_workers0_worker0": (327463, 492891, 10140, 830494, 0.0),
}


def as_hta_takes_it(trace: Trace) -> tuple[Trace, np.ndarray]:
    """With begins rounded up to whole microseconds and ends down, and without what the last profiler step launched."""
    assert trace.base_microseconds == round(trace.base_microseconds)
    begin, end = -(-trace.begin // 1000) * 1000, trace.end // 1000 * 1000
    whole = dataclasses.replace(trace, begin=begin, end=np.maximum(begin, end))
    last = max(begin for _, begin, _ in profiler_steps(trace))
    return whole, within(trace, int(trace.begin[0]), last)


@pytest.mark.parametrize("name", sorted(BY_HTA))
def test_recorded_traces_have_the_breakdown_that_another_tool_found(name: str) -> None:
    """Within 0.1 %, once times are cut as that tool cuts them (round_down_time_stamps)."""
    trace, chosen = as_hta_takes_it(read_trace(recorded(name)))
    (found,) = breakdowns(trace, chosen)
    other = length(found.exposed_communication) + length(found.exposed_copies)
    ours = [length(found.idle), length(found.compute), other, found.span_ns]
    idle, compute, rest, span, overlapped = BY_HTA[name]
    assert [each / 1000 for each in ours] == pytest.approx([idle, compute, rest, span], rel=1e-3)
    share = 100 * length(found.overlapped_communication) / max(1, length(found.communication))
    assert share == pytest.approx(overlapped, abs=0.01)
    idle_parts = why_idle(trace, found)
    assert idle_parts is not None
    assert idle_parts.unknown == 0


def test_cutting_times_is_the_whole_difference() -> None:
    """That tool's compute time is 2.3 % below ours: each of 1,800 kernels, some of 2 us, loses one."""
    trace = read_trace(recorded("a100x2_nccl_rank0"))
    cut, chosen = as_hta_takes_it(trace)
    (exact,), (short,) = breakdowns(trace, chosen), breakdowns(cut, chosen)
    kernels = (trace.kind == Kind.KERNEL) & chosen
    lost = ((trace.end - trace.begin) - (cut.end - cut.begin))[kernels].sum()
    assert length(exact.compute) - length(short.compute) == pytest.approx(lost, rel=0.02)


def test_an_input_bound_job_is_seen_to_be_one() -> None:
    """ResNet-50 with no loader process: most of what the card was idle for went into loading."""
    found = said_by(read_trace(recorded("resnet50_workers0_worker0")))
    idle = found["devices"][0]["idle"]
    assert idle["loading_seconds"] > 0.7 * found["devices"][0]["idle_seconds"]
    assert any(each["source"] == "resnet50_profiler_api.py:44 (<module>)" for each in found["host_syncs"])
    assert facts_of(read_trace(recorded("world128_sampled_rank0")))["world_size"] == 128

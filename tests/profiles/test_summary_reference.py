"""docs/summary.md has a row for every field of a summary, and no row that no summary has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scalelab.profiles.analysis.imported import config_of
from scalelab.profiles.analysis.parity import PARITY
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.summary import write_summary
from scalelab.profiles.records import BadSampleRecord, BlockRecord, EndRecord, EventRecord, Record, WindowRecord
from scalelab.profiles.runfolder import RunFolder
from scalelab.profiles.used import AllocatorRecord, HostSync, MemoryRecord

from tests.profiles import test_calibration, test_communication, test_efficiency, test_memory, test_tail, test_telemetry
from tests.profiles.test_summary import folder_with, run_json, step
from tests.support import traces
from tests.support.fake_nvml import FakeCard

PAGE = Path(__file__).parents[2] / "docs" / "summary.md"
ROW = re.compile(r"\| `(?P<field>[^`]+)` \| (?P<type>[^,|]+)(, [^|]+)? \| [^|]+ \| (?P<null>[^|]+) \|")
TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    # JSON has one kind of number: 0.0 is an integer.
    "integer": lambda value: TYPES["number"](value) and value == int(value),
    "object": lambda value: isinstance(value, dict),
    "[low, high]": lambda value: len(value) == 2 and all(map(TYPES["number"], value)),
}
TYPES |= {
    f"list of {name}s": lambda value, name=name: all(each is None or TYPES[name](each) for each in value)
    for name in ("string", "number", "integer", "object")
}
Field = tuple[str, ...]


def table() -> dict[Field, tuple[str, str]]:
    """The page's rows: of each field its type and when it is null."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    rows = []
    for line in lines:
        row = ROW.fullmatch(line)
        assert row is not None, f"no row of four cells: {line}"
        # The unit of an interval comes after a comma, as that within its brackets does.
        kind = "[low, high]" if row["type"].startswith("[low") else row["type"]
        rows.append((tuple(row["field"].split(".")), (kind, row["null"])))
    found = dict(rows)
    assert len(found) == len(rows), "a field has two rows"
    return found


def fields(value: Any, path: Field = ()) -> Iterator[tuple[Field, Any]]:
    """Every path of a summary with its value, but the summary's own; rows of a list have one path."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for name, each in value.items():
            yield from fields(each, (*path, str(name)))
    elif isinstance(value, list) and path:
        for each in value:
            if isinstance(each, dict):
                for name, part in each.items():
                    yield from fields(part, (*path[:-1], f"{path[-1]}[]", str(name)))


def row_of(path: Field, rows: dict[Field, tuple[str, str]]) -> Field | None:
    """The row that tells of `path`: by name, else the one with `*` that names most of it."""
    if path in rows:
        return path
    alike = (row for row in rows if "*" in row and len(row) == len(path))
    alike = (row for row in alike if all(told in ("*", name) for told, name in zip(row, path, strict=True)))
    return min(alike, key=lambda row: row.count("*"), default=None)


def trace_events(rank: int) -> tuple[list[Any], dict[str, Any]]:
    """Two steps of a job on cards that loads data, computes, communicates and waits; an event has no time."""
    events: list[Any] = [{**traces.event("aten::lost", 0, 1), "ts": -1e300}]
    for number in range(2):
        at = number * 10_000.0
        events += [traces.step(number, at, at + 10_000)]
        events += [traces.event("enumerate(DataLoader)#_Iter.__next__", at, at + 50, "user_annotation")]
        events += [traces.event("aten::mm", at + 60, at + 90)]
        events += traces.launched("gemm", (at + 70, at + 80), (at + 100, at + 4100), 2 * number + 1)
        events += traces.launched("ncclDevKernel_AllReduce", (at + 85, at + 90), (at + 4000, at + 6100), 2 * number + 2)
        events += [traces.event("cudaDeviceSynchronize", at + 100, at + 6200, "cuda_runtime")]
    return events, {"distributedInfo": {"rank": rank, "world_size": 2, "backend": "nccl"}}


def with_traces(folder: RunFolder, ranks: int) -> RunFolder:
    folder.trace_file(0).parent.mkdir()
    for rank in range(ranks):
        traces.write_trace(folder.trace_file(rank), *trace_events(rank))
    return folder


def on_processors(tmp_path: Path) -> dict[str, Any]:
    """Two ranks, one of them late, with all that a run on CPU can tell, at a price."""
    calibration = test_calibration.CALIBRATION.model_copy(
        update={"matmul_flops_per_second": {"fp32": test_calibration.spread(1e13)}}
    )
    facts = {
        **run_json(2, usd_per_gpu_hour=2.5, counterfactual=True, bad_data="skip:9"),
        "data": {"manifest_sha256": "0" * 64},
        "calibration": calibration.model_dump(),
        "law": {"ranks": [{"parameters": 1, "gradients": 1, "optimizer": 2}] * 2},
        "began": {"boot_id": "b", "monotonic_seconds": -5.0},
        "precision": dict.fromkeys(("name", "param", "compute", "grad", "reduce", "master"), "fp32"),
    }
    sync = HostSync(operator="aten::nonzero", source="train.py:9", calls=2)
    followed = msgspec.structs.replace(test_memory.memory_step(500, [0, 8, 16, 24]), host_syncs=[sync])
    causes = test_tail.blocks(lambda place, cause: 0.1 - 0.005 * (cause is not None))
    causes.append(BlockRecord(round=0, cause="timed", dropped=0, step_seconds=[0.1] * 20, call_seconds=1e-4))
    ranks: list[list[Record]] = [
        [
            test_communication.start(rank),
            test_communication.plan(),
            *test_communication.steps(0.3 * rank, 0.1 + 0.3 * rank),
            EventRecord(event="evaluation", step=39, start_seconds=40.0, seconds=2.0, values={"ap_mean": 0.4}),
            MemoryRecord(step=0, parameters_bytes=100, gradients_bytes=50, optimizer_bytes=200),
            BadSampleRecord(split="train", shard="a.tar", key="k", offset=512, message="not a JPEG"),
            followed,
            *causes,
            test_efficiency.FLOPS,
            EndRecord(rss_peak_bytes=1000, monotonic_seconds=60.0),
        ]
        for rank in range(2)
    ]
    return write_summary(folder_with(tmp_path, facts, *ranks), Given(usd_per_gpu_hour=2.5, usd_per_kwh=0.3))


def on_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A rank on a card that the catalogue knows, with its telemetry and the allocator's figures."""
    facts = {**run_json(1, device="cuda"), "device_name": test_efficiency.H100}
    figures = AllocatorRecord(
        allocated_peak_bytes=500, reserved_peak_bytes=600, earlier_allocated_peak_bytes=400,
        earlier_reserved_peak_bytes=500, reserved_bytes=600, driver_used_bytes=900, retries=1,
    )  # fmt: skip
    records = [*test_telemetry.steps(), test_memory.memory_step(500, [0, 8, 16, 24], figures)]
    folder = folder_with(tmp_path, facts, [test_telemetry.start(0), *records])
    test_telemetry.watch(folder, monkeypatch, FakeCard(f"GPU-{test_telemetry.UUIDS[0]}", clock_events=4))
    return write_summary(folder)


def from_traces(tmp_path: Path) -> dict[str, Any]:
    """What `scalelab import` makes of two traces and a third that is damaged."""
    facts = {**run_json(2), "source": "imported", "config": config_of("cuda"), "model": None, "target": None}
    folder = folder_with(tmp_path, facts | dict.fromkeys(("precision", "oversubscribed", "data", "device_name")))
    with_traces(folder, 2).trace_file(2).write_bytes(b"no trace")
    return write_summary(folder)


def with_less(tmp_path: Path) -> list[dict[str, Any]]:
    """Runs that know less: no step at all, the bare loop, an own loop, one rank alone."""
    window: list[Record] = [WindowRecord(steps=10, samples=40, seconds=5.0)]
    own = dict.fromkeys(("checkpointing", "compile", "micro_batch", "grad_accumulation", "global_batch"))
    uncounted: list[Record] = [step(0, 1.0, samples=0)]
    folders = [
        folder_with(tmp_path / "a", {**run_json(2), "model": None}),
        folder_with(tmp_path / "b", run_json(2, probe="off", record_grad_norm=False), window, window),
        folder_with(tmp_path / "c", run_json(2, engine="own", strategy="own", **own), uncounted, uncounted),
        folder_with(tmp_path / "d", run_json(1), [step(0, 1.0)]),
    ]
    return [write_summary(folder) for folder in folders]


def test_the_page_and_summaries_tell_of_the_same_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field has a row of its type, is null only where the row says when, and each row is some summary's."""
    rows = table()
    measured = [on_processors(tmp_path / "a"), on_a_card(tmp_path / "b", monkeypatch), *with_less(tmp_path / "c")]
    imported = from_traces(tmp_path / "d")
    seen, wrong = set(), []
    for summary in (*measured, imported):
        for path, value in fields(summary):
            row, name = row_of(path, rows), ".".join(path)
            seen.add(row)
            if row is None:
                # What is always an object needs no row of its own.
                wrong += [f"{name} has no row"] if value in (None, {}, []) or not isinstance(value, dict) else []
            elif value is None:
                wrong += [f"{name} is null"] if rows[row][1] == "never" and summary is not imported else []
            elif not TYPES[rows[row][0]](value):
                wrong.append(f"{name} is no {rows[row][0]}: {value!r}")
    assert sorted(set(wrong)) == []
    assert sorted(".".join(row) for row in set(rows) - seen) == []


def test_a_run_whose_speed_is_withheld_has_no_other_fields(tmp_path: Path) -> None:
    """What is null as a whole where losses left the tolerance has a row too."""
    records: list[Record] = [step(index, 1.0) for index in range(5)]
    folder = folder_with(tmp_path, run_json(2), records, records)
    folder.write("status.json", {"state": "failed", "exit_code": 8, "cause": f"{PARITY}: loss of step 0"})
    rows = table()
    missing = [path for path, value in fields(write_summary(folder)) if value is None and row_of(path, rows) is None]
    assert missing == []

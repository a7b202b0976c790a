"""The communication part of the summary: what the records say, and why it is silent where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import CollectiveShape, CommPlanRecord, CommRecord, Record, StartRecord

from tests.profiles.test_calibration import CALIBRATION, SECONDS
from tests.profiles.test_summary import folder_with, run_json, step

NS = 10**9
BYTES = 3_000_000


def start(rank: int, boot: str = "b") -> StartRecord:
    return StartRecord(
        rank=rank, local_rank=rank, world_size=2, host="h", boot_id=boot, pid=1, device="cpu", device_name="c",
        wall_seconds=0, monotonic_seconds=0, threads=1, versions={},
    )  # fmt: skip


def plan(number: int = 0, kind: str = "all_reduce") -> CommPlanRecord:
    shapes = [CollectiveShape(kind=kind, payload_bytes=BYTES, phase="backward", group="0")]
    return CommPlanRecord(plan=number, collectives=shapes)


def steps(late: float, own_backward: float, count: int = 40) -> list[Record]:
    """Steps of 1 s whose collective is handed in `late` s after 0.5 and ends at 0.9, when the rank goes on."""
    handed_in = round((0.5 + late) * NS)
    comm = CommRecord(
        plan=0, exact=True, handed_in_ns=[handed_in], ended_ns=[900_000_000], waits=[0, handed_in, 900_000_000]
    )
    phases = {"data": 0.1, "h2d": 0.0, "forward": 0.2, "backward": own_backward + 0.4 - late, "optimizer": 0.05}
    return [step(index, 1.0, phases=phases, begin_ns=index * NS, comm=comm) for index in range(count)]


def summary_of(tmp_path: Path, *ranks: list[Record], **config: Any) -> dict[str, Any]:
    return summarise(load_run(folder_with(tmp_path, run_json(2, **config), *ranks)))


def test_a_late_rank_is_told_from_the_wire(tmp_path: Path) -> None:
    """Rank 1 comes 0.3 s late, out of backward: rank 0 waits 0.3 s of 0.4, and 0.1 s is the wire's on both."""
    summary = summary_of(tmp_path, [start(0), plan(), *steps(0.0, 0.1)], [start(1), plan(), *steps(0.3, 0.4)])
    comm = summary["comm"]
    assert comm["calls_per_step"] == 1
    assert comm["payload_bytes_per_step"] == {"all_reduce": BYTES}
    assert comm["wire_bytes_per_step"] == BYTES
    assert comm["message_bytes"] == [{"up_to_bytes": 2**22, "calls_per_step": 1.0}]
    parts = {
        name: comm[f"{name}_seconds"] for name in ("exposed", "waiting", "transfer", "queued", "busy", "overlapped")
    }
    assert parts == pytest.approx(
        {"exposed": 0.25, "waiting": 0.15, "transfer": 0.1, "queued": 0.0, "busy": 0.1, "overlapped": 0.0}, abs=1e-9
    )
    assert comm["exposed_by_phase"] == pytest.approx({"forward": 0.0, "backward": 0.25, "optimizer": 0.0})
    assert comm["bus_bandwidth"] == pytest.approx(BYTES / 0.1)
    late = comm["straggler"]
    assert (late["rank"], late["cause"], late["share"]) == (1, "backward", 1.0)
    assert late["excess_seconds"] == pytest.approx(0.3)
    assert [row["waiting_seconds"] for row in summary["per_rank"]] == pytest.approx([0.3, 0.0])
    assert [row["own_seconds"] for row in summary["per_rank"]] == pytest.approx([0.6, 0.9])
    means = {name: row["mean"] for name, row in summary["phases"].items() if row is not None}
    assert sum(means.values()) == pytest.approx(1.0)
    assert (means["backward"], means["comm_exposed"]) == pytest.approx((0.25, 0.25))


def test_nobody_is_late_where_all_are_alike(tmp_path: Path) -> None:
    alike = steps(0.0, 0.1)
    summary = summary_of(tmp_path, [start(0), plan(), *alike], [start(1), plan(), *alike])
    assert summary["comm"]["straggler"] is None
    assert "no rank is late" in summary["reasons"]["comm.straggler"]


@pytest.mark.parametrize(
    ("second", "config", "why"),
    [
        ([start(1, "other"), plan(), *steps(0, 0.1)], {}, "not compared"),
        ([plan(), *steps(0, 0.1)], {}, "first record"),
        ([start(1), plan(kind="broadcast"), *steps(0, 0.1)], {}, "different collectives"),
        ([start(1), plan(), *steps(0, 0.1)], {"device": "cuda"}, "NCCL"),
    ],
)
def test_what_cannot_be_split_is_exposed_all_the_same(
    tmp_path: Path, second: list[Record], config: dict[str, Any], why: str
) -> None:
    """Null with the reason: clocks that differ, ranks that did different things, a backend that does not tell."""
    summary = summary_of(tmp_path, [start(0), plan(), *steps(0, 0.1)], second, **config)
    assert summary["comm"]["exposed_seconds"] == pytest.approx(0.4)
    for name in ("waiting_seconds", "transfer_seconds", "queued_seconds", "busy_seconds", "bus_bandwidth"):
        assert summary["comm"][name] is None
        assert why in summary["reasons"][f"comm.{name}"]


def test_a_lost_plan_makes_communication_unknown(tmp_path: Path) -> None:
    """The line that lists the collectives was damaged: what they were is not guessed."""
    summary = summary_of(tmp_path, [start(0), plan(), *steps(0, 0.1)], [start(1), *steps(0, 0.1)])
    assert summary["comm"]["exposed_seconds"] is None
    assert summary["phases"]["comm_exposed"] is None
    assert summary["reasons"]["comm.calls_per_step"] == "rank 1 has no record of its collectives"


def test_bytes_on_the_wire_of_an_unknown_kind_are_unknown(tmp_path: Path) -> None:
    alike = [plan(kind="gather"), *steps(0, 0.1)]
    summary = summary_of(tmp_path, [start(0), *alike], [start(1), *alike])
    assert summary["comm"]["wire_bytes_per_step"] is None
    assert "gather" in summary["reasons"]["comm.wire_bytes_per_step"]
    assert summary["comm"]["bus_bandwidth"] is None


def test_collectives_alone_take_what_the_calibration_says(tmp_path: Path) -> None:
    """One all-reduce of 3 MB a step; without a calibration, or with one of other ranks, it is null with the reason."""
    records = [[start(rank), plan(), *steps(0.0, 0.1)] for rank in (0, 1)]
    calibration = CALIBRATION.model_dump()
    alone = BYTES / 2**20 * SECONDS[2**20]
    cases = [(calibration, alone, ""), (None, None, "no calibration"), ({"name": "old"}, None, "cannot be read")]
    cases += [
        ({**calibration, "ranks": 3}, None, "3 ranks"),
        ({**calibration, "collective_seconds": {}}, None, "no all"),
    ]
    for number, (given, expected, why) in enumerate(cases):
        folder = folder_with(tmp_path / str(number), {**run_json(2), "calibration": given}, *records)
        summary = summarise(load_run(folder))
        assert summary["comm"]["alone_seconds"] == pytest.approx(expected)
        share = None if expected is None else expected / summary["comm"]["busy_seconds"]
        assert summary["comm"]["bus_bandwidth_share"] == pytest.approx(share)
        assert share is not None or summary["reasons"]["comm.bus_bandwidth_share"]
        assert why in summary["reasons"].get("comm.alone_seconds", "")
        known = given is not None and "device" in given
        assert summary["calibration"] == (
            {"name": "a", "made_utc": "2026-01-01T00:00:00Z", "doubts": []} if known else None
        )

"""How long the summary of a large run takes: 64 ranks, 1,000 steps each, 8 collectives a step; and its diagnosis, of 8
ranks."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from scalelab.profiles.analysis.diagnosis.diagnose import diagnose
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import CollectiveShape, CommPlanRecord, CommRecord, Record, StartRecord, StepRecord
from scalelab.profiles.runfolder import RunFolder, appending

from tests.truth.training import new_folder

RANKS = 64
STEPS = 1000
CALLS = 8
BOUND_SECONDS = 3.0
DIAGNOSED_RANKS = 8
DIAGNOSIS_BOUND_SECONDS = 2.0


def write_rank(folder: RunFolder, rank: int, ranks: int) -> None:
    generator = np.random.Generator(np.random.Philox(rank))
    shapes = [CollectiveShape(kind="all_reduce", payload_bytes=2**20, phase="backward", group="0")] * CALLS
    begin = 10**12
    records: list[Record] = [
        StartRecord(
            rank=rank, local_rank=rank % 8, world_size=ranks, host="h", boot_id="b", pid=1, device="cpu",
            device_name="cpu", wall_seconds=0.0, monotonic_seconds=0.0, threads=1, versions={},
        ),
        CommPlanRecord(plan=0, collectives=shapes),
    ]  # fmt: skip
    for index in range(STEPS):
        handed = np.sort(generator.integers(40_000_000, 70_000_000, CALLS))
        ends = handed + generator.integers(1_000_000, 9_000_000, CALLS)
        comm = CommRecord(
            plan=0,
            exact=True,
            handed_in_ns=handed.tolist(),
            ended_ns=ends.tolist(),
            waits=[CALLS - 1, 79_000_000, 80_000_000],
        )
        records.append(
            StepRecord(
                step=index, role="measured", start_seconds=index * 0.1, seconds=0.1, host_data_seconds=0.01,
                phases={"data": 0.01, "h2d": 0.0, "forward": 0.03, "backward": 0.05, "optimizer": 0.01},
                losses=[1.0], samples=4, lr=1e-3, begin_ns=begin + index * 10**8, comm=comm,
            )
        )  # fmt: skip
    with appending(folder.rank_file(rank)) as write:
        write(*records)


def main() -> None:
    for ranks, bound in ((RANKS, BOUND_SECONDS), (DIAGNOSED_RANKS, DIAGNOSIS_BOUND_SECONDS)):
        with tempfile.TemporaryDirectory() as place:
            time_analysis(Path(place), ranks, bound, diagnosed=ranks == DIAGNOSED_RANKS)


def time_analysis(place: Path, ranks: int, bound: float, *, diagnosed: bool) -> None:
    folder = new_folder(place, "ddp", ranks)
    for rank in range(ranks):
        write_rank(folder, rank, ranks)
    size = sum(folder.rank_file(rank).stat().st_size for rank in range(ranks))
    for _ in range(3):
        began = time.perf_counter()
        run = load_run(folder)
        read = time.perf_counter()
        summary = summarise(run)
        summed = time.perf_counter()
        told = ""
        if diagnosed:
            label = diagnose(run, summary)["verdict"]["label"]
            told = f", diagnosis {time.perf_counter() - summed:.2f} s ({label})"
        took = time.perf_counter() - began
        verdict = "reached" if took <= bound else "MISSED"
        print(
            f"{ranks} ranks x {STEPS} steps x {CALLS} collectives, {size / 2**20:.0f} MiB: "
            f"reading {read - began:.2f} s, summary {summed - read:.2f} s{told}; bound {bound:.0f} s: {verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()

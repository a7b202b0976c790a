"""Run folders made up for reports, and names that would do harm where they are not inert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scalelab.profiles.records import (
    CollectiveShape,
    CommPlanRecord,
    CommRecord,
    EndRecord,
    EventRecord,
    Record,
    StartRecord,
    StepRecord,
)
from scalelab.profiles.runfolder import RunFolder, appending
from scalelab.profiles.used import MemoryRecord

BREAKOUT = '</script><img src=x onerror="window.harmed=1">\'`|=<b>'
HOSTILE = (
    BREAKOUT,
    "emoji 🚀 \u202eright to left\u202c שלום",
    "=cmd|' /C calc'!A0",
    "\x1b[31mred\x07\x00 line\nbreak | pipe `tick` [link](http://x.test/)",
    "é" * 127 + "x",
)


def made_run(
    place: Path,
    *,
    ranks: int = 2,
    steps: int = 40,
    calls: int = 4,
    name: str = "made",
    status: Any = None,
    **facts: Any,
) -> RunFolder:
    """A finished DDP run on CPU ranks, with collectives, a loss, an evaluation and one step that stands out."""
    folder = RunFolder.create(place, "made")
    config = {
        "strategy": "ddp", "launcher": "fork", "device": "cpu", "micro_batch": 4, "grad_accumulation": 1,
        "global_batch": 4 * ranks, "model": "tiny", "probe": "on", "record_grad_norm": False, "engine": "native",
        "checkpointing": "none", "compile": False, "nodes": 1, **facts.pop("config", {}),
    }  # fmt: skip
    run_json = {
        "schema": 1, "run_id": folder.run_id, "name": name, "command": ["scalelab", "run", "--name", name],
        "config": config, "given": ["strategy"], "precision": {"name": "fp32", "param": "fp32"}, "target": None,
        "world_size": ranks,
        "oversubscribed": False, "device_name": "a processor", "notes": [], "data": None,
        "environment": {"host": "here", "python": "3.11"}, "model": {"name": "tiny", "parameters": 1234}, **facts,
    }  # fmt: skip
    folder.write("run.json", run_json)
    folder.write("status.json", status or {"state": "finished", "exit_code": 0, "culprit": None, "cause": None})
    for rank in range(ranks):
        with appending(folder.rank_file(rank)) as write:
            write(*_records(rank, ranks, steps, calls, facts.get("host", "here")))
    return folder


def _records(rank: int, ranks: int, steps: int, calls: int, host: str) -> list[Record]:
    generator = np.random.Generator(np.random.Philox(rank))
    shapes = [CollectiveShape(kind="all_reduce", payload_bytes=2**20, phase="backward", group="0")] * calls
    records: list[Record] = [
        StartRecord(
            rank=rank, local_rank=rank, world_size=ranks, host=host, boot_id="b", pid=1, device="cpu",
            device_name="cpu", wall_seconds=1.7e9, monotonic_seconds=1000.0, threads=1, versions={},
        ),
        CommPlanRecord(plan=0, collectives=shapes),
    ]  # fmt: skip
    begin = 10**12
    for index in range(steps):
        seconds = float(0.1 + 0.005 * generator.random() + (0.2 if index == steps - 3 else 0))
        handed = np.sort(generator.integers(40_000_000, 60_000_000, calls))
        ends = handed + generator.integers(1_000_000, 9_000_000, calls)
        comm = CommRecord(
            plan=0, exact=True, handed_in_ns=handed.tolist(), ended_ns=ends.tolist(),
            waits=[calls - 1, 79_000_000, 80_000_000],
        )  # fmt: skip
        records.append(
            StepRecord(
                step=index, role="warmup" if index < 2 else "measured", start_seconds=index * 0.1, seconds=seconds,
                host_data_seconds=0.01, losses=[2.0 / (1 + index)], samples=4, lr=1e-3, begin_ns=begin, comm=comm,
                phases={"data": seconds - 0.095, "h2d": 0.0, "forward": 0.03, "backward": 0.05, "optimizer": 0.01},
            )
        )  # fmt: skip
        begin += round(seconds * 1e9)
    records.append(MemoryRecord(step=2, parameters_bytes=100, gradients_bytes=100, optimizer_bytes=200))
    last = steps - 1
    records.append(
        EventRecord(event="evaluation", step=last, start_seconds=steps * 0.1, seconds=1.0, values={"ap": 0.5})
    )
    records.append(EndRecord(rss_peak_bytes=10**8))
    return records

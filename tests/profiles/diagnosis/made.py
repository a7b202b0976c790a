"""Runs made up for diagnosis: records whose causes are known to the number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scalelab.profiles.analysis.columns import Steps
from scalelab.profiles.analysis.diagnosis.diagnose import diagnose
from scalelab.profiles.analysis.load import RankRecords, Run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import (
    BlockRecord,
    CollectiveShape,
    CommRecord,
    EndRecord,
    EventRecord,
    StartRecord,
    StepRecord,
)
from scalelab.profiles.used import BatchesRecord, FlopsRecord, HostRecord, MemoryStepRecord

STEPS = 40
PHASES = {"data": 0.001, "h2d": 0.0, "forward": 0.030, "backward": 0.060, "optimizer": 0.004}
NOISE = 0.01
Seconds = Callable[[int, int, str], float]


def nothing(rank: int, step: int, phase: str) -> float:
    return 0.0


def made(
    *,
    ranks: int = 2,
    steps: int = STEPS,
    extra: Seconds = nothing,
    wire_seconds: float = 0.002,
    sizes: Sequence[int] = (25 << 20,),
    config: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    events: Sequence[EventRecord] = (),
    batches: Callable[[int], BatchesRecord] | None = lambda rank: BatchesRecord(elements=[1000] * STEPS),
    memory_step: MemoryStepRecord | None = None,
    hosts: Sequence[HostRecord] = (),
    blocks: Sequence[BlockRecord] = (),
    flops: FlopsRecord | None = None,
    fields: Callable[[int, int], dict[str, Any]] = lambda rank, step: {},
) -> Run:
    """A run on CPU in which each phase of PHASES lasts as long as told, with a hundredth of noise, and `extra` seconds
    on top. Ranks meet at the end of backward in collectives of `sizes`, which then take `wire_seconds` together."""
    generator = np.random.default_rng(0)
    own = {
        (rank, step): {
            name: seconds * (1 + NOISE * generator.standard_normal()) + extra(rank, step, name)
            for name, seconds in PHASES.items()
        }
        for step in range(steps)
        for rank in range(ranks)
    }
    begin = dict.fromkeys(range(ranks), 0.0)
    records: list[list[StepRecord]] = [[] for _ in range(ranks)]
    for step in range(steps):
        at = {r: begin[r] + sum(own[r, step].values()) - own[r, step]["optimizer"] for r in range(ranks)}
        met = max(at.values())
        end = met + (wire_seconds if ranks > 1 else 0.0)
        for rank in range(ranks):
            blocked = end - at[rank] if ranks > 1 else 0.0
            comm = None
            if ranks > 1:
                count = len(sizes)
                times = [at[rank], *(met + wire_seconds * (i + 1) / count for i in range(count))]
                edges = [round((each - begin[rank]) * 1e9) for each in times]
                waits = [word for i in range(count) for word in (i, edges[i], edges[i + 1])]
                comm = CommRecord(plan=0, exact=True, handed_in_ns=edges[:-1], ended_ns=list(edges[1:]), waits=waits)
            phases = dict(own[rank, step])
            phases["backward"] += blocked
            seconds = sum(phases.values())
            records[rank].append(
                StepRecord(
                    step=step, role="measured", start_seconds=0.0, seconds=seconds, phases=phases,
                    host_data_seconds=phases["data"], losses=[1.0], samples=4, lr=1e-3,
                    begin_ns=round(begin[rank] * 1e9), comm=comm,
                    **{"gc_seconds": 0.0, "run_delay_seconds": 0.0, **fields(rank, step)},
                )
            )  # fmt: skip
            begin[rank] += seconds
    plan = [CollectiveShape(kind="all_reduce", payload_bytes=size, phase="backward", group="world") for size in sizes]
    return Run(
        run_id="made",
        run_json=_run_json(ranks, config or {}, facts or {}),
        status={"state": "finished", "exit_code": 0},
        ranks=tuple(
            RankRecords(
                rank=rank, start=_start(rank, ranks), steps=Steps.of(records[rank]), events=tuple(events), memory=None,
                memory_step=memory_step or COUNTED, window=None, comm_plans={0: plan}, blocks=tuple(blocks),
                batches=None if batches is None else batches(rank), flops=flops,
                end=EndRecord(rss_peak_bytes=1), unreadable=0,
            )
            for rank in range(ranks)
        ),
        hosts=(tuple(hosts),) if hosts else (),
    )  # fmt: skip


COUNTED = MemoryStepRecord(
    step=STEPS,
    operators={"forward": 100, "backward": 200, "optimizer": 5},
    operator_seconds_by_phase=dict.fromkeys(("forward", "backward", "optimizer"), 5e-6),
)


def readings(
    others: float = 0.0, own: float = 2.0, cores: int = 4, used: int = 1 << 30, stall: float = 0.0
) -> list[HostRecord]:
    """Readings twice a second over the made run, with so many cores busy, and memory waited for that share of time."""
    return [
        HostRecord(
            at_ns=round(at * 1e9), cores=cores, busy_core_seconds=(others + own) * at, own_core_seconds=own * at,
            stolen_core_seconds=0.0, memory_used_bytes=used, memory_limit_bytes=8 << 30,
            memory_stall_seconds=stall * at, swap_used_bytes=0, major_faults=0,
        )
        for at in np.arange(0.0, 60.0, 0.5).tolist()
    ]  # fmt: skip


def told(run: Run) -> dict[str, Any]:
    """The diagnosis of `run`."""
    return diagnose(run, summarise(run))


def label(run: Run) -> str:
    return told(run)["verdict"]["label"]


def _start(rank: int, ranks: int) -> StartRecord:
    return StartRecord(
        rank=rank, local_rank=rank, world_size=ranks, host="here", boot_id="b", pid=1, device="cpu", device_name="cpu",
        wall_seconds=0.0, monotonic_seconds=0.0, threads=1, versions={},
    )  # fmt: skip


def _run_json(ranks: int, config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "x", "device_name": "a processor", "world_size": ranks, "oversubscribed": False, "target": None,
        "threads_per_rank": 1, "precision": {"name": "fp32", "compute": "fp32"},
        "model": {"name": "tiny", "parameters": 1_000_000},
        "config": {
            "strategy": "ddp", "launcher": "fork", "device": "cpu", "micro_batch": 4, "grad_accumulation": 1,
            "global_batch": 4 * ranks, "model": "tiny", "probe": "on", "record_grad_norm": False, "engine": "native",
            "checkpointing": "none", "compile": False, "workers": 1, "prefetch": 2, "bucket_mb": 25.0, **config,
        },
        **facts,
    }  # fmt: skip

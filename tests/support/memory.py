"""Following the memory of a model's steps, in this process or on a rank."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scalelab.launch.assemble import Job
from scalelab.launch.config import build
from scalelab.launch.memory_step import follow_memory
from scalelab.launch.ranks import Rank
from scalelab.launch.strategies._contract import Sharded
from scalelab.models.contract import load_model
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.records import Record, StepRecord
from scalelab.profiles.runfolder import RunFolder
from scalelab.profiles.used import MemoryStepRecord

from tests.support import ranks

MODEL = str(Path(__file__).parent / "micro_model.py")
ALONE = Rank(rank=0, local_rank=0, world_size=1, local_world_size=1)


def follow(
    run: Sharded, batches: Sequence[Any], *, rank: Rank = ALONE, strategy: str = "single"
) -> tuple[bool, MemoryStepRecord, list[StepRecord]]:
    """Whether every step came to its end, what was written of memory, and the steps themselves."""
    records: list[Record] = []
    job = Job(
        config=build({"model": MODEL, "strategy": strategy, "checkpointing": run.setting.checkpointing}),
        setting=run.setting,
        source=load_model(MODEL, {}),
        run=run,
        device=torch.device("cpu"),
        rank=rank,
        folder=RunFolder(Path("nowhere")),
    )
    comm = ranks.recorder if rank.world_size > 1 else None
    probe = Probe(lambda *written: records.extend(written), HostTimeline(), comm=comm)
    whole = follow_memory(job, itertools.cycle(batches), lambda batch: batch, probe, records.append, first=4)
    probe.close()
    (memory,) = [record for record in records if isinstance(record, MemoryStepRecord)]
    return whole, memory, [record for record in records if isinstance(record, StepRecord)]

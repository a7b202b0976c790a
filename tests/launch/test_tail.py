"""The tail of a run, for real: under every strategy it takes causes away and leaves the parameters alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from scalelab.launch import strategies
from scalelab.launch import tail as tails
from scalelab.launch.assemble import Job
from scalelab.launch.config import build
from scalelab.launch.ranks import Rank
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._contract import Sharded
from scalelab.launch.tail import Tail
from scalelab.models.contract import load_model
from scalelab.profiles.capture.finite import FiniteWatch, parts_of
from scalelab.profiles.capture.memory import digest
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.records import BlockRecord, Record, StepRecord
from scalelab.profiles.runfolder import RunFolder

from tests.support import ranks
from tests.support.training import MICRO_BATCH, micro, micro_batches, records_of, sharded, supported

BASE = Setting(world_size=2, device="cpu", micro_batch=MICRO_BATCH, checkpointing="full", lr=1e-2)
MODEL = Path(__file__).parents[1] / "support" / "micro_model.py"


def made_tail(
    rank: Rank, name: str, setting: Setting, run: Sharded, batches: list[Any], **more: Any
) -> tuple[Tail, list[Record]]:
    """A tail of `run` with blocks of two steps, one round; and what it writes."""
    tails.BLOCK_STEPS = 2
    tails.ROUNDS = ((float("inf"), 1),)
    records: list[Record] = []
    timeline = HostTimeline()
    job = Job(
        config=build({"model": str(MODEL), "strategy": name, "checkpointing": "full", "counterfactual": "true"}),
        setting=setting,
        source=load_model(str(MODEL), {}),
        run=run,
        device=torch.device("cpu"),
        rank=rank,
        folder=RunFolder(Path("nowhere")),
        finite=FiniteWatch(parts_of(*micro(13))),
    )
    tail = Tail(
        job=job,
        batches=itertools.cycle(batches),
        to_device=lambda batch: batch,
        probe=Probe(lambda *written: records.extend(written), timeline, comm=ranks.recorder),
        timeline=timeline,
        write=records.append,
        comm=ranks.recorder,
        combine=None,
        **{"stop": lambda: False, **more},
    )
    return tail, records


def with_a_tail(rank: Rank, name: str, setting: Setting) -> tuple[list[str], list[Record]]:
    """Digests of the parameters before the tail, after it, and after a step more; and what the tail wrote."""
    run, batches = sharded(name, setting, 13), micro_batches(rank.rank, setting)
    records_of(run, batches[:4])
    tail, records = made_tail(rank, name, setting, run, batches)
    digests = [digest(run.parameters())]
    tail.run(4, 0.0)
    digests.append(digest(run.parameters()))
    records_of(run, batches[4:5])
    digests.append(digest(run.parameters()))
    run.close()
    return digests, records


@pytest.mark.parametrize("name", [name for name in strategies.names() if name != "single"])
def test_the_tail_changes_no_bit_of_the_parameters(name: str) -> None:
    """Every block of the chain runs, on a free wire too, and training could go on from where it stopped."""
    (setting,) = supported(strategies.load(name), [BASE])
    for digests, records in ranks.run_ranks(with_a_tail, 2, name, setting):
        before, after, later = digests
        assert before == after != later
        causes = [record.cause for record in records if isinstance(record, BlockRecord)]
        twice = ["passed_twice"] if name == "ddp" else []
        expected = ["bare", *twice, "free_wire", "cached_batch", "no_optimizer", "no_recompute"]
        chain = itertools.chain.from_iterable((cause, cause, None) for cause in expected)
        assert causes == [None, *chain, "timed", None]
        steps = [record for record in records if isinstance(record, StepRecord)]
        assert {step.role for step in steps} == {"counterfactual"}
        assert len(steps) == 4 * (len(causes) - 2 - 2 * len(twice))
        timed = [record for record in records if isinstance(record, BlockRecord) and record.cause == "timed"]
        assert all(0 < (block.call_seconds or 0) < sum(block.step_seconds) for block in timed)
        free = [step for step in steps if step.comm is not None and not step.comm.handed_in_ns]
        assert len(free) == 8


def left_early(rank: Rank, setting: Setting) -> tuple[list[tuple[int, int, float]], list[Record]]:
    """What was told of a tail of long blocks that is to end with its sixth step, and what it wrote."""
    run, batches = sharded("ddp", setting, 13), micro_batches(rank.rank, setting)
    told: list[tuple[int, int, float]] = []
    taken: list[int] = []

    def stop_after_step() -> bool:
        taken.append(1)
        return len(taken) == 6

    tail, records = made_tail(
        *(rank, "ddp", setting, run, batches),
        stop=lambda: len(taken) == 6,
        stop_after_step=stop_after_step,
        tell=lambda *progress: told.append(progress),
        clock=iter(range(0, 1000, 10)).__next__,
    )
    tail.run(4, 1.0)
    run.close()
    return told, records


def test_a_tail_of_long_steps_is_left_within_a_block() -> None:
    """It tells how far it is and how long the rest takes; of the block that was left there is no record."""
    (setting,) = supported(strategies.load("ddp"), [BASE])
    for told, records in ranks.run_ranks(left_early, 2, setting):
        whole = 1 + 5 * 3 + 2
        assert told == [(0, whole, whole * 4.0), (1, whole, (whole - 1) * 10.0)]
        assert [record.cause for record in records if isinstance(record, BlockRecord)] == [None]


def test_a_digest_sees_every_bit() -> None:
    """One bit of one value, and two values that change places."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    base = digest([values, values * 2])
    flipped = values.clone()
    flipped.view(torch.int32)[17] ^= 1
    swapped = values.clone()
    swapped[[3, 9]] = values[[9, 3]]
    others = [[flipped, values * 2], [swapped, values * 2], [values * 2, values], [values]]
    assert digest([values.clone(), values * 2]) == base
    assert base not in {digest(other) for other in others}

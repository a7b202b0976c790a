"""A rank that cannot write its part of a checkpoint fails it on all ranks, under every strategy, and none waits."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from scalelab.launch import strategies
from scalelab.launch.checkpoint import CheckpointFailed, newest, save
from scalelab.launch.ranks import Rank
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._contract import Sharded
from scalelab.profiles.runfolder import RunFolder

from tests.support.checkpoints import found_step, names
from tests.support.ranks import run_ranks
from tests.support.training import MICRO_BATCH, micro_batches, records_of, sharded, supported


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _trained(name: str, rank: Rank) -> Sharded:
    base = Setting(world_size=rank.world_size, device="cpu", micro_batch=MICRO_BATCH)
    (setting,) = supported(strategies.load(name), [base])
    run = sharded(name, setting, width=13)
    records_of(run, micro_batches(rank.rank, setting)[:2])
    return run


def _save_with_full_disk(rank: Rank, strategy_names: list[str], out: Path, sizes: list[int]) -> list[list[Any]]:
    """Saves step 1, fails to save step 2 as each rank's files may not grow beyond each of `sizes`, saves step 3."""
    found = []
    for name in strategy_names:
        folder = RunFolder(out / name)
        run = _trained(name, rank)
        outcome: list[Any] = [save(run, folder, step=1, strategy=name)["path"]]
        for size in sizes:
            for full in range(rank.world_size):
                if rank.rank == full:
                    _limit_files(size)
                try:
                    save(run, folder, step=2, strategy=name)
                    outcome.append("saved")
                except CheckpointFailed as error:
                    outcome.append((error.rank, str(error), error.hint))
                _limit_files(resource.RLIM_INFINITY)
                outcome.append([] if rank.rank else [found_step(folder), sorted(names(folder))])
                torch.distributed.barrier()
        outcome.append(save(run, folder, step=3, strategy=name)["path"])
        run.close()
        found.append(outcome)
    return found


STRATEGIES = ["ddp", "fsdp2", "zero1", "zero2", "zero3"]


@pytest.mark.fault(6, 29)
def test_a_full_disk_on_one_rank_fails_the_checkpoint_on_all(tmp_path: Path) -> None:
    """Nobody waits for the rank that could not write; all name it; the checkpoint before is intact, the next works."""
    for name in STRATEGIES:
        (tmp_path / name).mkdir()
    sizes = [0, 2000]
    per_rank = run_ranks(_save_with_full_disk, 2, STRATEGIES, tmp_path, sizes)
    for name, *outcomes in zip(STRATEGIES, *per_rank, strict=True):
        first, *between, last = zip(*outcomes, strict=True)
        assert (first[0], last[0]) == ("checkpoints/step-000001", "checkpoints/step-000003")
        failures, states = between[0::2], between[1::2]
        for full, (failure, state) in enumerate(zip(failures, states, strict=True)):
            assert failure[0] == failure[1], f"{name}: the ranks differ"
            rank, message, hint = failure[0]
            assert rank == full % 2
            assert "bytes free" in message
            assert hint
            assert state[0] == [1, ["latest", "step-000001"]]
        found = newest(RunFolder(tmp_path / name))
        assert found is not None
        assert (found[1]["step"], found[1]["world_size"], found[1]["strategy"]) == (3, 2, name)
        assert len(found[1]["files"]) >= 2

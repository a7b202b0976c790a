"""The indexed reader: the same global batches for every number of ranks and processes, resumable anywhere."""

from __future__ import annotations

import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.data.errors import DataError
from scalelab.data.readers import samples
from scalelab.data.readers.indexed import IndexedLoader, indexed_loader, permutation
from scalelab.data.schema import BATCH_KEYS


def loader(folder: Path, **options: object) -> IndexedLoader:
    request: dict = {"split": "train", "rank": 0, "world_size": 1, "micro_batch": 2, **options}
    return indexed_loader(folder, **request)


def flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def global_batches(folder: Path, world: int, micro: int, accumulation: int, **options: object) -> list[list[int]]:
    """The sample numbers of each step over all ranks, in the order of rank and micro-batch."""
    steps: list[list[int]] = []
    for rank in range(world):
        made = loader(folder, rank=rank, world_size=world, micro_batch=micro, accumulation=accumulation, **options)
        parts = list(made.sample_numbers())
        assert {len(part) for part in parts} == {micro}
        for step in range(len(parts) // accumulation):
            own = flat(parts[step * accumulation : (step + 1) * accumulation])
            if rank == 0:
                steps.append([])
            steps[step] += own
    return steps


@settings(max_examples=40, deadline=None)
@given(
    split=st.sampled_from([(1, 8, 1), (2, 4, 1), (2, 2, 2), (4, 1, 2), (8, 1, 1), (1, 2, 4)]),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 7),
)
def test_global_batches_do_not_depend_on_how_they_are_split(
    dataset: Path, split: tuple[int, int, int], seed: int, start: int
) -> None:
    """However a global batch of 8 is divided over ranks, micro-batches and accumulation, it is the same 8 samples."""
    world, micro, accumulation = split
    whole = global_batches(dataset, 1, 8, 1, seed=seed, steps=7)
    divided = global_batches(dataset, world, micro, accumulation, seed=seed, steps=7)
    assert divided == whole
    resumed = global_batches(dataset, world, micro, accumulation, seed=seed, start_step=start, steps=7)
    assert resumed[: 7 - start] == whole[start:]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), size=st.integers(1, 24))
def test_an_epoch_sees_no_sample_twice(dataset: Path, seed: int, size: int) -> None:
    """Within an epoch all samples are distinct; what is left out is less than a global batch, and is counted."""
    made = loader(dataset, micro_batch=size, seed=seed)
    assert made.samples_per_epoch == 24
    assert made.steps_per_epoch * size + made.dropped_per_epoch == 24
    assert made.dropped_per_epoch < size
    seen = flat(global_batches(dataset, 1, size, 1, seed=seed, steps=made.steps_per_epoch))
    assert len(set(seen)) == len(seen) == 24 - made.dropped_per_epoch


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    """Orders of other epochs and seeds are other permutations, and the values stay as they are today."""
    orders = [tuple(permutation(100, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert permutation(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_loader_processes_change_nothing_and_end(dataset: Path) -> None:
    """Batches from two processes are those of none, bit for bit, and no process outlives the loader."""
    alone = list(loader(dataset, steps=5))
    helped = list(loader(dataset, steps=5, workers=2))
    assert [set(batch) for batch in alone] == [set(BATCH_KEYS)] * 5
    for left, right in zip(alone, helped, strict=True):
        assert all(torch.equal(left[key], right[key]) for key in BATCH_KEYS)
    endless = loader(dataset, workers=2)
    for _, batch in zip(range(30), endless, strict=False):  # beyond the first epoch of 12
        assert batch["images"].shape == (2, 2, 3, 40, 64)
    endless.close()
    assert not multiprocessing.active_children()


def test_iterating_again_starts_again(dataset: Path) -> None:
    """A second pass over a loader gives the same batches."""
    made = loader(dataset, steps=3)
    for left, right in zip(list(made), list(made), strict=True):
        assert torch.equal(left["ego"], right["ego"])


def test_without_shuffling_samples_come_in_file_order(dataset: Path) -> None:
    """Evaluation reads the split in order."""
    made = loader(dataset, split="val", shuffle=False, micro_batch=3)
    assert made.dropped_per_epoch == 2
    assert flat(global_batches(dataset, 1, 4, 1, split="val", shuffle=False, steps=2)) == list(range(8))


def test_few_open_files_are_enough(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more shards than files may be open, reading goes on and keeps to the limit."""
    monkeypatch.setattr(samples, "MAX_OPEN_SHARDS", 2)
    reader = samples.SampleReader(dataset, loader(dataset).manifest.split("train"), None)
    keys = [reader[int(index)]["key"] for index in np.random.default_rng(0).permutation(24)]
    assert len(set(keys)) == 24
    assert len(reader._open) == 2
    reader.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"micro_batch": 5, "accumulation": 3, "world_size": 2}, "24 samples.*needs 30.*5 × accumulation 3 × ranks 2"),
        ({"split": "test"}, "split = 'test': allowed are train, val"),
        ({"rank": 2, "world_size": 2}, "rank = 2: must be below world_size = 2"),
        ({"micro_batch": 0}, "micro_batch = 0: must be at least 1"),
        ({"start_step": -1}, "start_step = -1"),
    ],
)
def test_a_wrong_request_is_named(dataset: Path, options: dict[str, object], words: str) -> None:
    """Messages give the numbers that do not fit."""
    with pytest.raises(DataError, match=words):
        loader(dataset, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_loader_process_arrives_as_it_was(damaged: Path, workers: int) -> None:
    """A damaged sample raises the same one-line error with and without loader processes, and those end."""
    (damaged / "train-000000.tar").write_bytes(b"")
    with pytest.raises(DataError) as error:
        list(loader(damaged, steps=12, workers=workers))
    assert "train-000000.tar" in str(error.value)
    assert "\n" not in str(error.value)
    del error
    assert not multiprocessing.active_children()

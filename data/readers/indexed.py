"""The default reader: global batches that depend on (seed, epoch, step) alone, read by offset from the shards.

Global step s of an epoch is permutation(seed, epoch)[k·G : (k+1)·G], where G = micro-batch × accumulation × world
size and k = s mod steps_per_epoch. Rank r takes the r-th contiguous slice, micro-batch m the m-th part of it. So
every number of ranks and loader processes trains on the same global batches, and step s is found without reading
what came before. Where damaged samples are left out, the next readable one in file order stands in for each, so
batches keep their size and still depend on nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ..batch import collate
from ..errors import DataError
from ..manifest import Manifest
from ..skipping import BadSample, BadSamples
from .delivery import Batch, Delivered, Deliveries
from .request import open_request
from .samples import SampleReader


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (count,): the order of an epoch. From raw Philox words, whose values numpy keeps across versions."""
    words = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(count)
    return np.argsort(words, kind="stable")


class _MicroBatches(Dataset[Delivered]):
    """Micro-batches by their sample numbers; `budget` is the most that may be damaged in the place of one sample."""

    def __init__(self, reader: SampleReader, budget: int):
        self.reader, self.budget = reader, budget

    def __getitem__(self, indices: list[int]) -> Delivered:
        bad: list[BadSample] = []
        try:
            return Delivered(collate([self.reader.readable(index, self.budget, bad) for index in indices]), bad)
        except DataError as error:
            return Delivered(error, bad)


class IndexedLoader:
    """Iterable over the micro-batches of one rank; made by `indexed_loader`."""

    def __init__(
        self,
        reader: SampleReader,
        manifest: Manifest,
        order: Callable[[int], np.ndarray],
        *,
        global_batch: int,
        own: slice,
        micro_batch: int,
        first_step: int,
        steps: int | None,
        bad: BadSamples,
        options: dict[str, Any],
    ):
        self.manifest = manifest
        """The manifest of the folder; its `digest` identifies the data."""
        self.samples_per_epoch = len(reader)
        self.steps_per_epoch = len(reader) // global_batch
        self.dropped_per_epoch = len(reader) % global_batch
        """Samples of the tail that is smaller than a global batch; which ones, changes from epoch to epoch."""
        self._reader, self._order = reader, order
        self._global_batch, self._own, self._micro_batch = global_batch, own, micro_batch
        self._first_step, self._steps, self._bad, self._options = first_step, steps, bad, options
        self._deliveries: Deliveries | None = None

    def sample_numbers(self) -> Iterator[list[int]]:
        """The sample numbers (in file order of the split) of this rank's micro-batches, without reading them."""
        steps = itertools.count(self._first_step)
        epoch, order = -1, np.empty(0, np.int64)
        for step in steps if self._steps is None else itertools.islice(steps, self._steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._order(epoch)
            start = step % self.steps_per_epoch * self._global_batch
            own = order[start : start + self._global_batch][self._own]
            for part in range(0, len(own), self._micro_batch):
                yield own[part : part + self._micro_batch].tolist()

    def __iter__(self) -> Iterator[Batch]:
        """Starts again at the first step; an earlier iteration ends.

        Raises `DataError` at a damaged sample that is not left out, `LoaderDied` if a loader process dies.
        """
        self.close()
        dataset = _MicroBatches(self._reader, self._bad.budget)
        loader = DataLoader(dataset, batch_size=None, sampler=self.sample_numbers(), **self._options)
        self._deliveries = deliveries = Deliveries(loader, self._bad)
        try:
            yield from deliveries
        finally:
            deliveries.close()
            self._reader.close()

    def close(self) -> None:
        """Ends the loader processes and closes the shards. Iterating again starts anew."""
        if self._deliveries is not None:
            self._deliveries.close()
        self._reader.close()


def indexed_loader(
    folder: Path | str,
    *,
    split: str,
    rank: int,
    world_size: int,
    micro_batch: int,
    accumulation: int = 1,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    workers: int = 0,
    prefetch: int = 2,
    pin: bool = False,
    image_size: tuple[int, int] | None = None,
    shuffle: bool = True,
    bad: BadSamples | None = None,
    worker_init: Callable[[int], None] | None = None,
) -> IndexedLoader:
    """The micro-batches of `rank`: `steps` × `accumulation` of them from global step `start_step` on, endless if None.

    `workers` processes decode ahead, `prefetch` micro-batches each (0: in this process, when asked); `pin` copies
    to page-locked memory; `image_size` = (width, height) delivered; without `shuffle` every epoch is in file order.
    `bad` says how many damaged samples are left out, and counts them (None: the first one is an error). `worker_init`
    is called in each loader process with its index, before it reads.
    Raises `DataError` if the folder cannot be read or holds fewer samples of `split` than one global batch.
    """
    manifest, entries, options = open_request(
        folder,
        split,
        pin=pin,
        worker_init=worker_init,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        accumulation=accumulation,
        seed=seed,
        start_step=start_step,
        workers=workers,
        prefetch=prefetch,
    )
    own = micro_batch * accumulation
    return IndexedLoader(
        SampleReader(Path(folder), entries, image_size),
        manifest,
        lambda epoch: permutation(len(entries), seed, epoch) if shuffle else np.arange(len(entries)),
        global_batch=own * world_size,
        own=slice(rank * own, (rank + 1) * own),
        micro_batch=micro_batch,
        first_step=start_step,
        steps=steps,
        bad=BadSamples() if bad is None else bad,
        options=options,
    )

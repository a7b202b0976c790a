"""The default reader: global batches that depend on (seed, epoch, step) alone, read by offset from the shards.

Global step s of an epoch is permutation(seed, epoch)[k·G : (k+1)·G], where G = micro-batch × accumulation × world
size and k = s mod steps_per_epoch. Rank r takes the r-th contiguous slice, micro-batch m the m-th part of it. So
every number of ranks and loader processes trains on the same global batches, and step s is found without reading
what came before.
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
from .request import Batch, open_request
from .samples import SampleReader


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (count,): the order of an epoch. From raw Philox words, whose values numpy keeps across versions."""
    words = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(count)
    return np.argsort(words, kind="stable")


class _MicroBatches(Dataset[Batch | DataError]):
    """Micro-batches by their sample numbers. An error is returned, not raised: torch would wrap it in a traceback."""

    def __init__(self, reader: SampleReader):
        self.reader = reader

    def __getitem__(self, indices: list[int]) -> Batch | DataError:
        try:
            return collate([self.reader[index] for index in indices])
        except DataError as error:
            return error


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
        self._first_step, self._steps, self._options = first_step, steps, options
        self._iterator: Iterator[Batch | DataError] | None = None

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
        """Starts again at the first step; an earlier iteration ends. Raises `DataError` at a damaged sample."""
        self.close()
        loader = DataLoader(
            _MicroBatches(self._reader),
            batch_size=None,
            sampler=self.sample_numbers(),
            **self._options,
        )
        self._iterator = iter(loader)
        while self._iterator is not None:
            batch = next(self._iterator, None)
            if isinstance(batch, DataError):
                self.close()
                raise batch
            if batch is None:
                self.close()
                return
            yield batch

    def close(self) -> None:
        """Ends the loader processes and closes the shards. Iterating again starts anew."""
        self._iterator = None  # the last reference: torch ends its processes with it
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
) -> IndexedLoader:
    """The micro-batches of `rank`: `steps` × `accumulation` of them from global step `start_step` on, endless if None.

    `workers` processes decode ahead, `prefetch` micro-batches each (0: in this process, when asked); `pin` copies
    to page-locked memory; `image_size` = (width, height) delivered; without `shuffle` every epoch is in file order.
    Raises `DataError` if the folder cannot be read or holds fewer samples of `split` than one global batch.
    """
    manifest, entries, options = open_request(
        folder,
        split,
        pin=pin,
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
        options=options,
    )

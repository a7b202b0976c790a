"""The WebDataset pipeline as people run it: shards split over ranks and loader processes, a shuffle buffer.

What a step trains on depends on the number of ranks and loader processes; the indexed reader is the one to compare
strategies with. Only local files are read: shards are opened here, so that the library's URL handlers (`pipe:` runs
a shell) are never reached, and members are decoded here, so that nothing is unpickled.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import webdataset.utils
from torch.utils.data import DataLoader, IterableDataset
from webdataset import filters
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import split_by_worker

from ..batch import collate
from ..decode import Sample, decode_sample
from ..errors import DataError
from ..manifest import Manifest
from ..shards import SampleEntry, Shard
from ..skipping import BadSample, BadSamples
from .archive import listed_samples
from .delivery import Batch, Delivered, Deliveries
from .request import open_request

SHUFFLE_BUFFER = 256
"""Samples, still undecoded, among which the next one is drawn."""


class StreamLoader:
    """Iterable over the micro-batches of one rank; made by `stream_loader`."""

    def __init__(
        self,
        pipeline: IterableDataset,
        manifest: Manifest,
        *,
        samples: int,
        global_batch: int,
        micro_batches: int | None,
        bad: BadSamples,
        options: dict[str, Any],
    ):
        self.manifest = manifest
        """The manifest of the folder; its `digest` identifies the data."""
        self.samples_per_epoch = samples
        self.steps_per_epoch = samples // global_batch
        self.dropped_per_epoch = 0
        """Nothing is dropped: batches go on over the end of an epoch."""
        self._pipeline, self._micro_batches, self._bad, self._options = pipeline, micro_batches, bad, options
        self._deliveries: Deliveries | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Starts again at the beginning; an earlier iteration ends.

        Raises `DataError` at damage that is not left out, `LoaderDied` if a loader process dies.
        """
        self.close()
        loader = DataLoader(self._pipeline, batch_size=None, **self._options)
        self._deliveries = deliveries = Deliveries(loader, self._bad)
        try:
            yield from itertools.islice(deliveries, self._micro_batches)
        finally:
            deliveries.close()

    def close(self) -> None:
        """Ends the loader processes. Iterating again starts anew."""
        if self._deliveries is not None:
            self._deliveries.close()


def stream_loader(
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
) -> StreamLoader:
    """The micro-batches of `rank`, with the arguments of `indexed_loader`; epochs follow each other without a seam.
    Nothing stands in for what is left out: the next sample follows, and of a damaged shard all from there on is.

    Switches the secure mode of webdataset on for this process and those started from it: the library then refuses
    URLs, shell commands and pickles everywhere. Raises `DataError` as `indexed_loader` does, for `start_step` > 0
    (a stream has no place to resume from), and if there are fewer shards than ranks × loader processes.
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
    if start_step:
        raise DataError(f"start_step = {start_step}: a stream cannot be resumed; use the indexed reader for that")
    shards = [shard for shard in manifest.shards if shard.split == split]
    if len(shards) < world_size * max(1, workers):
        raise DataError(
            f"{folder}: split {split!r} has {len(shards)} shards, but {world_size} ranks × {max(1, workers)} loader "
            "processes need one each; use fewer of them, more and smaller shards, or the indexed reader"
        )
    webdataset.utils.enforce_security = True  # pyright: ignore[reportAttributeAccessIssue] (missing in its stub)
    bad = BadSamples() if bad is None else bad
    found = _Found(bad.budget, patience=len(entries) + len(shards))
    stages = [
        _ShardOrder(Path(folder).absolute(), shards, rank, world_size, seed if shuffle else None),
        split_by_worker,
        _Samples(found),
        *([filters.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, seed=seed + rank)] if shuffle else []),
        _Decode(image_size, found),
        filters.batched(micro_batch, collation_fn=collate, partial=False),
    ]
    return StreamLoader(
        _Delivering(DataPipeline(*stages), found),
        manifest,
        samples=len(entries),
        global_batch=micro_batch * accumulation * world_size,
        micro_batches=None if steps is None else steps * accumulation,
        bad=bad,
        options=options,
    )


class _ShardOrder:
    """The shards of one rank, epoch after epoch, in a new order each time unless `seed` is None."""

    def __init__(self, folder: Path, shards: list[Shard], rank: int, world_size: int, seed: int | None):
        self.folder, self.shards, self.rank, self.world_size, self.seed = folder, shards, rank, world_size, seed

    def __call__(self) -> Iterator[tuple[Path, Shard]]:
        for epoch in itertools.count():
            order = list(self.shards)
            if self.seed is not None:
                random.Random(f"{self.seed}/{epoch}").shuffle(order)
            yield from ((self.folder / shard.name, shard) for shard in order[self.rank :: self.world_size])


class _Found:
    """The damaged samples that one loader process met since its last batch, and how often it fails in a row."""

    def __init__(self, budget: int, patience: int):
        self._distinct, self._patience, self._in_a_row = BadSamples(budget), patience, 0
        self._waiting: list[BadSample] = []

    def bad(self, shard: Shard, entry: SampleEntry | None, error: DataError) -> None:
        """Leaves out one sample, or the rest of a shard. Raises `DataError` where that is one too many."""
        if not self._distinct.budget:
            raise error
        self._waiting.append(BadSample.of(shard, entry, error))
        self._distinct.add(self._waiting[-1:])
        self._in_a_row += 1
        # The same few damaged samples over and over: no batch would ever come.
        if self._in_a_row > self._patience:
            raise DataError(f"no sample of this rank's {shard.split} shards can be read, the last: {error}")

    def good(self) -> None:
        """Tells that a sample was read."""
        self._in_a_row = 0

    def take(self) -> list[BadSample]:
        """What was left out since the last call."""
        waiting, self._waiting = self._waiting, []
        return waiting


class _Samples:
    """The undecoded samples of one shard after the other, each shard held against what the manifest says is in it."""

    def __init__(self, found: _Found):
        self.found = found

    def __call__(self, shards: Iterable[tuple[Path, Shard]]) -> Iterator[dict[str, Any]]:
        for path, shard in shards:
            try:
                yield from listed_samples(path, shard)
            except DataError as error:
                self.found.bad(shard, None, error)


class _Decode:
    """Decodes what `_Samples` yields, and leaves out what does not decode."""

    def __init__(self, image_size: tuple[int, int] | None, found: _Found):
        self.image_size, self.found = image_size, found

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[Sample]:
        for sample in samples:
            members = {name: content for name, content in sample.items() if not name.startswith("__")}
            shard, entry = sample["__shard__"], sample["__entry__"]
            try:
                if sample["__error__"] is not None:
                    raise sample["__error__"]
                decoded = decode_sample(members, key=entry.key, shard=shard.name, image_size=self.image_size)
            except DataError as error:
                self.found.bad(shard, entry, error)
                continue
            self.found.good()
            yield decoded


class _Delivering(IterableDataset):
    """The pipeline's batches along with what was left out of them; an error is the last item."""

    def __init__(self, pipeline: Iterable[Batch], found: _Found):
        self.pipeline, self.found = pipeline, found

    def __iter__(self) -> Iterator[Delivered]:
        try:
            for batch in self.pipeline:
                yield Delivered(batch, self.found.take())
        except DataError as error:
            yield Delivered(error, self.found.take())

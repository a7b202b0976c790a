"""The WebDataset pipeline as people run it: shards split over ranks and loader processes, a shuffle buffer.

What a step trains on depends on the number of ranks and loader processes; the indexed reader is the one to compare
strategies with. Only local files are read: shards are opened here, so that the library's URL handlers (`pipe:` runs
a shell) are never reached, and members are decoded here, so that nothing is unpickled.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import webdataset.utils
from torch.utils.data import DataLoader, IterableDataset
from webdataset import filters
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import split_by_worker
from webdataset.tariterators import group_by_keys, tar_file_expander

from ..batch import collate
from ..decode import Sample, decode_sample
from ..errors import DataError
from ..manifest import Manifest
from ..shards import Shard
from ..tar import split_name
from .request import Batch, open_request

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
        options: dict[str, Any],
    ):
        self.manifest = manifest
        """The manifest of the folder; its `digest` identifies the data."""
        self.samples_per_epoch = samples
        self.steps_per_epoch = samples // global_batch
        self.dropped_per_epoch = 0
        """Nothing is dropped: batches go on over the end of an epoch."""
        self._pipeline, self._micro_batches, self._options = pipeline, micro_batches, options
        self._iterator: Iterator[Batch | DataError] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Starts again at the beginning; an earlier iteration ends. Raises `DataError` at damaged data."""
        self.close()
        self._iterator = iter(DataLoader(self._pipeline, batch_size=None, **self._options))
        count = itertools.count() if self._micro_batches is None else range(self._micro_batches)
        for _ in count:
            if self._iterator is None:
                return
            batch = next(self._iterator)
            if isinstance(batch, DataError):
                self.close()
                raise batch
            yield batch
        self.close()

    def close(self) -> None:
        """Ends the loader processes. Iterating again starts anew."""
        self._iterator = None  # the last reference: torch ends its processes with it


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
) -> StreamLoader:
    """The micro-batches of `rank`, with the arguments of `indexed_loader`; epochs follow each other without a seam.

    Switches the secure mode of webdataset on for this process and those started from it: the library then refuses
    URLs, shell commands and pickles everywhere. Raises `DataError` as `indexed_loader` does, for `start_step` > 0
    (a stream has no place to resume from), and if there are fewer shards than ranks × loader processes.
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
    if start_step:
        raise DataError(f"start_step = {start_step}: a stream cannot be resumed; use the indexed reader for that")
    shards = [shard for shard in manifest.shards if shard.split == split]
    if len(shards) < world_size * max(1, workers):
        raise DataError(
            f"{folder}: split {split!r} has {len(shards)} shards, but {world_size} ranks × {max(1, workers)} loader "
            "processes need one each; use fewer of them, more and smaller shards, or the indexed reader"
        )
    webdataset.utils.enforce_security = True  # pyright: ignore[reportAttributeAccessIssue] (missing in its stub)
    stages = [
        _ShardOrder(Path(folder).absolute(), shards, rank, world_size, seed if shuffle else None),
        split_by_worker,
        _opened,
        functools.partial(tar_file_expander, select_files=_belongs_to_a_sample),
        group_by_keys,
        *([filters.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, seed=seed + rank)] if shuffle else []),
        filters.map(_Decode(image_size)),
        filters.batched(micro_batch, collation_fn=collate, partial=False),
    ]
    return StreamLoader(
        _ErrorsAsItems(DataPipeline(*stages)),
        manifest,
        samples=len(entries),
        global_batch=micro_batch * accumulation * world_size,
        micro_batches=None if steps is None else steps * accumulation,
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


def _opened(shards: Iterable[tuple[Path, Shard]]) -> Iterator[dict[str, Any]]:
    """What webdataset's own opener would yield, for local files of the expected size that are plain tar archives."""
    for path, shard in shards:
        try:
            stream = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        with stream:
            if (size := os.fstat(stream.fileno()).st_size) != shard.bytes:
                raise DataError(f"{path.name}: expected {shard.bytes} bytes, found {size}: truncated or changed")
            # webdataset would unpack a compressed archive, of any size, without being asked.
            if stream.read(262)[257:] != b"ustar":
                raise DataError(f"{path.name}: offset 0: not a plain tar archive")
            stream.seek(0)
            yield {"url": str(path), "stream": stream}


def _belongs_to_a_sample(name: str) -> bool:
    return split_name(name) != ("", "")


class _Decode:
    """Decodes what `group_by_keys` yields."""

    def __init__(self, image_size: tuple[int, int] | None):
        self.image_size = image_size

    def __call__(self, sample: dict[str, Any]) -> Sample:
        members = {name: content for name, content in sample.items() if not name.startswith("__")}
        shard = Path(sample["__url__"]).name
        return decode_sample(members, key=sample["__key__"], shard=shard, image_size=self.image_size)


class _ErrorsAsItems(IterableDataset):
    """Hands errors on as the last item: torch would wrap a raised one in the traceback of its process."""

    def __init__(self, pipeline: Iterable[Batch]):
        self.pipeline = pipeline

    def __iter__(self) -> Iterator[Batch | DataError]:
        try:
            yield from self.pipeline
        except DataError as error:
            yield error
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            yield DataError(f"a shard is damaged: {error.args[0] if error.args else type(error).__name__}")

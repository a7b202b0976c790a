"""Writes one shard with webdataset's TarWriter, the same bytes whenever and wherever it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from webdataset.writer import TarWriter

from .shards import Shard, index_shard


def write_shard(path: Path, split: str, samples: Iterable[Mapping[str, bytes | str]]) -> Shard:
    """Writes `samples` (members and `__key__`) to `path` and returns its manifest entry.

    The entry is made by reading the file back, so that it describes what is on the disk.
    """
    with path.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as tar:
        for sample in samples:
            tar.write(dict(sample))
    return index_shard(path, split, checksums=True)

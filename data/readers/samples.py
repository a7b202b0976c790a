"""Reads single samples by offset: one `pread`, the checksum, the members, the decoders."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path

from ..decode import Sample, decode_sample
from ..errors import DataError
from ..shards import SampleEntry, Shard
from ..tar import scan, split_name

MAX_OPEN_SHARDS = 256
"""Shards that one process keeps open at a time; the usual limit of a process is 1024 files."""


class SampleReader:
    """Reads and decodes samples by their number in a split; usable in any process, also after a fork, by one thread."""

    def __init__(self, folder: Path, entries: list[tuple[Shard, SampleEntry]], image_size: tuple[int, int] | None):
        self.folder, self.entries, self.image_size = folder, entries, image_size
        self._open: OrderedDict[str, int] = OrderedDict()
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, checked against its CRC-32 where the manifest has one; raises `DataError`."""
        shard, entry = self.entries[index]
        where = f"{shard.name}: sample {entry.key!r} at offset {entry.offset}"
        if entry.bytes > len(self._buffer):
            self._buffer = bytearray(entry.bytes)
        # Read into memory that is in use already and decoded from there: fresh memory for a megabyte costs more
        # than its checksum.
        content = memoryview(self._buffer)[: entry.bytes]
        try:
            size = os.preadv(self._descriptor(shard.name), [content], entry.offset)
        except OSError as error:
            raise DataError(f"{self.folder / shard.name}: {error.strerror}") from None
        if size < entry.bytes:
            raise DataError(f"{where}: truncated, {size} bytes found of {entry.bytes}")
        if entry.crc32 is not None and (found := zlib.crc32(content)) != entry.crc32:
            raise DataError(f"{where}: CRC-32 is {found:08x}, the manifest says {entry.crc32:08x}: damaged")
        members: dict[str, memoryview] = {}
        try:
            for member in scan(lambda start, count: bytes(content[start : start + count]), 0, entry.bytes):
                key, field = split_name(member.name)
                if key == entry.key:
                    members[field] = content[member.data : member.data + member.size]
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        return decode_sample(members, key=entry.key, shard=shard.name, image_size=self.image_size)

    def _descriptor(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        while len(self._open) >= MAX_OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        self._open[name] = os.open(self.folder / name, os.O_RDONLY)
        return self._open[name]

    def close(self) -> None:
        """Closes the shards that this process opened."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict(), "_buffer": bytearray()}

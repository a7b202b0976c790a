"""Reads single samples by offset: one `pread`, the checksum, the members, the decoders."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path

from ..decode import Sample, decode_sample
from ..errors import DataError
from ..shards import SampleEntry, Shard
from ..skipping import BadSample
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
        try:
            descriptor = self._descriptor(shard.name)
            if entry.bytes > len(self._buffer):
                # No more than there is to read: a manifest may claim any size.
                self._buffer = bytearray(max(0, min(entry.bytes, os.fstat(descriptor).st_size - entry.offset)))
            # Read into memory that is in use already and decoded from there: fresh memory for a megabyte costs more
            # than its checksum.
            content = memoryview(self._buffer)[: entry.bytes]
            size = os.preadv(descriptor, [content], entry.offset)
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

    def readable(self, index: int, budget: int, bad: list[BadSample]) -> Sample:
        """Sample `index` or, where it is damaged, the next in file order that is not, the last followed by the first:
        which one, depends on the data alone.

        Damaged ones met are appended to `bad`. Raises `DataError` after more than `budget` of them, or if all are.
        """
        for step in range(len(self)):
            shard, entry = self.entries[number := (index + step) % len(self)]
            try:
                return self[number]
            except DataError as error:
                bad.append(BadSample.of(shard, entry, error))
                if step >= budget:
                    raise
        raise DataError(f"{self.folder}: none of the {len(self)} samples can be read, the last: {bad[-1].message}")

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

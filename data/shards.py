"""Tar shards and the samples in them: where each lies, found by reading the tar headers. Imports no torch."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .errors import DataError
from .tar import scan, split_name

MAX_FIELDS = 256
"""Members that one sample may have."""
MAX_SAMPLES = 100_000
"""Samples that one shard may have: what is known of each is kept in memory."""
_CHUNK = 1 << 20


class SampleEntry(NamedTuple):
    """Where one sample lies in its shard: the bytes [offset, offset + bytes) hold its tar headers and contents."""

    key: str
    offset: int
    bytes: int
    crc32: int | None
    """CRC-32 (zlib) of those bytes; None for shards that came without a manifest."""


@dataclass(frozen=True)
class Shard:
    """One tar file. `sha256` is None, and `modified_ns` is given instead, where the shard came without a manifest."""

    name: str
    split: str
    bytes: int
    sha256: str | None
    samples: tuple[SampleEntry, ...]
    modified_ns: int | None = None


def index_shard(path: Path, split: str, *, checksums: bool) -> Shard:
    """The samples of one shard: runs of members with the same key, as WebDataset groups them.

    With `checksums` every byte is read, else only the tar headers. Raises `DataError` naming shard and offset on
    damaged headers, a field given twice, a key that occurs twice, or a file without samples.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise DataError("the file is empty (0 bytes)")
        samples: list[SampleEntry] = []
        fields: set[str] = set()
        for member in scan(lambda offset, count: os.pread(descriptor, count, offset), 0, size):
            key, field = split_name(member.name)
            if not field:
                continue
            if samples and samples[-1].key == key:
                if field in fields or len(fields) == MAX_FIELDS:
                    problem = "twice" if field in fields else f"as one of more than {MAX_FIELDS} fields"
                    raise DataError(f"offset {member.start}: {key!r} has the field {field!r} {problem}")
                samples[-1] = samples[-1]._replace(bytes=member.end - samples[-1].offset)
                fields.add(field)
            elif len(samples) == MAX_SAMPLES:
                raise DataError(f"offset {member.start}: more than {MAX_SAMPLES} samples; make more and smaller shards")
            else:
                samples.append(SampleEntry(key, member.start, member.end - member.start, None))
                fields = {field}
        if not samples:
            raise DataError("no sample in it: members are named <key>.<field>, such as 000001.cam0.jpg")
        _refuse_duplicates(samples)
        if not checksums:
            return Shard(path.name, split, size, None, tuple(samples), os.fstat(descriptor).st_mtime_ns)
        digest, found = read_checksums(descriptor, samples)
        checked = (sample._replace(crc32=crc) for sample, crc in zip(samples, found, strict=True))
        return Shard(path.name, split, size, digest, tuple(checked))
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    finally:
        os.close(descriptor)


def _refuse_duplicates(samples: list[SampleEntry]) -> None:
    seen: dict[str, int] = {}
    for sample in samples:
        if sample.key in seen:
            raise DataError(f"offset {sample.offset}: key {sample.key!r} again, first at offset {seen[sample.key]}")
        seen[sample.key] = sample.offset


def read_checksums(descriptor: int, samples: Sequence[SampleEntry]) -> tuple[str, list[int]]:
    """Reads an open shard to its end: SHA-256 of the file, and the CRC-32 found at the place of each sample."""
    digest, checksums, position = hashlib.sha256(), [], 0

    def through(end: float) -> int:
        """Reads on to `end`, by pieces: a manifest may claim any length. The CRC-32 of what was read."""
        nonlocal position
        checksum = 0
        while content := os.pread(descriptor, int(min(_CHUNK, end - position)), position):
            digest.update(content)
            checksum = zlib.crc32(content, checksum)
            position += len(content)
        return checksum

    for sample in samples:
        through(sample.offset)
        checksums.append(through(sample.offset + sample.bytes))
    through(math.inf)
    return digest.hexdigest(), checksums

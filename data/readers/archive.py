"""Reads a shard from front to back for webdataset's pipeline, held against what the manifest says is in it."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from webdataset.tariterators import group_by_keys

from ..errors import DataError
from ..shards import Shard
from ..tar import check_member, split_name


def listed_samples(path: Path, shard: Shard) -> Iterator[dict[str, Any]]:
    """The samples of `shard` as webdataset groups them, undecoded. `__shard__` and `__entry__` say which each is, and
    `__error__` holds a `DataError` if its bytes are not those of the manifest, else None.

    Raises `DataError` once the samples are not those listed: tarfile takes a damaged header for the end of the archive,
    without a word.
    """
    held: dict[str, Any] | None = None
    count = 0
    checksums = _Checksums(shard)
    try:
        for sample in group_by_keys(_members(path, shard, checksums)):
            entry = shard.samples[count] if count < len(shard.samples) else None
            if entry is None or entry.key != sample["__key__"]:
                expected = "its end" if entry is None else f"sample {entry.key!r}"
                raise DataError(f"{shard.name}: expected {expected}, found {sample['__key__']!r}: changed or swapped")
            if held is not None:
                yield checksums.judged(held, count - 1)
            held = {**sample, "__shard__": shard, "__entry__": entry}
            count += 1
    except (DataError, tarfile.TarError, EOFError, OSError, ValueError) as error:
        if held is not None:
            yield checksums.judged(held, count - 1)  # complete: another one had begun
        if isinstance(error, DataError):
            raise
        said = error.args[0] if error.args else type(error).__name__
        raise DataError(f"{shard.name}: damaged after {count} of {len(shard.samples)} samples: {said}") from None
    if held is None or count < len(shard.samples):
        # The last one may be a part only.
        raise DataError(f"{shard.name}: expected {len(shard.samples)} samples, found {count}: damaged from there on")
    yield checksums.judged(held, count - 1)


def _members(path: Path, shard: Shard, checksums: _Checksums) -> Iterator[dict[str, Any]]:
    """What webdataset's own opener and expander would yield, for local files of the expected size and of members
    that `tar.scan` would accept: those skip links without a word, and unpack compressed and sparse files of any size.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    with stream:
        if (size := os.fstat(stream.fileno()).st_size) != shard.bytes:
            raise DataError(f"{path.name}: expected {shard.bytes} bytes, found {size}: truncated or changed")
        if stream.read(262)[257:] != b"ustar":
            raise DataError(f"{path.name}: offset 0: not a plain tar archive")
        stream.seek(0)
        archive = tarfile.open(fileobj=cast(Any, checksums.of(stream)), mode="r|")  # noqa: SIM115 (holds nothing else)
        for info in archive:
            if info.isdir():
                continue
            try:
                check_member(info.name, info.size, info.offset, regular=info.isreg() and not info.issparse())
            except DataError as error:
                raise DataError(f"{path.name}: {error}") from None
            if split_name(info.name) != ("", "") and (content := archive.extractfile(info)) is not None:
                yield {"fname": info.name, "data": content.read(), "__url__": str(path)}
            archive.members = []  # pyright: ignore[reportAttributeAccessIssue] (else every header is kept)


class _Checksums:
    """A file that computes the CRC-32 of each sample of a shard while tarfile reads it from front to back."""

    def __init__(self, shard: Shard):
        self._shard = shard
        self._position = self._checksum = 0
        self._found: list[int] = []

    def of(self, stream: BinaryIO) -> _Checksums:
        """This, reading from `stream`."""
        self._stream = stream
        return self

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        start, view = self._position, memoryview(content)
        self._position += len(content)
        while len(self._found) < len(self._shard.samples):
            entry = self._shard.samples[len(self._found)]
            end = entry.offset + entry.bytes
            part = view[max(entry.offset - start, 0) : max(min(end, self._position) - start, 0)]
            self._checksum = zlib.crc32(part, self._checksum)
            if self._position < end:
                break
            self._found.append(self._checksum)
            self._checksum = 0
        return content

    def judged(self, sample: dict[str, Any], number: int) -> dict[str, Any]:
        """`sample`, the `number`-th, with an `__error__` if its bytes have passed by and are not those listed."""
        entry, error = self._shard.samples[number], None
        if entry.crc32 is not None and number < len(self._found) and (found := self._found[number]) != entry.crc32:
            error = DataError(
                f"{self._shard.name}: sample {entry.key!r} at offset {entry.offset}: CRC-32 is {found:08x}, the "
                f"manifest says {entry.crc32:08x}: damaged"
            )
        return {**sample, "__error__": error}

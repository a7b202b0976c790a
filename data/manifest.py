"""What is in a folder of shards: `manifest.json` with every sample's place and checksum. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from .errors import DataError
from .shards import SampleEntry, Shard, index_shard, read_checksums
from .spec import DatasetSpec, cache_folder

MANIFEST_NAME = "manifest.json"
SCHEMA = 1
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Manifest:
    """The shards of a folder; `generator_version`, `seed` and `spec` are None where they were not generated."""

    shards: tuple[Shard, ...]
    generator_version: int | None = None
    seed: int | None = None
    spec: DatasetSpec | None = None
    digest: str = field(default="", compare=False)
    """SHA-256 of the manifest file: equal digests mean equal data."""
    schema: int = SCHEMA

    def split(self, name: str) -> list[tuple[Shard, SampleEntry]]:
        """The samples of split `name` in file order."""
        return [(shard, sample) for shard in self.shards if shard.split == name for sample in shard.samples]

    def to_json(self) -> bytes:
        """The bytes of `manifest.json` (without the digest, which is theirs)."""
        content = {
            "schema": self.schema,
            "generator_version": self.generator_version,
            "seed": self.seed,
            "spec": None if self.spec is None else asdict(self.spec),
            "shards": [{**vars(shard), "samples": [list(row) for row in shard.samples]} for shard in self.shards],
        }
        return orjson.dumps(content)

    @classmethod
    def from_json(cls, raw: bytes, source: str) -> Manifest:
        """Reads `to_json`'s bytes; raises `DataError` naming `source` on anything else."""
        try:
            content = orjson.loads(raw)
            if not isinstance(content, dict) or content.get("schema") != SCHEMA:
                found = content.get("schema") if isinstance(content, dict) else type(content).__name__
                raise DataError(f"{source}: schema is {found!r}, this version reads {SCHEMA}")
            spec = content["spec"]
            return cls(
                shards=tuple(_shard(entry) for entry in content["shards"]),
                generator_version=content["generator_version"],
                seed=content["seed"],
                spec=None if spec is None else DatasetSpec.from_dict(spec),
                digest=hashlib.sha256(raw).hexdigest(),
            )
        except DataError:
            raise
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: not a manifest of scalelab ({type(error).__name__}: {error})") from None


def load_manifest(folder: Path | str) -> Manifest:
    """The manifest of `folder`. Raises `DataError` where there is no folder, no manifest or a damaged one."""
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give one with .tar shards") from None
        raise DataError(f"{path}: no manifest; shards without one are read through index_folder") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return Manifest.from_json(raw, str(path))


def index_folder(folder: Path | str) -> Manifest:
    """A manifest for shards that came without one, found by reading their tar headers.

    Shards named `val*` are the split `val`, all others `train`. The result is kept in the cache folder under a
    hash of every shard's path, size and time of change; nothing is written to `folder`. Without checksums of the
    contents, damage inside a file is found by its decoder only.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with .tar shards")
    paths = _shard_files(folder)
    if not paths:
        raise DataError(f"{folder}: no .tar shards in it")
    stamp = hashlib.sha256()
    for path in paths:
        status = path.stat()
        stamp.update(os.fsencode(path) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    cached = cache_folder() / "index" / f"{stamp.hexdigest()}.json"
    if cached.is_file():
        return Manifest.from_json(cached.read_bytes(), str(cached))
    shards = tuple(index_shard(path, _split_of(path.name), checksums=False) for path in paths)
    raw = Manifest(shards).to_json()
    partial = cached.with_suffix(f".{os.getpid()}.partial")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(raw)
        partial.replace(cached)
    except OSError as error:
        warnings.warn(f"the index of {folder} is not kept: {cached.parent}: {error.strerror}", stacklevel=2)
    return Manifest.from_json(raw, str(cached))


def open_folder(folder: Path | str) -> Manifest:
    """The manifest of `folder`: its own, else the one that `index_folder` builds."""
    return load_manifest(folder) if (Path(folder) / MANIFEST_NAME).exists() else index_folder(folder)


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises `DataError` at the first shard of `manifest` that is missing or has another size. Reads none of them."""
    for shard in manifest.shards:
        path = folder / shard.name
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: expected {shard.bytes} bytes, cannot be read ({error.strerror})") from None
        if found != shard.bytes:
            raise DataError(
                f"{path}: expected {shard.bytes} bytes, found {found}; bring the shard again, or leave out what is "
                "damaged: --bad-data skip:N with --reader indexed"
            )


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a folder of shards: in which shard, at which byte and sample where known, and what."""

    shard: str
    message: str
    """Expected against found."""
    offset: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = f" at offset {self.offset}" if self.offset is not None else ""
        return f"{self.shard}{place}{f', sample {self.key!r}' if self.key is not None else ''}: {self.message}"


def check_dataset(folder: Path | str) -> list[Problem]:
    """Reads every byte of `folder` and returns what is wrong, in file order; an empty list means nothing.

    With a manifest: shards missing, truncated, changed, swapped or unknown, and keys that occur twice. Without
    one: whatever the tar headers and the decoding of every sample bring to light.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [Problem(str(folder), "no such folder")]
    if not (folder / MANIFEST_NAME).exists():
        return list(_check_by_decoding(folder))
    try:
        manifest = load_manifest(folder)
    except DataError as error:
        return [Problem(MANIFEST_NAME, str(error))]
    problems = [problem for shard in manifest.shards for problem in _check_shard(folder, shard, manifest)]
    known = {shard.name for shard in manifest.shards}
    for path in _shard_files(folder):
        if path.name not in known:
            problems.append(Problem(path.name, f"not in the manifest, which lists {len(known)} shards"))
    return problems + list(_check_counts(manifest))


def _check_shard(folder: Path, shard: Shard, manifest: Manifest) -> Iterator[Problem]:
    try:
        with (folder / shard.name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest, checksums = read_checksums(file.fileno(), shard.samples)
    except OSError as error:
        yield Problem(shard.name, f"expected {shard.bytes} bytes, cannot be read ({error.strerror})")
        return
    if digest == shard.sha256 and size == shard.bytes:
        return
    if other := next((s.name for s in manifest.shards if s.sha256 == digest and s.name != shard.name), None):
        yield Problem(shard.name, f"holds the content of {other}: swapped or copied")
        return
    if size != shard.bytes:
        state = "empty" if not size else "truncated" if size < shard.bytes else "too long"
        yield Problem(shard.name, f"{state}: expected {shard.bytes} bytes, found {size}", min(size, shard.bytes))
    found_one = False
    for sample, found in zip(shard.samples, checksums, strict=True):
        if sample.offset + sample.bytes > size:
            break  # from here on it is missing, which has been said
        if sample.crc32 is not None and found != sample.crc32:
            found_one = True
            message = f"expected CRC-32 {sample.crc32:08x}, found {found:08x}"
            yield Problem(shard.name, message, sample.offset, sample.key)
    if not found_one and size == shard.bytes:
        yield Problem(shard.name, f"changed outside of its samples: expected SHA-256 {shard.sha256}, found {digest}")


def _check_counts(manifest: Manifest) -> Iterator[Problem]:
    """What a manifest can be wrong about by itself."""
    seen: dict[str, str] = {}
    for shard in manifest.shards:
        if not shard.samples:
            yield Problem(shard.name, "expected at least one sample, the manifest lists none")
        for sample in shard.samples:
            if sample.key in seen:
                message = f"the key occurs again, first in {seen[sample.key]}"
                yield Problem(shard.name, message, sample.offset, sample.key)
            seen[sample.key] = shard.name
    if (spec := manifest.spec) is not None:
        for split, expected in zip(SPLITS, (spec.train_samples, spec.val_samples), strict=True):
            if (found := len(manifest.split(split))) != expected:
                yield Problem(MANIFEST_NAME, f"split {split}: expected {expected} samples, lists {found}")


def _check_by_decoding(folder: Path) -> Iterator[Problem]:
    from .readers.samples import SampleReader  # brings torch along

    paths = _shard_files(folder)
    if not paths:
        yield Problem(str(folder), "no .tar shards in it")
    for path in paths:
        try:
            shard = index_shard(path, _split_of(path.name), checksums=False)
        except DataError as error:
            yield Problem(path.name, str(error).removeprefix(f"{path.name}: "))
            continue
        reader = SampleReader(folder, [(shard, sample) for sample in shard.samples], None)
        for number, sample in enumerate(shard.samples):
            try:
                reader[number]
            except DataError as error:
                yield Problem(path.name, str(error), sample.offset, sample.key)
        reader.close()


def _shard_files(folder: Path) -> list[Path]:
    """The `.tar` files directly in `folder`, by name."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(".tar"))


def _split_of(name: str) -> str:
    """`val` for a shard whose file name starts so, else `train`."""
    return "val" if name.startswith("val") else "train"


def _shard(entry: dict[str, Any]) -> Shard:
    name, samples = entry["name"], tuple(_sample(row) for row in entry["samples"])
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".tar"):
        raise DataError(f"manifest: shard name {name!r} is refused, it must be a plain file name ending in .tar")
    if entry["split"] not in SPLITS:
        raise DataError(f"manifest: {name}: split is {entry['split']!r}, allowed are {', '.join(SPLITS)}")
    size, position = int(entry["bytes"]), 0
    for sample in samples:
        if sample.offset < position or sample.bytes <= 0 or sample.offset + sample.bytes > size:
            raise DataError(f"manifest: {name}: {sample.key!r} lies outside the shard's {size} bytes or overlaps")
        position = sample.offset + sample.bytes
    return Shard(name, entry["split"], size, entry["sha256"], samples, entry["modified_ns"])


def _sample(row: list[Any]) -> SampleEntry:
    key, offset, size, crc32 = row
    if not isinstance(key, str) or type(offset) is not int or type(size) is not int:
        raise DataError(f"manifest: {row!r} is no [key, offset, bytes, crc32]")
    return SampleEntry(key, offset, size, None if crc32 is None else int(crc32))

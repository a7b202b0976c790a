"""Archives that are not safe to read are refused by whatever reads them, with little memory, and unpack nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import resource
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from scalelab.data.errors import DataError
from scalelab.data.manifest import MANIFEST_NAME, Manifest, check_dataset, index_folder
from scalelab.data.readers.indexed import indexed_loader
from scalelab.data.readers.stream import stream_loader
from scalelab.data.shards import SampleEntry, Shard
from scalelab.data.tar import MAX_MEMBER_BYTES, scan

from .test_own_shards import Entry, named


def link(kind: bytes, target: str) -> Entry:
    info = tarfile.TarInfo("scene0.cam0.jpg")
    info.type, info.linkname = kind, target
    return info, b""


def claiming(size: int) -> bytes:
    info = tarfile.TarInfo("a.cam0.jpg")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def folder(name: str) -> Entry:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info, b""


def sparse() -> bytes:
    info = tarfile.TarInfo("a.cam0.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def pax_sparse() -> bytes:
    info = tarfile.TarInfo("a.cam0.jpg")
    names = {"major": "1", "minor": "0", "name": "a.cam0.jpg", "realsize": str(1 << 40)}
    info.pax_headers = {f"GNU.sparse.{name}": value for name, value in names.items()}
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def archive(*members: Entry) -> Callable[[], bytes]:
    def build() -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for info, content in members:
                tar.addfile(info, io.BytesIO(content))
        return stream.getvalue()

    return build


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent": (archive(named("../a.cam0.jpg")), "is refused"),
    "inner parent": (archive(named("a/../../b.jpg")), "is refused"),
    "absolute": (archive(named("/etc/a.cam0.jpg")), "is refused"),
    "long name": (archive(named("a/" * 140 + "b.jpg")), "at most 255"),
    "symbolic link": (archive(link(tarfile.SYMTYPE, "/etc/passwd")), "only regular files"),
    "hard link": (archive(link(tarfile.LNKTYPE, "x")), "only regular files"),
    "device": (archive(link(tarfile.CHRTYPE, "")), "only regular files"),
    "pipe": (archive(link(tarfile.FIFOTYPE, "")), "only regular files"),
    "sparse": (sparse, "only regular files"),
    "pax sparse": (pax_sparse, "sparse files are not read"),
    "large member": (lambda: claiming(MAX_MEMBER_BYTES + 1), "at most 67108864"),
    "vast member": (lambda: claiming(1 << 40), "no octal number|at most"),
    "longer than the file": (lambda: claiming(4096), "is truncated"),
    "block device": (archive(link(tarfile.BLKTYPE, "")), "only regular files"),
    "directory, then outside": (archive(folder("x"), named("x/../../a.cam0.jpg")), "is refused"),
    "gzip": (lambda: gzip.compress(bytes(1 << 20)), "gzip-compressed"),
    "empty": (lambda: b"", "empty"),
    "zeros": (lambda: bytes(10240), "no sample"),
    "noise": (lambda: bytes(range(256)) * 40, "not a POSIX or GNU tar"),
    "field twice": (archive(named("a.txt"), named("a.txt")), "field 'txt' twice"),
    "key again": (archive(named("a.txt"), named("b.txt"), named("a.npy")), "key 'a' again, first at offset 0"),
    "many fields": (archive(*(named(f"a.f{n}") for n in range(300))), "more than 256"),
}


@pytest.mark.fault(34, 58)
@pytest.mark.parametrize("case", REFUSED)
def test_unsafe_archives_are_refused(tmp_path: Path, case: str) -> None:
    """Nothing but regular files with plain names of bounded size is read, and the shard is named."""
    build, words = REFUSED[case]
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    (inner / "bad.tar").write_bytes(build())
    with pytest.raises(DataError, match=words) as error:
        index_folder(inner)
    assert str(error.value).startswith("bad.tar: ")
    (problem,) = check_dataset(inner)
    assert problem.shard == "bad.tar"
    assert str(error.value) == f"bad.tar: {problem.message}"
    with pytest.raises(DataError, match=r"bad\.tar"):
        stream_loader(inner, split="train", rank=0, world_size=1, micro_batch=1)
    assert_nothing_but(tmp_path, "bad.tar")


def assert_nothing_but(folder: Path, *names: str) -> None:
    """Nothing was unpacked, here or where the archives of `REFUSED` lead."""
    assert {path.name for path in folder.rglob("*") if not path.is_dir()} == set(names)
    assert not Path("/etc/a.cam0.jpg").exists()


def sparse_of(size: int) -> bytes:
    """A GNU sparse file without content that claims `size` bytes of zeros."""
    info = tarfile.TarInfo("a.cam0.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % size
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 8 * 32)
    return bytes(header) + bytes(1024)


UNLISTED = (
    "parent",
    "absolute",
    "symbolic link",
    "hard link",
    "device",
    "block device",
    "pipe",
    "sparse",
    "gzip",
    "noise",
)


@pytest.mark.fault(58)
@pytest.mark.parametrize("case", [*UNLISTED, "sparse bomb", "large sparse bomb", "gzip bomb"])
def test_a_manifest_vouches_for_nothing(tmp_path: Path, case: str) -> None:
    """Unsafe archives are refused with little memory by both readers, also where a manifest lists them as fine."""
    bombs = {
        "sparse bomb": lambda: sparse_of(48 << 20),
        "large sparse bomb": lambda: sparse_of(1 << 32),
        "gzip bomb": lambda: gzip.compress(bytes(64 << 20), 1),
    }
    content = bombs[case]() if case in bombs else REFUSED[case][0]()
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    (inner / "bad.tar").write_bytes(content)
    listed = (SampleEntry("a", 0, len(content), zlib.crc32(content)),)
    shard = Shard("bad.tar", "train", len(content), hashlib.sha256(content).hexdigest(), listed)
    (inner / MANIFEST_NAME).write_bytes(Manifest((shard,)).to_json())
    del content
    for loader in (stream_loader, indexed_loader):
        tracemalloc.start()
        with pytest.raises(DataError, match=r"bad\.tar"):
            next(iter(loader(inner, split="train", rank=0, world_size=1, micro_batch=1)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
    assert_nothing_but(tmp_path, "bad.tar", MANIFEST_NAME)


def write_many(path: Path, count: int, name: str) -> None:
    """An archive of `count` empty members, each named `name` with its number of seven digits for `#`."""
    info = tarfile.TarInfo(name.replace("#", "0" * 7))
    place = info.name.index("0" * 7)
    header = np.frombuffer(info.tobuf(tarfile.USTAR_FORMAT), np.uint8)
    base = int(header.sum()) - int(header[148:156].sum()) + 8 * 32
    with path.open("wb") as file:
        for start in range(0, count, 10_000):
            numbers = np.arange(start, min(start + 10_000, count))[:, None]
            digits = numbers // 10 ** np.arange(6, -1, -1) % 10
            sums = (base + digits.sum(axis=1))[:, None]
            block = np.repeat(header[None], len(numbers), axis=0)
            block[:, place : place + 7] = digits + ord("0")
            block[:, 148:154] = sums // 8 ** np.arange(5, -1, -1) % 8 + ord("0")
            block[:, 154:156] = (0, 32)
            file.write(block.tobytes())
        file.write(bytes(1024))


@pytest.mark.fault(58)
@pytest.mark.parametrize(
    ("count", "name", "words"),
    [
        (100_001, "#.cam0.jpg", "more than 100000 samples"),
        (100_001, "a.f#", "more than 256 fields"),
        pytest.param(1_000_000, "#.cam0.jpg", "more than 100000 samples", marks=pytest.mark.slow),
        pytest.param(1_000_000, "x/._#", "no sample in it", marks=pytest.mark.slow),
    ],
)
def test_a_million_members_take_bounded_memory(tmp_path: Path, count: int, name: str, words: str) -> None:
    """However many members an archive has, what is kept of them is bounded, and it is refused."""
    write_many(tmp_path / "many.tar", count, name)
    with tarfile.open(tmp_path / "many.tar") as tar:
        assert tar.next() is not None
        assert tar.next() is not None
    with limited_memory(192 << 20), pytest.raises(DataError, match=words):
        index_folder(tmp_path)


@contextmanager
def limited_memory(extra: int) -> Iterator[None]:
    """This process may take `extra` bytes of address space more than it has: beyond them, MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.fault(58)
def test_a_malformed_pax_header_is_refused() -> None:
    """Lengths in extended headers are not believed."""
    for record in (b"999 path=a\n", b"x path=a\n", b"-5 path=a\n", b"3 \n", b"0 path=a\n"):
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, len(record)
        raw = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
        with pytest.raises(DataError, match="pax header"):
            list(scan(lambda offset, size, raw=raw: raw[offset : offset + size], 0, len(raw)))

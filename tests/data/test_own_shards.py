"""A user's own shards: read without a manifest, whatever made them, and refused where they are not safe to read."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import resource
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from scalelab.data.errors import DataError
from scalelab.data.generate import render_sample
from scalelab.data.manifest import MANIFEST_NAME, Manifest, check_dataset, index_folder, open_folder
from scalelab.data.readers.indexed import indexed_loader
from scalelab.data.readers.stream import stream_loader
from scalelab.data.schema import BATCH_KEYS
from scalelab.data.shards import SampleEntry, Shard
from scalelab.data.tar import MAX_MEMBER_BYTES, scan, split_name
from webdataset.tariterators import base_plus_ext

from .conftest import SPEC

Entry = tuple[tarfile.TarInfo, bytes]


def entries(count: int = 2, prefix: str = "") -> list[Entry]:
    """The members of `count` scenes."""
    found: list[Entry] = []
    for index in range(count):
        for name, content in render_sample(SPEC, "train", index).items():
            if isinstance(content, bytes):
                info = tarfile.TarInfo(f"{prefix}scene{index}.{name}")
                info.size = len(content)
                found.append((info, content))
    return found


def write(path: Path, members: list[Entry], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def first_batch(folder: Path) -> dict[str, torch.Tensor]:
    made = indexed_loader(
        folder, split="train", rank=0, world_size=1, micro_batch=2, steps=1, shuffle=False, image_size=(48, 30)
    )
    return next(iter(made))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("plain")
    write(folder / "a.tar", entries())
    return first_batch(folder)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./", "ein/langer/" * 12, "ünï/", "a.b/"], ids=range(5))
def test_shards_of_any_tar_dialect_are_read(
    tmp_path: Path, expected: dict[str, torch.Tensor], kind: int, prefix: str
) -> None:
    """ustar, GNU and pax archives, with long, nested and non-ASCII names, deliver the same batch."""
    if kind == tarfile.USTAR_FORMAT and len(prefix) > 100:
        prefix = prefix[:99] + "/"
    write(tmp_path / "shard.tar", entries(prefix=prefix), kind)
    batch = first_batch(tmp_path)
    assert all(torch.equal(batch[key], expected[key]) for key in BATCH_KEYS)
    assert check_dataset(tmp_path) == []


def test_hidden_files_are_passed_over(tmp_path: Path, expected: dict[str, torch.Tensor]) -> None:
    """The companion files that some systems pack along (`._name`) belong to no sample, for either reader."""
    members = [entry for pair in entries() for entry in (named(f"x/._{pair[0].name}"), pair)]
    write(tmp_path / "a.tar", members)
    request: dict = {"split": "train", "rank": 0, "world_size": 1, "micro_batch": 2, "image_size": (48, 30)}
    streamed = next(iter(stream_loader(tmp_path, **request, shuffle=False)))
    for batch in (first_batch(tmp_path), streamed):
        assert all(torch.equal(batch[key], expected[key]) for key in BATCH_KEYS)


def test_what_the_tar_command_packs_is_read(tmp_path: Path, expected: dict[str, torch.Tensor]) -> None:
    """A folder packed with `tar cf`, folders and all, is a shard."""
    (tmp_path / "scenes").mkdir()
    for info, content in entries():
        (tmp_path / "scenes" / info.name).write_bytes(content)
    command = ["tar", "--sort=name", "-C", str(tmp_path), "-cf", str(tmp_path / "s.tar"), "scenes"]
    subprocess.run(command, check=True)
    batch = first_batch(tmp_path)
    assert all(torch.equal(batch[key], expected[key]) for key in BATCH_KEYS)


@pytest.mark.parametrize("name", ["a.jpg", "x/a.cam0.jpg", "a.b/c.D.npy", "./a.txt", ".hidden", "plain"])
def test_keys_are_those_of_webdataset(name: str) -> None:
    """Names are split into key and field as webdataset splits them."""
    key, field = base_plus_ext(name)
    assert split_name(name) == ((key, field.lower()) if key and field else ("", ""))


def test_the_index_is_kept_outside_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look reads no headers, a changed shard is looked at again, and the user's folder is not written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    shard = write(folder / "train-a.tar", entries())
    write(folder / "val-a.tar", entries(1))
    first = index_folder(folder)
    assert [(s.name, s.split, len(s.samples)) for s in first.shards] == [
        ("train-a.tar", "train", 2),
        ("val-a.tar", "val", 1),
    ]
    with monkeypatch.context() as patch:
        patch.setattr("scalelab.data.manifest.index_shard", lambda *_, **__: pytest.fail("looked again"))
        assert index_folder(folder) == first
    os.utime(shard, ns=(1, 1))
    assert index_folder(folder).digest != first.digest
    assert sorted(path.name for path in folder.iterdir()) == ["train-a.tar", "val-a.tar"]
    assert not (folder / MANIFEST_NAME).exists()


def test_an_unwritable_cache_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place for the index it is made each time, aloud."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write(tmp_path / "a.tar", entries(1))
    with pytest.warns(UserWarning, match="is not kept"):
        assert len(open_folder(tmp_path).shards) == 1


def link(kind: bytes, target: str) -> Entry:
    info = tarfile.TarInfo("scene0.cam0.jpg")
    info.type, info.linkname = kind, target
    return info, b""


def named(name: str) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = 1
    return info, b"x"


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


def test_checking_goes_on_after_a_bad_sample(tmp_path: Path) -> None:
    """Without a manifest every sample is decoded, and each that does not decode is listed."""
    members = entries(3)
    broken = [(info, content) for info, content in members if info.name not in ("scene0.ego.npy", "scene2.calib.json")]
    write(tmp_path / "a.tar", broken)
    found = [(problem.key, problem.message) for problem in check_dataset(tmp_path)]
    assert [key for key, _ in found] == ["scene0", "scene2"]
    assert "ego.npy: missing" in found[0][1]
    assert "calib.json: missing" in found[1][1]


@pytest.mark.fault(58)
def test_a_malformed_pax_header_is_refused() -> None:
    """Lengths in extended headers are not believed."""
    for record in (b"999 path=a\n", b"x path=a\n", b"-5 path=a\n", b"3 \n", b"0 path=a\n"):
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, len(record)
        raw = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
        with pytest.raises(DataError, match="pax header"):
            list(scan(lambda offset, size, raw=raw: raw[offset : offset + size], 0, len(raw)))

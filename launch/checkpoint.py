"""Sharded checkpoints: written beside their place by all ranks, named when whole and on disk. Loads without torch.

checkpoints/step-000020/MANIFEST.json   step, strategy, world size, versions, and every file with its bytes and CRC-32
checkpoints/latest                      a link to the last one that was committed

A CRC-32 finds every change of up to 32 bits in a row and misses one of 2^32 others, at gigabytes a second. Against a
forger no hash helps that lies beside the file: what is loaded must not be able to run code.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from ..profiles.runfolder import RunFolder
from ..profiles.storage import PARTIAL, OutputError, described, free_bytes, point, replace_file, sync_folder, writing
from .environment import versions
from .errors import Exit, ScalelabError

if TYPE_CHECKING:
    from .strategies._contract import Sharded

Value = TypeVar("Value")

SCHEMA = 1
MANIFEST = "MANIFEST.json"
LATEST = "latest"
KEPT = 2
_STEP = re.compile(r"step-(\d+)")
_CHUNK_BYTES = 1 << 20


class CheckpointFailed(ScalelabError):  # noqa: N818 (it reads as what is the case)
    """A checkpoint could not be written by rank `rank`, nor perhaps by later ones. Raised on all ranks, which can train
    on; the checkpoints before it are as they were."""

    exit_code = Exit.PREFLIGHT

    def __init__(self, rank: int, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.rank = rank


def save(run: Sharded, folder: RunFolder, *, step: int, strategy: str) -> dict[str, Any]:
    """Write the state after `step` steps. Called on all ranks together; returns the checkpoint's path, its bytes, and
    the seconds that writing and then syncing took.

    Until the last rename there is only a folder ending in `.partial`, which no reader takes for a checkpoint. One of
    the same step is replaced. Raises CheckpointFailed on all ranks when any of them fails.
    """
    final = folder.path / "checkpoints" / f"step-{step:06d}"
    partial = final.with_name(final.name + PARTIAL)
    rank, world_size = _place()
    description = {"schema": SCHEMA, "step": step, "strategy": strategy, "world_size": world_size}
    began = time.monotonic()
    try:
        _together(final, lambda: _make_room(partial, _state_bytes(run)) if rank == 0 else None)
        _together(final, lambda: run.save(partial))
        written = time.monotonic()
        shares = _together(final, lambda: _sync_share(partial, rank, world_size))
        files = {name: facts for share in shares for name, facts in share.items()}
        _together(final, lambda: _commit(partial, final, {**description, "files": files}) if rank == 0 else None)
    except CheckpointFailed:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return {
        "path": str(final.relative_to(folder.path)),
        "bytes": sum(facts["bytes"] for facts in files.values()),
        "write_seconds": written - began,
        "sync_seconds": time.monotonic() - written,
    }


def newest(folder: RunFolder, note: Callable[[str], None] = lambda text: None) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of `folder` that is whole, and its manifest; None if there is none.

    That is the one `latest` points to, else the one of the most steps. `note` gets a line for each that is passed over,
    with what is wrong with it.
    """
    place = folder.path / "checkpoints"
    for path in _by_age(place):
        problems = verify(path)
        if not problems:
            return path, orjson.loads((path / MANIFEST).read_bytes())
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        note(f"{path}: not used: {problems[0]}{more}")
    return None


def verify(path: Path) -> list[str]:
    """What is wrong with the checkpoint at `path`, a line each; reads all of it and unpickles nothing."""
    try:
        manifest = orjson.loads((path / MANIFEST).read_bytes())
        schema, files = manifest["schema"], manifest["files"]
        expected = {str(name): (int(facts["bytes"]), str(facts["crc32"])) for name, facts in files.items()}
        _ = int(manifest["step"]), int(manifest["world_size"]), str(manifest["strategy"])
    except FileNotFoundError:
        return [f"it has no {MANIFEST}, so it was never finished"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read: {type(error).__name__}: {error}"]
    if schema != SCHEMA:
        return [f"{MANIFEST} has schema {schema}, this scalelab reads {SCHEMA}: upgrade"]
    if not expected:
        return [f"{MANIFEST} names no files"]
    problems = [problem for name, facts in sorted(expected.items()) if (problem := _damage(path, name, facts))]
    unknown = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()} - {*expected, MANIFEST}
    return problems + [f"{name}: not in {MANIFEST}" for name in sorted(unknown)]


def _damage(path: Path, name: str, facts: tuple[int, str]) -> str | None:
    """How the file `name` differs from what the manifest says of it."""
    if os.path.isabs(name) or ".." in Path(name).parts:
        return f"{name}: lies outside the checkpoint"
    size, checksum = facts
    try:
        found = os.lstat(path / name)
        if not stat.S_ISREG(found.st_mode):
            return f"{name}: no regular file"
        if found.st_size != size:
            return f"{name}: {found.st_size:,} bytes, expected {size:,}"
        if _crc32(path / name) != checksum:
            return f"{name}: damaged, its CRC-32 is not the recorded one"
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        return f"{name}: cannot be read: {error.strerror or error}"
    return None


def _crc32(path: Path) -> str:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _by_age(place: Path) -> list[Path]:
    """Checkpoints by name, the one `latest` points to first and then by steps, the most first."""
    try:
        found = [path for path in place.iterdir() if _STEP.fullmatch(path.name) and not path.is_symlink()]
        found = [path for path in found if path.is_dir()]
    except OSError:
        return []
    try:
        last = os.readlink(place / LATEST)
    except OSError:
        last = ""
    return sorted(found, key=lambda path: (path.name == last, int(path.name.partition("-")[2])), reverse=True)


def _state_bytes(run: Sharded) -> int:
    """Bytes of this rank's parameters and optimizer state: the whole checkpoint has at least so many."""
    return sum(tensor.nbytes for tensor in (*run.parameters(), *run.optimizer_state()))


def _make_room(partial: Path, state_bytes: int) -> None:
    """An empty folder `partial`, without what an earlier attempt has left, on a disk where it should fit.

    A checkpoint that fills the disk first would take the run's own records with it.
    """
    with writing(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        for leftover in partial.parent.glob(f"*{PARTIAL}"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        previous = next(iter(_by_age(partial.parent)), None)
        needed = max(state_bytes, _bytes_of(previous) if previous else 0)
        free = free_bytes(partial)
        if free is not None and free < needed:
            raise described(OSError(errno.ENOSPC, ""), partial, needed)
        partial.mkdir()


def _bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _sync_share(partial: Path, rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    """Force this rank's share of the files to disk; their bytes and CRC-32 by name.

    Files are dealt out in turn, as libraries do not say which rank wrote which: on one host a sync forces out a file's
    bytes whoever wrote them, and network file systems send them when a file is closed. A failed sync is not tried
    again: the kernel has dropped what it could not write, and would call the next one good.
    """
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    found = {}
    for path in files[rank::world_size]:
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            found[str(path.relative_to(partial))] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
    return found


def _commit(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Give the checkpoint its manifest and its name. Raises ValueError when files changed since they were synced."""
    with writing(final):
        sizes = {str(path.relative_to(partial)): path.stat().st_size for path in partial.rglob("*") if path.is_file()}
        expected = {name: facts["bytes"] for name, facts in manifest["files"].items()}
        if sizes != expected or not sizes:
            names = sorted(name for name in {*sizes, *expected} if sizes.get(name) != expected.get(name))
            raise ValueError(f"{partial}: changed while it was saved: {', '.join(names) or 'no file is there'}")
        content = {**manifest, "versions": versions()}
        replace_file(partial / MANIFEST, orjson.dumps(content, option=orjson.OPT_INDENT_2))
        for inner in [path for path in partial.rglob("*") if path.is_dir()]:
            sync_folder(inner)
        _rename_over(partial, final)
        sync_folder(final.parent)
        point(final.parent / LATEST, final.name)
    _purge(final)


def _rename_over(partial: Path, final: Path) -> None:
    """A folder with files in it cannot be renamed over: one of the same step is moved aside for that moment."""
    aside = final.with_name(f"{final.name}.old{PARTIAL}")
    if not final.exists():
        os.rename(partial, final)
        return
    os.rename(final, aside)
    try:
        os.rename(partial, final)
    except BaseException:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _purge(last: Path) -> None:
    """Remove all checkpoints but `last` and the newest others. What resists is left to the next save.

    Each loses its name first, so that a half removed one is never taken for a checkpoint.
    """
    finished = [path for path in _by_age(last.parent) if path != last and (path / MANIFEST).exists()]
    for path in finished[KEPT - 1 :]:
        doomed = path.with_name(path.name + PARTIAL)
        with contextlib.suppress(OSError):
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def _place() -> tuple[int, int]:
    """This rank, and how many there are."""
    from torch import distributed

    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def _together(final: Path, act: Callable[[], Value]) -> list[Value]:
    """What `act` returned on each rank, once it has ended on all; CheckpointFailed on all when it failed on one."""
    from torch import distributed
    from torch.distributed.checkpoint.api import CheckpointException

    rank, world_size = _place()
    value, failures = None, {}
    try:
        value = act()
    except CheckpointException as error:
        failures = {failed: _cause(cause, final) for failed, (cause, _) in error.failures.items()}
    except Exception as error:
        failures = {rank: _cause(error, final)}
    found: list[Any] = [(value, failures)]
    if world_size > 1:
        found = [None] * world_size
        distributed.all_gather_object(found, (value, failures))
    causes = {failed: cause for _, failures in found for failed, cause in failures.items()}
    if causes:
        first = min(causes)
        message, hint = causes[first]
        raise CheckpointFailed(first, f"checkpoint {final.name} failed on rank {first}: {message}", hint=hint)
    return [value for value, _ in found]


def _cause(error: BaseException, final: Path) -> tuple[str, str]:
    """What stopped a rank, and the way out."""
    if isinstance(error, OSError):
        known = error if isinstance(error, OutputError) else described(error, Path(error.filename or final))
        return str(known), known.hint
    # Torch's own writer says that a write has failed and not why.
    text = f"{final}: cannot write: {type(error).__name__}: {error}".splitlines()[0]
    free = free_bytes(final)
    return text + ("" if free is None else f" ({free:,} bytes free)"), "see whether the disk or a quota is full"

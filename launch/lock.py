"""One process writes to a run folder at a time: the file `lock` in it says which.

On one host the kernel decides, by flock: it lets go however a process dies. What the file holds names the holder, and
decides where the kernel cannot: for a holder on another host, whose lock is never taken, and on file systems without
flock.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..profiles.storage import PARTIAL, write_all, writing
from .environment import boot_id, started
from .errors import Exit, ScalelabError

NAME = "lock"
# How long a holder may take from having the lock to having written its name, before it is called unknown.
NAMING_SECONDS = 1.0
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)


class Holder(BaseModel):
    """Who holds a folder. `started` is the process's start in the system's own unit: it tells a pid used again."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: float
    host: str
    boot_id: str
    since: str

    @classmethod
    def ourselves(cls) -> Holder:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        return cls(pid=pid, started=started(pid) or 0.0, host=socket.gethostname(), boot_id=boot_id(), since=since)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it ran on another machine, or in another container, whose processes cannot be seen from here."""
        return self.host != socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether that very process runs on this host."""
        return not self.is_elsewhere and self.boot_id == boot_id() and started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class FolderInUse(ScalelabError):  # noqa: N818 (it reads as what is the case)
    """Another process writes to the folder. `holder` is None if it has not said who it is."""

    exit_code = Exit.FOLDER_IN_USE

    def __init__(self, folder: Path, holder: Holder | None) -> None:
        self.holder = holder
        hint = "wait for it to end, or give another folder"
        if holder is not None and holder.is_elsewhere:
            hint = f"if nothing runs on {holder.host} any more, remove {folder / NAME} by hand"
        super().__init__(f"{folder}: in use by {holder or 'a process that has not named itself'}", hint=hint)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Holder | None]:
    """Hold `folder` within. Yields the holder whose lock was taken over, as it ended without giving it back; else None.

    Raises FolderInUse when another process holds it or may do so on another host, and OutputError when the file cannot
    be written. A child that is forked does not hold it.
    """
    owner, path = os.getpid(), folder / NAME
    with writing(path):
        descriptor, previous = _take(folder)
    _held.add(descriptor)
    try:
        yield previous
    finally:
        if os.getpid() == owner:
            _held.discard(descriptor)
            _give_back(path, descriptor)


def holder(folder: Path) -> Holder | None:
    """The process that holds `folder`, alive or on another host where that cannot be known; None if there is none."""
    found = _read(folder / NAME)
    return found if found is not None and (found.is_elsewhere or found.is_alive) else None


def _take(folder: Path) -> tuple[int, Holder | None]:
    """A descriptor that holds the lock, and whose it was before. Raises OSError and FolderInUse."""
    path, previous = folder / NAME, None
    while True:
        descriptor, created = _open(path)
        try:
            with_flock = _flock(descriptor)
            if created and with_flock is not False:
                found = None
            elif with_flock:
                found = _read(path)
            else:
                # Also when it was made here: another process can lock it first.
                found = _named(path, or_dead=with_flock is None)
            if _in_use(found, with_flock):
                raise FolderInUse(folder, found)
            # Before it was locked its holder may have removed it: then another file counts, or none yet.
            if _is_at(path, descriptor) and (with_flock or (with_flock is None and created)):
                _name(path, descriptor)
                return descriptor, found or previous
            if with_flock is None and not created:
                _remove(path, descriptor)
                previous = found
            elif with_flock is False and path.exists():
                raise FolderInUse(folder, found)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _in_use(found: Holder | None, with_flock: bool | None) -> bool:
    """Whether what the file says forbids to take it. With the kernel's lock in hand, a holder of this boot is gone,
    be it in another container or under a pid that is used again."""
    if found is None:
        return False
    if with_flock:
        return found.is_elsewhere and found.boot_id != boot_id()
    return found.is_elsewhere or found.is_alive


def _open(path: Path) -> tuple[int, bool]:
    """The file, and whether it was made here."""
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), True
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC), False


def _flock(descriptor: int) -> bool | None:
    """Take the kernel's lock: whether it could be had at once, None where the file system has no such thing."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _read(path: Path) -> Holder | None:
    """Who the file names; None if it names nobody (yet), as after a crash while it was written."""
    try:
        return Holder.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _named(path: Path, *, or_dead: bool) -> Holder | None:
    """Who the file names, once that is somebody who may hold it: a new holder writes its name after locking.

    With `or_dead` anybody's name will do: where there is no flock, a new holder makes a new file.
    """
    deadline = time.monotonic() + NAMING_SECONDS
    while True:
        found = _read(path)
        known = found is not None and (or_dead or found.is_elsewhere or found.is_alive)
        if known or not path.exists() or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def _name(path: Path, descriptor: int) -> None:
    """Write who we are. Without a name there is no lock: the file goes when that fails."""
    try:
        os.ftruncate(descriptor, 0)
        write_all(descriptor, Holder.ourselves().model_dump_json().encode() + b"\n")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether `path` still is the file that is open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(path: Path, descriptor: int) -> None:
    """Remove a dead process's file where there is no flock. Another process may do so too and have made its own by
    now: what was moved away is looked at, and put back if it is that one."""
    aside = path.with_name(f".{NAME}.{secrets.token_hex(4)}{PARTIAL}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if not _is_at(aside, descriptor):
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        os.unlink(aside)


def _give_back(path: Path, descriptor: int) -> None:
    """Removed before it is unlocked: who locks the removed file sees that and looks again."""
    with contextlib.suppress(OSError):
        if _is_at(path, descriptor):
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.close(descriptor)


_held: set[int] = set()


def _forget_in_child() -> None:
    """A forked child shares its parent's locks: it would hold the folder after the parent's death."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget_in_child)

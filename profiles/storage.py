"""Writing to disks that are full, read-only or failing: whole files by rename, and errors that say what to do.

All calls go through `os`, one system call each, so that tests can make any one of them fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")
Sleep = Callable[[float], None]

# A disk or a network file system may answer so once and be well again.
PASSING = (errno.EIO, errno.ESTALE)
PAUSES_SECONDS = (0.1, 0.4)
# What a file system answers that cannot sync a folder; there is nothing to wait for then.
_UNSYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
# What a temporary file ends in: no reader takes it for a real one.
PARTIAL = ".partial"

_ELSEWHERE = "give a folder that can be written with --out DIR"
_SPACE = "free some space there, or write to another disk with --out DIR"
_DISK = "see the kernel's log (dmesg) or who runs the file server, or write to another disk with --out DIR"
_KNOWN = {
    errno.ENOSPC: ("the disk is full", _SPACE),
    errno.EDQUOT: ("the quota is used up", _SPACE),
    errno.EFBIG: ("the file has reached the largest size allowed here", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", _ELSEWHERE),
    errno.EACCES: ("permission denied", _ELSEWHERE),
    errno.EPERM: ("not permitted", _ELSEWHERE),
    errno.EIO: ("the disk reports an error", _DISK),
    errno.ESTALE: ("the file server has lost the file (stale handle)", _DISK),
    errno.ENOTDIR: ("a file is in the place of a folder", _ELSEWHERE),
    errno.ENOENT: ("its folder is not there, and none can be made", _ELSEWHERE),
    errno.EEXIST: ("there is something of that name", _ELSEWHERE),
}


class OutputError(OSError, ValueError):
    """Something could not be written: the message names the path, what happened and the bytes free and needed.

    It is an OSError too, so that what tells those apart still does; `errno` is the system's. `hint` is the way out,
    one line.
    """

    def __init__(self, message: str, *, hint: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.errno = errno


def described(error: OSError, path: Path, needed_bytes: int | None = None) -> OutputError:
    """`error`, met while `path` was written, as an OutputError; `needed_bytes` is the size of what was meant to be."""
    words, hint = _KNOWN.get(error.errno or 0, (error.strerror or str(error), _ELSEWHERE))
    # What is not there has no room to speak of.
    free = None if error.errno == errno.ENOENT else free_bytes(path)
    numbers = [] if free is None else [f"{free:,} bytes free"]
    if needed_bytes is not None:
        numbers.append(f"{needed_bytes:,} needed")
    text = f"{path}: cannot write: {words}" + (f" ({', '.join(numbers)})" if numbers else "")
    return OutputError(text, hint=hint, errno=error.errno)


@contextlib.contextmanager
def writing(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Within, any OSError becomes an OutputError about `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise described(error, path, needed_bytes) from error


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write where `path` is or would be; None if the system does not say."""
    for place in (path, *path.parents):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        return found.f_bavail * found.f_frsize
    return None


def retried(act: Callable[[], Value], sleep: Sleep = time.sleep) -> Value:
    """What `act` returns, tried three times where the disk answers EIO or ESTALE. `act` starts afresh each time."""
    for pause in PAUSES_SECONDS:
        try:
            return act()
        except OSError as error:
            if error.errno not in PASSING:
                raise
        sleep(pause)
    return act()


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`, however many calls the system takes for it."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def replace_file(path: Path, content: bytes, *, sleep: Sleep = time.sleep) -> None:
    """Make `path` hold `content`, on disk when this returns: a reader sees the old file or the new one, whole.

    Raises OutputError; then the file is the old one, or the new one if only the folder could not be synced.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")

    # All of it is done again after a failed sync: the kernel drops the pages that it could not write, and the next
    # sync of the same file would succeed without them.
    def write() -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    try:
        with writing(path, len(content)):
            retried(write, sleep)
            os.replace(temporary, path)
            retried(lambda: sync_folder(path.parent), sleep)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sync_folder(path: Path) -> None:
    """Force to disk which files `path` holds. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNSYNCABLE:
            raise


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` point to `target`, atomically. Raises OutputError."""
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with writing(link):
            os.symlink(target, temporary)
            os.replace(temporary, link)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise

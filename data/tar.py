"""Reads tar archives from bytes without trusting them: where each member lies, nothing is ever extracted.

Only regular files in POSIX ustar, pax or GNU long-name form are accepted; directories are stepped over. Links,
devices, sparse and compressed archives, absolute names and names with `..` are refused.
Layout: POSIX.1-2017, pax utility, "ustar Interchange Format" and "pax Interchange Format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .errors import DataError

BLOCK = 512
MAX_MEMBER_BYTES = 64 << 20
MAX_NAME_BYTES = 255
_ZEROS = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class Member(NamedTuple):
    """One regular file in an archive; offsets count from the start of the archive."""

    name: str
    start: int
    """Offset of its first header block (a pax or long-name block belongs to the member that it describes)."""
    data: int
    """Offset of its first content byte."""
    size: int
    """Content bytes."""

    @property
    def end(self) -> int:
        """Offset of the block after its content."""
        return self.data + -(-self.size // BLOCK) * BLOCK


def scan(read: Callable[[int, int], bytes], start: int, end: int) -> Iterator[Member]:
    """The regular files of the archive bytes [start, end) in order.

    `read(offset, size)` returns the bytes there (fewer at the end of the file). Stops at the end-of-archive
    block. Raises `DataError`, naming the offset, on anything that is not a well-formed regular file.
    """
    position = member_start = start
    long_name: str | None = None
    long_size: int | None = None
    while position < end:
        block = read(position, BLOCK)
        if len(block) < BLOCK:
            raise DataError(f"offset {position}: truncated, {len(block)} bytes of a {BLOCK}-byte tar header")
        if block == _ZEROS:
            return
        _check_header(block, position)
        kind = block[156:157]
        size = _number(block[124:136], position) if long_size is None else long_size
        name = long_name if long_name is not None else _name(block, position)
        data = position + BLOCK
        if kind in b"xgL":
            if size > 1 << 20:
                raise DataError(f"offset {position}: an extended tar header of {size} bytes is refused")
            body = read(data, size)
            if len(body) < size:
                raise DataError(f"offset {position}: truncated inside an extended tar header")
            if kind == b"L":
                long_name = _text(body.rstrip(b"\0"), position)
            elif kind == b"x":
                long_name, long_size = _pax(body, position, long_name)
            position = data + -(-size // BLOCK) * BLOCK
            continue
        if kind in (b"0", b"\0", b"7"):
            check_member(name, size, position, regular=True)
            member = Member(name, member_start, data, size)
            if member.end > end:
                raise DataError(
                    f"offset {position}: {name!r} is truncated, it ends at {member.end}, the archive at {end}"
                )
            yield member
            position = member.end
        elif kind == b"5":
            position = data
        else:
            check_member(name, size, position, regular=False)
        member_start, long_name, long_size = position, None, None


def check_member(name: str, size: int, position: int, *, regular: bool) -> None:
    """Raises `DataError` for a member that is no regular file, has over `MAX_MEMBER_BYTES`, or a name that leads
    elsewhere; `position` is the offset of its header."""
    if not regular:
        raise DataError(f"offset {position}: {name!r}: only regular files are read (no links, devices or sparse files)")
    if size > MAX_MEMBER_BYTES:
        raise DataError(f"offset {position}: {name!r} has {size} bytes, at most {MAX_MEMBER_BYTES} are read")
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise DataError(f"offset {position}: member name {name!r} is refused (absolute, empty or with '..')")
    if (size := len(name.encode(errors="replace"))) > MAX_NAME_BYTES:
        raise DataError(f"offset {position}: member name of {size} bytes, at most {MAX_NAME_BYTES}")


def split_name(name: str) -> tuple[str, str]:
    """(key, field) of a member name by the rule of WebDataset: the field begins after the first dot of the last
    path part and is lower case. ("", "") for what belongs to no sample: hidden files and names without a dot."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return (folder + slash + key, field.lower()) if key and field else ("", "")


def _check_header(block: bytes, position: int) -> None:
    if position == 0 and (packed := _COMPRESSED.get(block[:2])):
        raise DataError(f"offset 0: a {packed}-compressed archive is not read, unpack it to a plain .tar")
    if block[257:262] != b"ustar":
        raise DataError(f"offset {position}: not a POSIX or GNU tar header (magic {block[257:263]!r})")
    # The checksum counts its own eight bytes as spaces.
    expected = _number(block[148:156], position)
    found = sum(block) - sum(block[148:156]) + 8 * 32
    if found != expected:
        raise DataError(f"offset {position}: tar header checksum is {found}, expected {expected}")


def _number(field: bytes, position: int) -> int:
    try:
        value = int(field.rstrip(b" \0").lstrip(b" ") or b"0", 8)
    except ValueError:
        raise DataError(f"offset {position}: {field!r} is no octal number in a tar header") from None
    if value < 0:
        raise DataError(f"offset {position}: negative number {field!r} in a tar header")
    return value


def _text(raw: bytes, position: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"offset {position}: member name {raw!r} is not UTF-8") from None


def _name(block: bytes, position: int) -> str:
    name = _text(block[:100].partition(b"\0")[0], position)
    # GNU archives ("ustar  ") use the prefix field for something else.
    prefix = _text(block[345:500].partition(b"\0")[0], position) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax(body: bytes, position: int, name: str | None) -> tuple[str | None, int | None]:
    """(path, size) of a pax extended header, each None where it is not given."""
    size: int | None = None
    while body:
        length_text, space, _ = body.partition(b" ")
        if not space or not length_text.isdigit() or not len(length_text) + 3 < int(length_text) <= len(body):
            raise DataError(f"offset {position}: malformed pax header")
        record, body = body[len(length_text) + 1 : int(length_text) - 1], body[int(length_text) :]
        keyword, _, value = record.partition(b"=")
        if keyword == b"path":
            name = _text(value, position)
        elif keyword == b"size":
            if not value.isdigit() or len(value) > 20:
                raise DataError(f"offset {position}: pax size {value!r} is no number")
            size = int(value)
        elif keyword.startswith(b"GNU.sparse"):
            raise DataError(f"offset {position}: sparse files are not read")
    return name, size

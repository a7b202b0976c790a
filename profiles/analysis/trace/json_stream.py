"""The events of a Chrome trace, a piece at a time: of one that is larger than memory, cut off, or damaged in places.

The format is Google's Trace Event Format: an object with the list `traceEvents` among other keys, or that list alone.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

PIECE_BYTES = 8 << 20
# Metadata beside the events is small; what goes on for longer is none.
METADATA_BYTES = 64 << 20
_LIST_OPENS = re.compile(rb'"traceEvents"\s*:\s*\[')
_LIST_ENDS = re.compile(rb"\}\s*\]")
_BETWEEN_EVENTS = re.compile(rb"\}\s*,\s*(?=\{)")
# Bytes below 32 are allowed between tokens only; a blank in their place is read alike there and does no harm in a text.
_NO_CONTROL = bytes(range(256)).translate(bytes(32 if code < 32 else code for code in range(256)))
# Where pieces are cut, from the last place on: inside an event that holds a list of objects they do not parse.
_CUTS_TRIED = 32
# Where the list may end behind damage: lists of objects in what stands beside it look alike.
_ENDS_TRIED = 64
# Parts that one event may be split into there.
_PARTS_JOINED = 16
# Of a stretch in which nothing can be read, the rest is given up after so many tries.
_FAILURES_TRIED = 20_000
_GZIP, _GZIP_BEGINS = 31, b"\x1f\x8b"
_PACKED_BYTES = 1 << 20
_decoder = json.JSONDecoder(strict=False)


class Source(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes: ...


class JsonStream:
    """The events of the file at `path`, gzipped or not. Iterate once; then `metadata` holds the other keys, and
    `damage` says what could not be read, empty where all was; `cut` is whether events may be missing at its end, nobody
    knows how many."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.metadata: dict[str, Any] = {}
        self.damage: list[str] = []
        self.lost_events = 0
        self.cut = False
        self._packed: _Unpacked | None = None

    def __iter__(self) -> Iterator[list[Any]]:
        """Lists of events. Raises OSError where the file cannot be opened."""
        with self._path.open("rb") as file:
            packed = file.read(2) == _GZIP_BEGINS
            file.seek(0)
            self._packed = _Unpacked(file) if packed else None
            head, rest = self._head(self._packed or file)
            if rest is None:
                self.damage.append(self._no_list(head, packed=packed))
                return
            # Known as well to who stops here: what comes behind the events is not.
            self.metadata = _beside(head, b"}") or {}
            tail = yield from self._pieces(self._packed or file, rest)
        found = _beside(head, b"}" if tail is None else tail)
        if found is None:
            self.damage.append("what it says beside its events cannot be read")
        else:
            self.metadata = found

    def _no_list(self, read: bytes, *, packed: bool) -> str:
        """Why there is no list of events in what was `read`, all of the file."""
        if not packed and self._path.suffix == ".gz":
            return "it is no gzip file, as its name says" if read else "it is empty"
        return "it holds no list of trace events" if read.strip() else "it is empty"

    def _head(self, file: Source) -> tuple[bytes, bytes | None]:
        """What stands before the first event, and what of the list was read with it; None where there is no list."""
        read = b""
        while more := self._read(file):
            read += more
            if read.lstrip()[:1] == b"[":
                return b"", read.lstrip()[1:]
            if (opens := _LIST_OPENS.search(read)) is not None:
                return read[: opens.start()], read[opens.end() :]
            if len(read) > METADATA_BYTES:
                break
        return read, None

    def _pieces(self, file: Source, rest: bytes) -> Iterator[Any]:
        """Yields lists of events; returns what stands after the list, None where it does not end."""
        while True:
            more = self._read(file)
            rest += more
            if not more:
                break
            found, rest, closed = _whole_events(rest)
            if found:
                yield found
            if closed:
                return rest + self._all_left(file)
            if len(rest) > 4 * PIECE_BYTES:  # damage that nothing can be cut at
                salvaged, lost, rest = _salvage(rest, keep_last=True)
                if len(rest) > 4 * PIECE_BYTES:
                    lost, rest = lost + 1, b""
                self._lost(lost)
                yield salvaged
        closed, events, end = _last_events(rest)
        if not closed and (stop := _end_behind(rest)) is not None:
            events, lost, left = _salvage(rest[: stop - 1], keep_last=False)
            self._lost(lost + bool(left.strip(b" \n\r\t,")))
            closed, end = True, stop
        elif not closed:
            events, lost, left = _salvage(rest, keep_last=False)
            self.cut = True
            self.damage.append("it is cut off: the list of events does not end")
            self._lost(lost + bool(left.strip(b" \n\r\t,")))
        if events:
            yield events
        return rest[end:] if closed else None

    def _lost(self, count: int) -> None:
        self.lost_events += count

    def _read(self, file: Source) -> bytes:
        """The next bytes, none at the end."""
        found = file.read(PIECE_BYTES).translate(_NO_CONTROL)
        if not found and self._packed is not None and self._packed.damage is not None:
            self.damage.append(f"it cannot be unpacked to its end: {self._packed.damage}")
            self._packed, self.cut = None, True
        return found

    def _all_left(self, file: Source) -> bytes:
        left = b""
        while (more := self._read(file)) and len(left) < METADATA_BYTES:
            left += more
        return left


def _beside(head: bytes, tail: bytes) -> dict[str, Any] | None:
    """The keys beside the events, of which `head` stands before them and `tail` behind; None where they cannot be
    read."""
    if not head:
        return {}
    # `{"a": 1, "traceEvents": [` … `], "b": 2}`
    try:
        found = json.loads((head + b'"traceEvents":[]' + tail).decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return None
    found.pop("traceEvents", None)
    return found


def _whole_events(text: bytes) -> tuple[list[Any], bytes, bool]:
    """The whole events at the begin of `text`, what is left of it, and whether the list ended there."""
    end = len(text)
    for _ in range(_CUTS_TRIED):
        end = text.rfind(b"}", 0, end)
        if end < 0:
            break
        if _BETWEEN_EVENTS.match(text, end) is None:
            continue
        if (events := _loaded(text[: end + 1])) is not None:
            return events, text[text.index(b",", end) + 1 :], False
    closed, events, stop = _last_events(text)
    return (events, text[stop:], True) if closed else ([], text, False)


def _loaded(text: bytes) -> list[Any] | None:
    """The events in `text`, None where it is no list of them."""
    listed = b"[" + text + b"]"
    try:
        return orjson.loads(listed)
    except orjson.JSONDecodeError:
        pass
    try:  # texts in no known encoding, NaN and Infinity: the standard library takes them
        return json.loads(listed.decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def _last_events(text: bytes) -> tuple[bool, list[Any], int]:
    """Whether the list of events ends in `text`; they, and where it ends (behind the bracket)."""
    listed = "[" + text.decode(errors="surrogateescape")
    try:
        events, end = _decoder.raw_decode(listed)
    except (ValueError, RecursionError):
        return False, [], 0
    return True, events, len(listed[1:end].encode(errors="surrogateescape"))


def _end_behind(text: bytes) -> int | None:
    """Where the list of events ends (behind the bracket) in `text` that is damaged before that; None where it does
    not."""
    for match in list(_LIST_ENDS.finditer(text))[-_ENDS_TRIED:]:
        tail = text[match.end() :].strip()
        if not tail or (tail[:1] in b",}" and _beside(b"{", tail) is not None):
            return match.end()
    return None


def _salvage(text: bytes, *, keep_last: bool) -> tuple[list[Any], int, bytes]:
    """The events of damaged `text` that can be read, how many stretches cannot, and the last, maybe unfinished part."""
    parts = _BETWEEN_EVENTS.split(text)
    parts = [part + b"}" for part in parts[:-1]] + parts[-1:]
    last = parts.pop() if keep_last else b""
    events: list[Any] = []
    lost, failures, pending = 0, 0, []
    for part in parts:
        if failures > _FAILURES_TRIED:
            return events, lost + 1, last
        pending = [*pending[-_PARTS_JOINED:], part]
        for first in range(len(pending)):
            found = _loaded(b",".join(pending[first:]))
            # A later begin may be an object inside an event: those have no phase.
            if found is not None and (first == 0 or all(isinstance(each, dict) and "ph" in each for each in found)):
                events += found
                lost += first > 0
                pending = []
                break
            failures += 1
    return events, lost + bool(pending and keep_last), last if keep_last else b",".join(pending)


class _Unpacked:
    """A gzip file that gives all that can be unpacked of it, also where it is cut off or damaged later on."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._unpack = zlib.decompressobj(_GZIP)
        self._left = b""
        self.damage: str | None = None

    def read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size and self.damage is None:
            packed = self._left or self._file.read(_PACKED_BYTES)
            if not packed:
                if not self._unpack.eof:
                    self.damage = "the archive is cut off"
                break
            if self._unpack.eof:
                self._unpack = zlib.decompressobj(_GZIP)
            try:
                found += self._unpack.decompress(packed, size)
                self._left = self._unpack.unconsumed_tail or self._unpack.unused_data
            except zlib.error as error:
                self.damage = str(error)
        return bytes(found)

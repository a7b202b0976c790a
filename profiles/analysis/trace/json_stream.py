"""The events of a Chrome trace, a piece at a time: of one that is larger than memory, cut off, or damaged in places.

The format is Google's Trace Event Format: an object with the list `traceEvents` among other keys, or that list alone.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

PIECE_BYTES = 8 << 20
# Metadata beside the events is small; what goes on for longer is none.
METADATA_BYTES = 64 << 20
_LIST_OPENS = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN_EVENTS = re.compile(rb"\}\s*,\s*(?=\{)")
# Bytes below 32 are allowed between tokens only; a blank in their place is read alike there and does no harm in a text.
_NO_CONTROL = bytes(range(256)).translate(bytes(32 if code < 32 else code for code in range(256)))
# Where pieces are cut, from the last place on: inside an event that holds a list of objects they do not parse.
_CUTS_TRIED = 32
_decoder = json.JSONDecoder(strict=False)


class JsonStream:
    """The events of the file at `path`, gzipped or not. Iterate once; then `metadata` holds the other keys, and
    `damage` says what could not be read, empty where all was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.metadata: dict[str, Any] = {}
        self.damage: list[str] = []
        self.lost_events = 0

    def __iter__(self) -> Iterator[list[Any]]:
        """Lists of events. Raises OSError where the file cannot be opened."""
        with _opened(self._path) as file:
            head, rest = self._head(file)
            if rest is None:
                self.damage.append("it holds no list of trace events")
                return
            tail = yield from self._pieces(file, rest)
        self._read_metadata(head, tail)

    def _head(self, file: IO[bytes]) -> tuple[bytes, bytes | None]:
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

    def _pieces(self, file: IO[bytes], rest: bytes) -> Iterator[Any]:
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
                self._lost(lost)
                yield salvaged
        closed, events, end = _last_events(rest)
        if not closed:
            events, lost, left = _salvage(rest, keep_last=False)
            self.damage.append("it is cut off: the list of events does not end")
            self._lost(lost + bool(left.strip(b" \n\r\t,")))
        if events:
            yield events
        return rest[end:] if closed else None

    def _lost(self, count: int) -> None:
        self.lost_events += count

    def _read(self, file: IO[bytes]) -> bytes:
        """The next bytes, none at the end: that of a damaged archive is where it cannot be unpacked any more."""
        try:
            return file.read(PIECE_BYTES).translate(_NO_CONTROL)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.damage.append(f"it cannot be unpacked to its end: {error}")
            return b""

    def _all_left(self, file: IO[bytes]) -> bytes:
        left = b""
        while (more := self._read(file)) and len(left) < METADATA_BYTES:
            left += more
        return left

    def _read_metadata(self, head: bytes, tail: bytes | None) -> None:
        if not head:
            return
        # `{"a": 1, "traceEvents": [` … `], "b": 2}`
        text = head + b'"traceEvents":[]' + (tail if tail is not None else b"}")
        try:
            found = json.loads(text.decode(errors="replace"), strict=False)
        except ValueError:
            self.damage.append("what it says beside its events cannot be read")
            return
        found.pop("traceEvents", None)
        self.metadata = found


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


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


def _salvage(text: bytes, *, keep_last: bool) -> tuple[list[Any], int, bytes]:
    """The events of damaged `text` that can be read, how many cannot, and the rest: the last, maybe unfinished one."""
    parts = _BETWEEN_EVENTS.split(text)
    parts = [part + b"}" for part in parts[:-1]] + parts[-1:]
    events: list[Any] = []
    lost, open_part = 0, b""
    last = parts.pop() if keep_last else b""
    for part in parts:
        joined = open_part + b"," + part if open_part else part
        if (found := _loaded(joined)) is not None:
            events += found
            open_part = b""
        elif open_part and (found := _loaded(part)) is not None:
            lost += 1
            events += found
            open_part = b""
        else:
            open_part = joined if len(joined) < 1 << 20 else part
    return events, lost + bool(open_part and keep_last), last if keep_last else open_part

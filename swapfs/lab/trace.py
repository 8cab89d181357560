"""Trace files: a header, then events as they stand in the access log (core/log.h).

Little-endian throughout::

    0     magic "swapfstr"
    8     u32 version (1), u32 bytes of the header (4096)
    16    u64 events in the file, u64 events dropped, u64 CLOCK_MONOTONIC at the end in ns;
          all 0 in a file that was not finished, which is good as far as it goes
    40    JSON, zeros up to the end of the header: `meta` below
    4096  events, 16 bytes each, in order

An event of kind 15 is a gap: its slot field says how many events were dropped there. The keys of
the JSON are those of ``Meta``.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

from swapfs.errors import OperationError
from swapfs.region.access_log import EVENT_BYTES, SLOT_MASK

MAGIC: Final = b"swapfstr"
VERSION: Final = 1
HEADER_BYTES: Final = 4096
GAP: Final = 15
"""The kind of event that says that events are missing."""
CHUNK_EVENTS: Final = 65536
_FIXED: Final = struct.Struct("<8sIIQQQ")
_ROOM: Final = HEADER_BYTES - _FIXED.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What a trace says of where it comes from. Sizes in bytes.

    :param class_sizes: bytes an object, by size class
    :param config: of the instance, as ``check-config --json`` prints it
    :param tier_bytes: sizes of the tiers below the pool, in the order in which they are filled
    :param host: kernel and machine
    :param monotonic_ns: the clock of the events when recording began, and ``realtime_ns`` then
    """

    size_bytes: int
    pool_bytes: int
    class_sizes: list[int]
    tier_bytes: list[int] = field(default_factory=list)
    name: str = ""
    version: str = ""
    monotonic_ns: int = 0
    realtime_ns: int = 0
    host: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def gap(events: int) -> tuple[int, int]:
    """Return the event that says that *events* events are missing."""
    return min(events, SLOT_MASK) | GAP << 40, 0


class TraceWriter:
    """Writes a trace to a new file *path*; ``close`` (or leaving the block) finishes it.

    :raises OSError: the file cannot be made
    """

    def __init__(self, path: Path, meta: Meta) -> None:
        text = json.dumps(asdict(meta), separators=(",", ":")).encode()
        if len(text) > _ROOM:  # a configuration with very long paths: it goes, the rest is needed
            text = json.dumps(asdict(meta) | {"config": {}}, separators=(",", ":")).encode()
        self._file = path.open("wb")
        self.events = self.dropped = 0
        self._last_ns = 0
        self._file.write(self._fixed() + text.ljust(_ROOM, b"\0"))

    def _fixed(self) -> bytes:
        return _FIXED.pack(MAGIC, VERSION, HEADER_BYTES, self.events, self.dropped, self._last_ns)

    def write(self, words: memoryview, count: int) -> None:
        """Append the first *count* events of *words*, two words each.

        :raises OSError: the file does not take them
        """
        if count:
            self._file.write(words[: 2 * count])
            self.events += count
            self._last_ns = words[2 * count - 1]

    def write_gap(self, events: int) -> None:
        """Note that *events* events are missing here."""
        if events:
            self._file.write(array("Q", gap(events)))
            self.events += 1
            self.dropped += events

    def close(self) -> None:
        """Finish the file: write out what is there, and how much that is."""
        if self._file.closed:
            return
        try:
            self._file.seek(0)
            self._file.write(self._fixed())
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Trace:
    """A trace file that is read. Its events come in chunks, so memory does not grow with it.

    :raises OperationError: it is none, or of a version that is not known
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._read_header(file)
        except OSError as error:
            raise OperationError(f"{path}: {error.strerror}") from error

    def _read_header(self, file: BinaryIO) -> None:
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
            raise OperationError(f"{self.path}: this is no trace of swapfs")
        _, version, header_bytes, events, self.dropped, self.end_ns = _FIXED.unpack_from(header)
        if version != VERSION or header_bytes != HEADER_BYTES:
            raise OperationError(
                f"{self.path}: a trace of version {version}, this swapfs reads {VERSION}"
            )
        there = (os.fstat(file.fileno()).st_size - HEADER_BYTES) // EVENT_BYTES
        if events > there:
            raise OperationError(f"{self.path}: {events} events were written, {there} are there")
        self.finished = bool(self.end_ns) or not there
        self.count = events if self.finished else there
        try:
            self.meta = Meta(**json.loads(header[_FIXED.size :].rstrip(b"\0")))
            meta = self.meta
            sizes = [meta.size_bytes, meta.pool_bytes, *meta.class_sizes, *meta.tier_bytes]
            if not all(type(size) is int and size >= 0 for size in sizes):
                raise ValueError
        except (ValueError, TypeError) as error:
            raise OperationError(f"{self.path}: its header is damaged") from error

    def chunks(
        self, events: int = CHUNK_EVENTS, *, backwards: bool = False
    ) -> Iterator[array[int]]:
        """Yield arrays of words, two an event, of *events* events each but for one.

        :param backwards: the last chunk first; in a chunk events stand in their order
        :raises OperationError: the file cannot be read
        """
        starts = range(0, self.count, events)
        try:
            with self.path.open("rb") as file:
                for start in reversed(starts) if backwards else starts:
                    words = array("Q")
                    file.seek(HEADER_BYTES + start * EVENT_BYTES)
                    words.fromfile(file, 2 * min(events, self.count - start))
                    yield words
        except (OSError, EOFError) as error:
            raise OperationError(f"{self.path}: cannot be read: {error}") from error

"""Recording a trace: a process of its own that follows the access log of a running instance.

It maps the ring read-only, through the monitor's descriptor (/proc/PID/fd/N, so it takes root),
and nothing else of the region, which holds pages. The server does not know of it, and goes on
whatever becomes of it; a ring that turns faster than it is read leaves a gap, which is counted.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from swapfs.errors import OperationError, RegionError
from swapfs.lab.trace import Meta, TraceWriter
from swapfs.region.access_log import EVENT_BYTES, LogReader
from swapfs.region.layout import Geometry, read_geometry
from swapfs.tiers.pool.size_classes import SIZES
from swapfs.wire.handover import Handover

POLL_S: Final = 0.02
_BATCH_EVENTS: Final = 65536
_FIRST_WORD: Final = 8

Progress = Callable[[float, int, int], None]
"""(seconds, events, dropped) so far."""


class Ring:
    """The access log of the region behind *region_fd*, mapped read-only. Close it after use.

    :raises OperationError: that is no region of this version, or it has no access log
    """

    def __init__(self, region_fd: int) -> None:
        try:
            self.geometry = geometry = read_geometry(region_fd)
        except RegionError as error:
            raise OperationError(str(error)) from error
        if not geometry.log_bytes:
            raise OperationError("it has no access log: start it with access-log = 1M or so")
        start = geometry.log_offset
        self._mapping = mmap.mmap(
            region_fd,
            geometry.events_offset + geometry.log_bytes - start,
            prot=mmap.PROT_READ,
            offset=start,
        )
        whole = memoryview(self._mapping)
        self.head = whole[:_FIRST_WORD]
        self.touched = whole[geometry.touched_offset - start :][: 4 * geometry.touched]
        self.events = whole[geometry.events_offset - start :]
        self._whole = whole

    def close(self) -> None:
        """Unmap it."""
        for view in (self.head, self.touched, self.events, self._whole):
            view.release()
        self._mapping.close()


def open_ring(status: Mapping[str, Any]) -> Ring:
    """Return the ring of the instance whose *status* this is.

    :raises OperationError: it is gone, or may not be seen
    """
    handover = Handover.from_status(status)
    path = f"/proc/{handover.pid}/fd/{handover.region_fd}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OperationError(f"{path}: {error.strerror}") from error
    try:
        return Ring(fd)
    finally:
        os.close(fd)


def describe(status: Mapping[str, Any], geometry: Geometry) -> Meta:
    """Return what a trace of the instance with *status* says of itself."""
    kernel = os.uname()
    return Meta(
        size_bytes=geometry.size_bytes,
        pool_bytes=geometry.pool_bytes,
        class_sizes=list(SIZES),
        tier_bytes=_tier_bytes(status),
        name=str(status.get("name", "")),
        version=str(status.get("version", "")),
        monotonic_ns=time.monotonic_ns(),
        realtime_ns=time.time_ns(),
        host={"kernel": kernel.release, "machine": kernel.machine},
        config=json.loads(json.dumps(status.get("config") or {})),
    )


def _tier_bytes(status: Mapping[str, Any]) -> list[int]:
    tiers = sorted(status.get("tiers") or (), key=lambda tier: -int(tier["priority"]))
    return [int(tier["size_bytes"]) for tier in tiers]


def record(
    ring: Ring,
    writer: TraceWriter,
    stopped: Callable[[], bool],
    *,
    seconds: float | None = None,
    progress: Progress = lambda *_: None,
    sleep: Callable[[float], object] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> None:
    """Write what happens from now on, until *stopped* says so or *seconds* have passed.

    :raises OSError: the file does not take it
    """
    reader = LogReader(ring.head, ring.events, min(_BATCH_EVENTS, len(ring.events) // EVENT_BYTES))
    words, began_s = memoryview(reader.words), clock_s()
    while True:
        # Asked before the last look, so that what happened until then is in the file.
        last = stopped() or (seconds is not None and clock_s() - began_s >= seconds)
        while True:
            dropped = reader.dropped
            count = reader.take()
            writer.write_gap(reader.dropped - dropped)
            writer.write(words, count)
            if 2 * count < len(words):
                break
        progress(clock_s() - began_s, writer.events, writer.dropped)
        if last:
            return
        sleep(POLL_S)


def new_file(path: Path, *, force: bool) -> None:
    """Check that *path* may be written.

    :raises OperationError: it is there already, or its directory is not
    """
    if path.exists() and not force:
        raise OperationError(f"{path} is there already; --force replaces it")
    if not path.parent.is_dir():
        raise OperationError(f"{path.parent} is no directory")

"""Writes that nobody had room for: again and again, until there is room or can be none.

A write that found the pool full, and no file tier with room either, is refused only if no room
can be made (I6): moving blobs together in the pool makes none, and the file has none, even if it
is cleaned, with nothing under way in it. A thread of its own waits for that; it also compacts
before any write has to wait. The request's buffer is needed for the next request, so what is left
of the write is copied to one of a few buffers reserved at start; those who find none wait as long
as the thread gets on (``progress``).
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EIO, ENOSPC
from typing import Final, Protocol

from swapfs.errors import OverQuota
from swapfs.units import PAGE_SHIFT
from swapfs.vlayer.compaction import Compactor
from swapfs.vlayer.deferred import Answerable, DeferredWrite
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.packing import STORE_STEP, Packer
from swapfs.vlayer.progress import WAIT_S, Mark, Progress

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.1
"""The pause after a look at a short pool, so that a full one costs no look per write."""


class Below(Protocol):
    """The tier below the pool, for writes that may have to wait for room in it."""

    def mark(self) -> Mark:
        """Return what is under way there, before a look for room."""

    def write_some(
        self, request: DeferredWrite, slot: int, pages: memoryview, count: int, /
    ) -> int:
        """Have the first of *count* pages written as parts of *request*; return how many."""

    def wait_for_room(self, mark: Mark, slot: int, /) -> bool:
        """Wait for something that may have made room since *mark*; False: there is none.

        :param slot: what is to be written
        """


@dataclass(frozen=True, slots=True)
class _Write:
    request: DeferredWrite
    slot: int
    buffer: memoryview
    count: int


class StalledWrites:
    """Compacts the pool of *layer*, and stores what waits for that or for room below.

    :param views: as long as the longest request each: the writes that may wait at once
    :param wait_s: how long those who find no buffer wait while no write gets on
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        views: Sequence[memoryview],
        *,
        wait_s: float = WAIT_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.compactor = Compactor(layer)
        self.progress = Progress(clock_s, wait_s)
        self._layer = layer
        self._packer = Packer()
        self._clock_s = clock_s
        self._below: Below | None = None
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[_Write | str] = queue.SimpleQueue()
        self._looking = False
        self._look_at_s = 0.0
        for view in views:
            self._free.put(view)

    def add_below(self, below: Below) -> None:
        """Write to *below* too, before the thread runs."""
        self._below = below

    def kick_if_needed(self) -> None:
        """Have the thread look at the pool if free zspages are short; cheap."""
        if self.compactor.is_low() and not self._looking and self._clock_s() >= self._look_at_s:
            self._looking = True
            self._jobs.put("look")

    def submit(
        self, ticket: Answerable, size: int, slot: int, pages: memoryview, count: int
    ) -> None:
        """Store *count* pages from *slot* on and then answer *ticket* with *size*, or ENOSPC.

        *pages* may be reused when this returns.
        """
        request = ticket if isinstance(ticket, DeferredWrite) else DeferredWrite(ticket, size)
        buffer = self.progress.take(self._free)
        if buffer is None:
            self._refuse(request)
            return
        length = count << PAGE_SHIFT
        buffer[:length] = pages[:length]
        self.progress.begin()
        self._jobs.put(_Write(request, slot, buffer, count))

    def make_room(self, pages: int) -> bool:
        """Compact in the caller's thread, which may wait; see ``Compactor.make_room``."""
        return self.compactor.make_room(pages)

    def _refuse(self, request: DeferredWrite) -> None:
        with self._layer.lock:
            self._layer.counters.add("failed_write_no_room")
        request.part_done(ENOSPC)

    # ---- the thread ----

    def run(self) -> None:
        """Serve until ``stop``, and then what was submitted before it."""
        while (job := self._jobs.get()) != "stop":
            if isinstance(job, _Write):
                self._serve(job)
            else:
                self._look()

    def stop(self) -> None:
        """Let ``run`` return."""
        self._jobs.put("stop")

    def _look(self) -> None:
        try:
            self.compactor.compact_if_low()
        except Exception:  # the thread must outlive a bug
            log.exception("compaction failed")
            with self._layer.lock:
                self._layer.counters.add("handler_errors")
        self._look_at_s = self._clock_s() + LOOK_EVERY_S
        self._looking = False

    def _serve(self, write: _Write) -> None:
        try:
            stored = self._store(write)
        except OverQuota:  # which is counted
            write.request.part_done(ENOSPC)
        except Exception:  # answer the request whatever happens
            log.exception("a write that waited for room failed")
            with self._layer.lock:
                self._layer.counters.add("handler_errors")
            write.request.part_done(EIO)
        else:
            if stored:
                write.request.part_done(0)
            else:
                self._refuse(write.request)
        finally:
            self._free.put(write.buffer)
            self.progress.end()

    def _store(self, write: _Write) -> bool:
        """Store all of *write*, or hand it on; False: there is no room for the rest of it.

        :raises OverQuota: or its export may have no more
        """
        below, done, look = self._below, 0, True
        while done < write.count:
            mark = below.mark() if below is not None else None
            step = min(STORE_STEP, write.count - done)
            stored = self._layer.store_run(
                write.slot + done, write.buffer, done << PAGE_SHIFT, step, self._packer
            )
            done += stored
            # Room that was seen and then not used is none if a page of the table needs it too;
            # else another write has taken it, and what is there now is room as well.
            look = look or stored > 0 or self._layer.has_table(write.slot + done)
            if stored < step and not self.compactor.make_room(write.count - done, look=look):
                if below is None or mark is None:
                    return False
                rest = write.buffer[done << PAGE_SHIFT :]
                handed = below.write_some(
                    write.request, write.slot + done, rest, write.count - done
                )
                if not handed and not below.wait_for_room(mark, write.slot + done):
                    return False
                done += handed
                look = True
            elif stored < step:
                look = False
            self.progress.step()
        return True

"""Writes that nobody had room for: once more, after compaction.

A write that found the pool full, and no file tier with room either, is refused only if moving
blobs together makes no room (I6). A thread of its own does that, since it must not wait for a
disk; it also compacts before any write has to wait. The request's buffer is needed for the next
request, so what is left of the write is copied to one of a few buffers reserved at start; when
none comes free in time, the write is refused, and the next ones that find none are at once,
until a write is stored again: the session loop is held up once.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EIO, ENOSPC
from typing import Final

from swapfs.units import PAGE_SHIFT
from swapfs.vlayer.compaction import Compactor
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.packing import STORE_STEP, Packer
from swapfs.vlayer.write_around import Answerable

log = logging.getLogger(__name__)

WAIT_S: Final = 5.0
"""The most that one write waits: for a buffer, and for room."""
LOOK_EVERY_S: Final = 0.1
"""The pause after a look at a short pool, so that a full one costs no look per write."""


@dataclass(frozen=True, slots=True)
class _Write:
    ticket: Answerable
    size: int
    slot: int
    buffer: memoryview
    count: int


class StalledWrites:
    """Compacts the pool of *layer*, and stores what waits for that.

    :param views: as long as the longest request each: the writes that may wait at once
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
        self._layer = layer
        self._packer = Packer()
        self._wait_s = wait_s
        self._clock_s = clock_s
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[_Write | str] = queue.SimpleQueue()
        self._looking = False
        self._look_at_s = 0.0
        self._gave_up = False
        for view in views:
            self._free.put(view)

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
        try:
            buffer = self._free.get(timeout=self._patience_s())
        except queue.Empty:
            self._gave_up = True
            self._refuse(ticket)
            return
        length = count << PAGE_SHIFT
        buffer[:length] = pages[:length]
        self._jobs.put(_Write(ticket, size, slot, buffer, count))

    def make_room(self, pages: int) -> bool:
        """Compact in the caller's thread, which may wait; see ``Compactor.make_room``."""
        return self.compactor.make_room(pages)

    def _patience_s(self) -> float:
        return 0.0 if self._gave_up else self._wait_s

    def _refuse(self, ticket: Answerable) -> None:
        with self._layer.lock:
            self._layer.counters.add("failed_write_no_room")
        ticket.reply(-ENOSPC)

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
        except Exception:  # answer the request whatever happens
            log.exception("a write that waited for compaction failed")
            with self._layer.lock:
                self._layer.counters.add("handler_errors")
            write.ticket.reply(-EIO)
        else:
            if stored:
                self._gave_up = False
                write.ticket.reply(write.size)
            else:
                self._refuse(write.ticket)
        finally:
            self._free.put(write.buffer)

    def _store(self, write: _Write) -> bool:
        deadline_s = self._clock_s() + self._wait_s
        done, look = 0, True
        while True:
            step = min(STORE_STEP, write.count - done)
            stored = self._layer.store_run(
                write.slot + done, write.buffer, done << PAGE_SHIFT, step, self._packer
            )
            done += stored
            if done == write.count:
                return True
            if stored == step:
                continue
            # Room that was seen and then not used is none: a page of the table may need it too.
            look = look or stored > 0
            if not self._make_room(write.count - done, deadline_s, look=look):
                return False
            look = False

    def _make_room(self, pages: int, deadline_s: float, *, look: bool) -> bool:
        if self._clock_s() >= deadline_s:
            self._gave_up = True  # or each write waits for the buffer that one like this had
            return False
        return self.compactor.make_room(pages, look=look)

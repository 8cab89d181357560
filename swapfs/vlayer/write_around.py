"""Writes that found the pool full and go straight to the lower tier.

The session thread packs the pages into one of a few reserved batches, because the request's
buffer is needed for the next request; a thread writes the batches and answers the request when
its last page is down. A slot shows its old page until then, which a reader that races with the
write may see anyway. When no batch comes free in time, or no room by cleaning, the disk is
stuck: from then on writes wait for neither until a write to it goes well, by whomever, so that
reads of what is in memory never wait for it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import EAGAIN, EIO, ENOSPC
from typing import Final, Protocol

from swapfs.errors import TierFull
from swapfs.tiers.base import Extent, LowerTier
from swapfs.tiers.blob import Batch, BatchItem
from swapfs.units import PAGE_SHIFT, PAGE_SIZE
from swapfs.vlayer.blob_writer import BATCH_BYTES, BATCH_SECTORS
from swapfs.vlayer.codec import compress
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.writeback import Writeback

log = logging.getLogger(__name__)

WAIT_FOR_BATCH_S: Final = 5.0


class Answerable(Protocol):
    """The one who waits for a deferred write."""

    def reply(self, result: int, /) -> None:
        """Take bytes written, or a negative errno value."""

    def used_file(self) -> None:
        """Hear that the answer waits for the file tier."""


class Overflow(Protocol):
    """Takes writes that found the pool full."""

    def submit(
        self, ticket: Answerable, size: int, slot: int, pages: memoryview, count: int, /
    ) -> None:
        """Store *count* pages from *slot* on, then answer *ticket* with *size* or -errno.

        *pages* may be reused when this returns.
        """


class MakesRoom(Overflow, Protocol):
    """Takes writes that find no room below either, and makes room in the pool."""

    def make_room(self, pages: int, /) -> bool:
        """Move blobs together for *pages* pages; False if that gains nothing."""


@dataclass(slots=True)
class _Request:
    """One deferred write; ``parts`` counts the batches that are not down yet, plus the packer.

    ``still``: asked under the layer's lock whether a page may be published.
    """

    ticket: Answerable
    size: int
    still: Callable[[], bool] = lambda: True
    parts: int = 1
    error: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, result: int, /) -> None:
        """Take the answer of the second try, as that of one more part."""
        self.part_done(-result if result < 0 else 0)

    def used_file(self) -> None:
        """Hear the same from the second try."""
        self.ticket.used_file()

    def part_done(self, error: int) -> None:
        with self.lock:
            self.parts -= 1
            self.error = self.error or error
            last = self.parts == 0
        if last:
            self.ticket.reply(-self.error if self.error else self.size)


@dataclass(slots=True)
class _Part:
    request: _Request
    extent: Extent
    batch: Batch
    stale: bool = False


class WriteAround:
    """Packs and writes pages past the pool.

    :param views: page aligned, BATCH_BYTES each: the batches that may be under way at once
    :param second: takes the writes that find no room here either; None: they are refused
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        tier: LowerTier,
        writeback: Writeback,
        views: Sequence[memoryview],
        *,
        second: MakesRoom | None = None,
        wait_s: float = WAIT_FOR_BATCH_S,
    ) -> None:
        self._second = second
        self._layer = layer
        self._tier = tier
        self._writeback = writeback
        self._writer = writeback.writer
        self._free: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self._packed: queue.SimpleQueue[_Part | None] = queue.SimpleQueue()
        self._wait_s = wait_s
        for view in views:
            self._free.put(Batch(view[:BATCH_BYTES], tier.seal))

    def submit(
        self, ticket: Answerable, size: int, slot: int, pages: memoryview, count: int
    ) -> None:
        """Write *count* pages from *slot* on and then answer *ticket* with *size*.

        *pages* may be reused when this returns. The ticket is answered ENOSPC when there is no
        room below either, nor at the second try, EIO when the disk failed; every page stored
        before stays as it was.
        """
        request = _Request(ticket, size)
        error = self._try(request, slot, pages, count)
        if error == ENOSPC and self._second is not None:
            # All of it: what was packed already is stored twice, with the same bytes.
            self._second.submit(request, size, slot, pages, count)
            return
        if error:
            with self._layer.lock:
                self._layer.counters.add(
                    "failed_write_no_room" if error == ENOSPC else "handler_errors"
                )
        request.part_done(error)

    def submit_if(
        self, ticket: Answerable, slot: int, page: memoryview, still: Callable[[], bool]
    ) -> None:
        """Write one page, unless *still* says no under the layer's lock when it is published.

        The ticket is answered as by ``submit``, but EAGAIN if *still* said no, and ENOSPC, which
        is not counted, without a second try: who asks can make room, and then look again.
        """
        request = _Request(ticket, PAGE_SIZE, still)
        request.part_done(self._try(request, slot, page, 1))

    def _try(self, request: _Request, slot: int, pages: memoryview, count: int) -> int:
        """Pack pages; 0 when all wait to be written, else an errno value."""
        try:
            if not self._writer.may_write():
                return ENOSPC
            self._pack(request, slot, pages, count)
        except TierFull:
            return ENOSPC
        except Exception:  # the ticket is answered once, whatever happens
            log.exception("direct write failed")
            return EIO
        return 0

    def _pack(self, request: _Request, slot: int, pages: memoryview, count: int) -> None:
        part: _Part | None = None
        try:
            for index in range(count):
                page = pages[index << PAGE_SHIFT : (index << PAGE_SHIFT) + PAGE_SIZE]
                blob, codec = compress(page)
                if part is not None and not part.batch.fits(len(blob)):
                    self._hand_over(part)
                    part = None
                if part is None:
                    part = self._new_part(request)
                self._writer.add(part.batch, slot + index, blob, codec)
        except BaseException:
            if part is not None:
                self._tier.release(part.extent.sector, part.extent.sectors)
                self._free.put(part.batch)
            raise
        if part is not None:
            self._hand_over(part)

    def _new_part(self, request: _Request) -> _Part:
        batch = self._take_batch()
        try:
            extent = self._allocate()
        except BaseException:
            self._free.put(batch)
            raise
        batch.reset(extent.sectors)
        return _Part(request, extent, batch)

    def _allocate(self) -> Extent:
        """Allocate for one batch; when there is room but in crumbs, after cleaning."""
        try:
            return self._tier.allocate(BATCH_SECTORS)
        except TierFull:
            self._writer.health.full = True
            if not self._tier.segments_to_clean():
                raise
            if not self._writeback.wait_for_cleaning(self._patience_s()):
                self._writer.health.gave_up = True
                raise
        return self._tier.allocate(BATCH_SECTORS)

    def _take_batch(self) -> Batch:
        try:
            return self._free.get(timeout=self._patience_s())
        except queue.Empty:
            self._writer.health.gave_up = True
            raise TierFull("the file tier does not answer") from None

    def _patience_s(self) -> float:
        return 0.0 if self._writer.health.gave_up else self._wait_s

    def _hand_over(self, part: _Part) -> None:
        part.request.ticket.used_file()
        with part.request.lock:
            part.request.parts += 1
        self._packed.put(part)

    # ---- the writing thread ----

    def run(self) -> None:
        """Write packed batches until ``stop``."""
        while (part := self._packed.get()) is not None:
            error = EIO
            try:
                error = self._write(part)
            except Exception:  # answer the request whatever happens
                log.exception("direct write failed")
            finally:
                self._free.put(part.batch)
                part.request.part_done(error)

    def stop(self) -> None:
        """Let ``run`` return after what is packed."""
        self._packed.put(None)

    def _write(self, part: _Part) -> int:
        layer = self._layer
        if not self._writer.write(part.extent, part.batch):
            with layer.lock:
                layer.counters.add("failed_write_io")
            return EIO
        error = 0
        deadline_s = time.monotonic() + self._wait_s
        late = self._publish(part, part.batch.items)
        while late and self._make_table_room(deadline_s):
            late = self._publish(part, late)
        if late:
            error = ENOSPC
            with layer.lock:
                layer.counters.add("failed_write_no_room", len(late))
                for item in late:
                    self._writer.release(part.extent, item)
        return EAGAIN if part.stale else error

    def _publish(self, part: _Part, items: list[BatchItem]) -> list[BatchItem]:
        """Publish *items*; return those whose cluster found no page for its words."""
        late, lock = [], self._layer.lock
        with lock:
            for item in items:
                lock.resched()
                if not part.request.still():
                    self._writer.release(part.extent, item)
                    part.stale = True
                    continue
                try:
                    self._writer.publish(part.extent, item, "write_direct")
                    self._layer.counters.add("write_direct_pages")
                except TierFull:
                    late.append(item)
        return late

    def _make_table_room(self, deadline_s: float) -> bool:
        """Have blobs moved together, or else down; False: neither gains, or time is up.

        Only an overcommitted file needs it: the pool keeps room for the tables of others.
        """
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return False
        if self._second is not None and self._second.make_room(1):
            return True
        return self._writeback.wait_for_demotion(left_s)

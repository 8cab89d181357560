"""Writes that found the pool full and go straight to a tier below.

The session thread packs the pages into one of a few reserved batches, because the request's
buffer is needed for the next request; a thread writes the batches and answers the request when
its last page is down. A slot shows its old page until then, which a reader that races with the
write may see anyway. The session thread waits for a batch only, and only while the disk gets on
(``progress``), so that reads of what is in memory do not wait for a stuck one; room is waited for
by the stalled writes (``stalled``).
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EAGAIN, EIO, ENOSPC

from swapfs.errors import OverQuota, TierFull
from swapfs.tiers.base import Room, Staged, Staging
from swapfs.units import PAGE_SHIFT, PAGE_SIZE
from swapfs.vlayer.blob_writer import BATCH_BYTES, BATCH_PAGES, BlobWriter
from swapfs.vlayer.codec import compress
from swapfs.vlayer.deferred import Answerable, DeferredWrite
from swapfs.vlayer.deferred import Overflow as Overflow
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.progress import Mark
from swapfs.vlayer.stack import Level
from swapfs.vlayer.stalled import StalledWrites
from swapfs.vlayer.writeback import Writeback

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Part:
    request: DeferredWrite
    level: Level
    room: Room
    staging: Staging
    stale: bool = False
    over_quota: bool = False


_Placed = tuple[Staged, int]
"""A blob, and the reference that it has now."""


def _make_others_go(writeback: Writeback, wait_s: float) -> bool:
    """Have pages go down that may use tiers which another may not; False: none does."""
    moved: queue.SimpleQueue[int] = queue.SimpleQueue()
    writeback.request(BATCH_PAGES, moved.put)
    try:
        return moved.get(timeout=wait_s) > 0
    except queue.Empty:
        return False


def _recompress(writer: BlobWriter, part: _Part) -> bool:
    """Make *part* smaller, if that is wanted; False: a page was damaged, and none is written.

    Its room is given back then: the kernel must not take the page for written.
    """
    damaged = 1
    try:
        damaged = writer.recompress(part.staging)
    finally:
        if damaged:
            writer.cancel(part.level, part.room)
    return not damaged


class WriteAround:
    """Packs and writes pages past the pool.

    :param views: BATCH_BYTES each: the batches that may be under way at once
    :param stalled: takes the writes that find no room here, and may come back with them
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        writeback: Writeback,
        views: Sequence[memoryview],
        *,
        stalled: StalledWrites,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stalled = stalled
        self._layer = layer
        self._writeback = writeback
        self._writer = writeback.writer
        self._exports = layer.exports
        self._progress = writeback.writer.progress
        self._clock_s = clock_s
        self._free: queue.SimpleQueue[Staging] = queue.SimpleQueue()
        self._packed: queue.SimpleQueue[_Part | None] = queue.SimpleQueue()
        self.add_batches(views)
        stalled.add_below(self)

    def add_batches(self, views: Sequence[memoryview]) -> None:
        """Have more batches under way at once."""
        for view in views:
            self._free.put(Staging(view[:BATCH_BYTES]))

    def submit(
        self, ticket: Answerable, size: int, slot: int, pages: memoryview, count: int
    ) -> None:
        """Write *count* pages from *slot* on and then answer *ticket* with *size*.

        *pages* may be reused when this returns. The ticket is answered ENOSPC when no
        room is found for a stalled write either, EIO when the disk failed; every page stored
        before stays as it was.
        """
        request = DeferredWrite(ticket, size)
        try:
            done = self._pack(request, slot, pages, count, self._wait_for_batch)
        except Exception:  # the ticket is answered once, whatever happens
            log.exception("direct write failed")
            with self._layer.lock:
                self._layer.counters.add("handler_errors")
            request.part_done(EIO)
            return
        if done < count:
            rest = pages[done << PAGE_SHIFT : count << PAGE_SHIFT]
            self._stalled.submit(request, size, slot + done, rest, count - done)
        else:
            request.part_done(0)

    def submit_if(
        self, ticket: Answerable, slot: int, page: memoryview, still: Callable[[], bool]
    ) -> bool:
        """Write one page, unless *still* says no under the layer's lock when it is published.

        False: there is no room now; see ``wait_for_room``. Else the ticket is answered as by
        ``submit``, but EAGAIN if *still* said no.
        """
        request = DeferredWrite(ticket, PAGE_SIZE, still)
        error = 0
        try:
            if not self._pack(request, slot, page, 1, self._wait_for_batch):
                return False
        except Exception:
            log.exception("direct write failed")
            error = EIO
        request.part_done(error)
        return True

    # ---- for those who can wait for room ----

    def mark(self) -> Mark:
        """Return what is under way, before a look for room."""
        return self._progress.mark()

    def write_some(self, request: DeferredWrite, slot: int, pages: memoryview, count: int) -> int:
        """Have the first of *count* pages written as parts of *request*; return how many."""
        return self._pack(request, slot, pages, count, self._batch_now)

    def wait_for_room(self, mark: Mark, slot: int) -> bool:
        """Wait for something that may have made room since *mark*, when a look for some began.

        False: the write to *slot* is to be refused (I6). The look found the pool full, and tiers
        that its export may use with nothing under way that have no room even if they are cleaned;
        or the disks fail, or do not answer. And what others have in the pool cannot go down.
        """
        levels = self._exports.levels_at(slot)
        return self._wait_for_levels(mark, levels) or (
            len(levels) < len(self._layer.stack)
            and _make_others_go(self._writeback, self._progress.wait_s)
        )

    def _wait_for_levels(self, mark: Mark, levels: Sequence[Level]) -> bool:
        progress = self._progress
        if not self._writer.may_write(levels, urgent=True):
            return False
        now_s = self._clock_s()
        has_room = any(
            level.may_take(now_s, urgent=True) and level.tier.has_room() for level in levels
        )
        if not progress.quiet_since(mark):  # asked last: cleaning hides what it is about to make
            return progress.wait(mark)
        # What lies below can only have become less since the look at the pool, as nothing was
        # under way. So if it was full just now, all were full at the same time.
        if not has_room:
            return False
        mark = progress.mark()
        return self._writeback.want_round() and progress.wait(mark)

    # ---- packing ----

    def _pack(
        self,
        request: DeferredWrite,
        slot: int,
        pages: memoryview,
        count: int,
        take_batch: Callable[[], Staging | None],
    ) -> int:
        """Pack pages and hand them over; return how many found a batch and room."""
        done, levels = 0, self._exports.levels_at(slot)
        while done < count and self._writer.may_write(levels, urgent=True):
            staging = take_batch()
            if staging is None:
                break
            try:
                level, room = self._writer.reserve_first(
                    min(count - done, BATCH_PAGES), levels, urgent=True
                )
            except BaseException as error:
                self._free.put(staging)
                if isinstance(error, TierFull):
                    break
                raise
            part = _Part(request, level, room, staging)
            done += self._fill(part, slot + done, pages, done, count)
        return done

    def _fill(self, part: _Part, slot: int, pages: memoryview, first: int, count: int) -> int:
        """Pack pages from number *first* on, for *slot* on, as many as fit; hand the part over."""
        staging = part.staging
        staging.reset(part.room)
        try:
            for index in range(first, count):
                page = pages[index << PAGE_SHIFT : (index << PAGE_SHIFT) + PAGE_SIZE]
                blob, codec = compress(page)
                if not staging.fits(len(blob)):
                    break
                self._writer.add(staging, slot + index - first, blob, codec)
        except BaseException:
            self._writer.cancel(part.level, part.room)
            self._free.put(staging)
            raise
        packed = len(staging.items)  # the writing thread may use it again at once
        part.request.ticket.used_file()
        part.request.add_part()
        self._packed.put(part)
        return packed

    def _wait_for_batch(self) -> Staging | None:
        return self._progress.take(self._free)

    def _batch_now(self) -> Staging | None:
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return None

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
                self._free.put(part.staging)
                part.request.part_done(error)

    def stop(self) -> None:
        """Let ``run`` return after what is packed."""
        self._packed.put(None)

    def _write(self, part: _Part) -> int:
        """Write and publish *part*; return an errno value, 0 if all went well."""
        if _recompress(self._writer, part):
            try:
                refs = self._writer.store(part.level, part.room, part.staging)
                if refs is not None:
                    return self._publish_all(part, refs)
            finally:
                self._writer.settle(part.level, part.room)
        with self._layer.lock:
            self._layer.counters.add("failed_write_io")
        return EIO

    def _publish_all(self, part: _Part, refs: list[int]) -> int:
        deadline_s = self._clock_s() + self._progress.wait_s
        late = _publish(
            *(self._layer, self._writer, part), list(zip(part.staging.items, refs, strict=True))
        )
        try:
            while late and self._make_table_room(deadline_s):
                again, late = late, []
                late = _publish(self._layer, self._writer, part, again)
        finally:
            with self._layer.lock:
                self._layer.counters.add("failed_write_no_room", len(late))
                for item, ref in late:
                    part.level.tier.release(item.slot, ref)
        if part.stale:
            return EAGAIN
        return ENOSPC if late or part.over_quota else 0

    def _make_table_room(self, deadline_s: float) -> bool:
        """Have blobs moved together, or else down; False: neither gains, or time is up.

        Only an overcommitted file needs it: the pool keeps room for the tables of others.
        """
        left_s = deadline_s - self._clock_s()
        if left_s <= 0:
            return False
        if self._stalled.make_room(1):
            return True
        return self._writeback.wait_for_demotion(left_s)


def _publish(
    layer: VirtualSlotLayer, writer: BlobWriter, part: _Part, items: list[_Placed]
) -> list[_Placed]:
    """Publish *items* of *part*; return those whose cluster found no page for its words."""
    late: list[_Placed] = []
    lock = layer.lock
    with lock:
        for number, (item, ref) in enumerate(items):
            lock.resched()
            try:
                if part.request.still():
                    _require_quota(layer, part.level, item.slot, ref)
                    writer.publish(part.level, item, ref, "write_direct")
                    layer.counters.add("write_direct_pages")
                else:
                    part.level.tier.release(item.slot, ref)
                    part.stale = True
            except TierFull:
                late.append((item, ref))
            except OverQuota:
                part.level.tier.release(item.slot, ref)
                part.over_quota = True
            except BaseException:  # a bug, or no memory
                rest = items[number:] + late
                writer.give_back(part.level, [i for i, _ in rest], [r for _, r in rest])
                raise
    return late


def _require_quota(layer: VirtualSlotLayer, level: Level, slot: int, ref: int) -> None:
    """Refuse what is written to *slot* if its export may have no more; moves are not asked."""
    taken_bytes = level.tier.taken_bytes(ref) + layer.table.missing_bytes(slot)
    layer.exports.require(slot, layer.table.get(slot), taken_bytes)

"""Reads, writes and discards of the swap file: from bytes to slots, from errors to errno.

The session loop calls the three handlers of ``SwapFile``, one at a time; what one raises ends
its request with EIO, and nothing else. Whole pages in memory
are served on the spot. What needs a disk, or would keep the loop busy for long, is deferred to
a worker and answered later. No policy: that is in ``vlayer``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from errno import EFBIG, EINVAL, EIO, ENOSPC, EOPNOTSUPP
from typing import Final

from swapfs.errors import TierError
from swapfs.region.counters import COUNTER_INDEX
from swapfs.server.workers import Buffers, Workers
from swapfs.session import Request, Ticket
from swapfs.units import PAGE_SHIFT, PAGE_SIZE
from swapfs.vlayer.fetch import Fetcher
from swapfs.vlayer.layer import SlotDamaged, VirtualSlotLayer
from swapfs.vlayer.packing import STORE_STEP, Packer
from swapfs.vlayer.write_around import Overflow

log = logging.getLogger(__name__)

FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10
_DISCARDS: Final = frozenset(
    {
        FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
        FALLOC_PUNCH_HOLE,
        FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
        FALLOC_ZERO_RANGE,
    }
)

_OFFSET_MASK: Final = PAGE_SIZE - 1
_INLINE_DISCARD_SLOTS: Final = 2048
"""Longer ones leave the session thread; the kernel discards by clusters of 512."""
_INLINE_PATCH_S: Final = 20e-6
_ZEROS: Final = bytes(PAGE_SIZE)
_READ_BYTES: Final = COUNTER_INDEX["read_bytes"]
_WRITTEN_BYTES: Final = COUNTER_INDEX["written_bytes"]


class _Answer:
    """Waits for a direct write that a worker submitted on behalf of its request."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._result = -EIO

    def reply(self, result: int, /) -> None:
        self._result = result
        self._done.set()

    def wait(self) -> int:
        self._done.wait()
        return self._result


class SwapFile:
    """The file that the kernel swaps on.

    :param request: the session's request payload, read only
    :param reply: the session's reply payload
    :param workers: run what is deferred
    :param fetcher: reads the file tier; None when there is none
    :param overflow: takes the writes that find the pool full; None: they are refused
    :param stored: called after every write, to let others look at the pool
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        size_bytes: int,
        request: memoryview,
        reply: memoryview,
        workers: Workers,
        *,
        fetcher: Fetcher | None = None,
        overflow: Overflow | None = None,
        stored: Callable[[], None] = lambda: None,
    ) -> None:
        self._layer = layer
        self._size = size_bytes
        self._request = request
        self._reply = reply
        self._workers = workers
        self._fetcher = fetcher
        self._overflow = overflow
        self._stored = stored
        self._counter_words = layer.counters.words
        self._pages = bytearray(len(reply) + 2 * PAGE_SIZE)
        self._page = bytearray(PAGE_SIZE)
        self._packer = Packer()
        self._slow_patch = threading.Lock()
        self._patching_inline = False

    def on_failure(self, what: str, error: BaseException) -> None:
        """Count and log why a request ends in EIO; what the file tier cannot read, was already."""
        if isinstance(error, TierError):
            return
        damaged = isinstance(error, SlotDamaged)
        with self._layer.lock:
            self._layer.counters.add("failed_read_checksum" if damaged else "handler_errors")
        if damaged:
            log.error("%s: %s", what, error)
        else:
            log.error("%s failed", what, exc_info=error)

    # ---- read ----

    def read(self, request: Request, offset: int, size: int) -> int | None:
        """Answer a read into the reply buffer; returns bytes, -errno, or None if deferred."""
        size = min(size, self._size - offset)
        if size <= 0:
            return 0
        slot = offset >> PAGE_SHIFT
        lead = offset & _OFFSET_MASK
        count = (lead + size + _OFFSET_MASK) >> PAGE_SHIFT
        aligned = not (lead or size & _OFFSET_MASK)
        self._counter_words[_READ_BYTES] += size
        out = self._reply if aligned else memoryview(self._pages)
        below = self._fetcher is not None
        good = self._layer.load_run(slot, count, out, 0, whole=below)
        if good < count:
            if below:
                ticket = request.defer()
                self._workers.submit(
                    lambda buffers: self._read_later(ticket, offset, size, buffers)
                )
                return None
            # Short: the kernel asks again from the slot that is damaged.
            size = min(size, (good << PAGE_SHIFT) - lead)
        if not aligned:
            self._layer.counters.add("partial_requests")
            self._reply[:size] = out[lead : lead + size]
        return size

    def _read_later(self, ticket: Ticket, offset: int, size: int, buffers: Buffers) -> None:
        slot, lead = offset >> PAGE_SHIFT, offset & _OFFSET_MASK
        count = (lead + size + _OFFSET_MASK) >> PAGE_SHIFT
        assert self._fetcher is not None, "a slot in the file tier, and no file tier"
        try:
            good = self._fetcher.load(slot, count, buffers.pages, buffers.scratch)
        except (TierError, SlotDamaged) as error:
            self.on_failure("read", error)
            ticket.reply(-EIO)
            return
        # A short answer makes the kernel ask again from the slot that failed.
        end = min(lead + size, good << PAGE_SHIFT)
        if end <= lead:
            ticket.reply(-EIO)
        else:
            ticket.reply_data(buffers.pages[lead:end])

    # ---- write ----

    def write(self, request: Request, offset: int, size: int) -> int | None:
        """Take a write from the request buffer; returns bytes, -errno, or None if deferred."""
        if offset >= self._size:
            return -EFBIG
        size = min(size, self._size - offset)
        self._counter_words[_WRITTEN_BYTES] += size
        if offset & _OFFSET_MASK or size & _OFFSET_MASK:
            return self._write_parts(request, offset, size)
        slot, count = offset >> PAGE_SHIFT, size >> PAGE_SHIFT
        done = self._store(slot, self._request, 0, count)
        self._stored()
        if done == count:
            return size
        with self._layer.lock:
            self._layer.counters.add("pool_full")
        if self._overflow is None:
            return self._no_room()
        rest = self._request[done << PAGE_SHIFT : count << PAGE_SHIFT]
        self._overflow.submit(request.defer(), size, slot + done, rest, count - done)
        return None

    def _store(self, slot: int, pages: memoryview, position: int, count: int) -> int:
        done = 0
        while done < count:
            step = min(STORE_STEP, count - done)
            stored = self._layer.store_run(
                slot + done, pages, position + (done << PAGE_SHIFT), step, self._packer
            )
            done += stored
            if stored < step:
                break
        return done

    def _no_room(self) -> int:
        with self._layer.lock:
            self._layer.counters.add("failed_write_no_room")
        return -ENOSPC

    def _write_parts(self, request: Request, offset: int, size: int) -> int | None:
        """Write a range that does not begin or end on a page; mkswap and blkid do."""
        self._layer.counters.add("partial_requests")
        data = self._request[:size]
        if self._patch_range(offset, data, self._page, None):
            self._stored()
            return size
        ticket, copy = request.defer(), bytes(data)
        self._workers.submit(lambda buffers: self._write_later(ticket, offset, copy, buffers))
        return None

    def _write_later(self, ticket: Ticket, offset: int, data: bytes, buffers: Buffers) -> None:
        try:
            done = self._patch_range(offset, memoryview(data), buffers.page, buffers)
        except (TierError, SlotDamaged) as error:
            self.on_failure("write", error)
            ticket.reply(-EIO)
            return
        ticket.reply(len(data) if done else self._no_room())

    def _patch_range(
        self, offset: int, data: memoryview, page: bytearray, buffers: Buffers | None
    ) -> bool:
        """Write *data* slot by slot; False when it cannot be done here or there is no room.

        Without *buffers*, in the session thread, a slot in the file tier or a full pool ends
        it; all of it is then done again by a worker, which has buffers and may wait.

        A worker reads a page, changes part of it and may publish it much later, so what others
        write to the rest of that page meanwhile would be lost. Hence one worker at a time, and
        none in the session thread until it is done: those are deferred too and queue here.
        """
        if buffers is None:
            self._patching_inline = True
            try:
                busy = self._slow_patch.locked()
                return not busy and self._patch_slots(offset, data, page, None)
            finally:
                self._patching_inline = False
        with self._slow_patch:
            while self._patching_inline:  # it looked just before we locked; never waits itself
                time.sleep(_INLINE_PATCH_S)
            return self._patch_slots(offset, data, page, buffers)

    def _patch_slots(
        self, offset: int, data: memoryview, page: bytearray, buffers: Buffers | None
    ) -> bool:
        done = 0
        while done < len(data):
            slot, start = (offset + done) >> PAGE_SHIFT, (offset + done) & _OFFSET_MASK
            piece = data[done : done + PAGE_SIZE - start]
            outcome = self._layer.patch(slot, start, piece, page)
            if not outcome and (
                buffers is None or not self._patch_below(slot, start, piece, buffers)
            ):
                return False
            done += len(piece)
        return True

    def _patch_below(self, slot: int, start: int, piece: memoryview, buffers: Buffers) -> bool:
        """Patch one page that is in the file tier, or that must go there."""
        fetcher = self._fetcher
        if fetcher is None:
            return self._put_elsewhere(slot, memoryview(buffers.page))
        while True:
            word = fetcher.file_word(slot)
            fetcher.load(slot, 1, buffers.pages, buffers.scratch)
            buffers.pages[start : start + len(piece)] = piece
            page = buffers.pages[:PAGE_SIZE]
            done = self._layer.replace_file_page(slot, word, page) if word else None
            if done is None:  # it has moved
                done = self._layer.patch(slot, start, piece, buffers.page)
            if done:
                return True
            if done is False:
                return self._put_elsewhere(slot, page)

    def _put_elsewhere(self, slot: int, page: memoryview) -> bool:
        """Have *page* stored though the pool is full; waits. False: there is no room."""
        if self._overflow is None:
            return False
        answer = _Answer()
        self._overflow.submit(answer, PAGE_SIZE, slot, page, 1)
        return answer.wait() > 0

    # ---- discard ----

    def fallocate(self, request: Request, mode: int, offset: int, length: int) -> int | None:
        """Free the whole slots of a range and zero the rest; 0, -errno, or None if deferred."""
        if mode not in _DISCARDS:
            return -EOPNOTSUPP
        if offset >= self._size:
            return -EINVAL
        end = min(offset + length, self._size)
        with self._layer.lock:
            self._layer.counters.add("discard_requests")
        inline = end - offset <= _INLINE_DISCARD_SLOTS << PAGE_SHIFT
        if inline and self._discard(offset, end, self._page, None):
            return 0
        ticket = request.defer()
        self._workers.submit(lambda buffers: self._discard_later(ticket, offset, end, buffers))
        return None

    def _discard_later(self, ticket: Ticket, offset: int, end: int, buffers: Buffers) -> None:
        try:
            done = self._discard(offset, end, buffers.page, buffers)
        except (TierError, SlotDamaged) as error:
            self.on_failure("discard", error)
            ticket.reply(-EIO)
            return
        ticket.reply(0 if done else self._no_room())

    def _discard(self, offset: int, end: int, page: bytearray, buffers: Buffers | None) -> bool:
        first, last = -(-offset >> PAGE_SHIFT), end >> PAGE_SHIFT
        if first > last:  # inside one page
            return self._zero(offset, end, page, buffers)
        if first < last:
            background = buffers is not None
            freed = self._layer.discard_run(first, last - first, background=background)
            with self._layer.lock:
                self._layer.counters.add("discarded_pages", freed)
        return self._zero(offset, first << PAGE_SHIFT, page, buffers) and self._zero(
            last << PAGE_SHIFT, end, page, buffers
        )

    def _zero(self, start: int, end: int, page: bytearray, buffers: Buffers | None) -> bool:
        """Zero bytes of at most one page, which is never rounded out to all of it."""
        if start >= end or self._layer.is_empty(start >> PAGE_SHIFT):
            return True
        return self._patch_range(start, memoryview(_ZEROS)[: end - start], page, buffers)

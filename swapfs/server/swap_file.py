"""Reads, writes and discards of the swap files: from bytes to slots, from errors to errno.

The session loop calls the three handlers of ``SwapFile``, one at a time; what one raises ends
its request with EIO, and nothing else. Whole pages in memory
are served on the spot. What needs a disk, or would keep the loop busy for long, is deferred to
a worker and answered later. No policy: that is in ``vlayer``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from errno import EFBIG, EINVAL, EIO, ENOSPC, EOPNOTSUPP
from typing import Final

from swapfs.errors import OverQuota, TierError
from swapfs.policy.base import Place
from swapfs.region.counters import COUNTER_INDEX
from swapfs.server.partial import PartialWrites
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
DISCARDS: Final = frozenset(
    {
        FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
        FALLOC_PUNCH_HOLE,
        FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
        FALLOC_ZERO_RANGE,
    }
)

_OFFSET_MASK: Final = PAGE_SIZE - 1
INLINE_DISCARD_SLOTS: Final = 2048
"""Longer ones leave the session thread; the kernel discards by clusters of 512."""
_ZEROS: Final = bytes(PAGE_SIZE)
_READ_BYTES: Final = COUNTER_INDEX["read_bytes"]
_WRITTEN_BYTES: Final = COUNTER_INDEX["written_bytes"]


class SwapFile:
    """The files that the kernel swaps on, as one space of slots: an offset is one of that.

    :param size_bytes: of the space
    :param reply: the session's reply payload
    :param workers: run what is deferred
    :param partial: takes what is not whole pages
    :param overflow: takes the writes that find the pool full
    :param fetcher: reads the file tier; None when there is none
    :param stored: called after every write, to let others look at the pool
    :param overtake: called while a long write is under way, to let reads in
    :param place: (slot, pages) -> where they go that are written; None: to the pool
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        size_bytes: int,
        reply: memoryview,
        workers: Workers,
        partial: PartialWrites,
        overflow: Overflow,
        *,
        fetcher: Fetcher | None = None,
        stored: Callable[[], None] = lambda: None,
        overtake: Callable[[], None] = lambda: None,
        place: Callable[[int, int], Place] | None = None,
    ) -> None:
        self._layer = layer
        self._size = size_bytes
        self._reply = reply
        self._workers = workers
        self._partial = partial
        self._overflow = overflow
        self._fetcher = fetcher
        self._stored = stored
        self._overtake = overtake
        self._place = place
        self._counter_words = layer.counters.words
        self._pages = bytearray(len(reply) + 2 * PAGE_SIZE)
        self._packer = Packer()

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
        good = self._layer.load_run(slot, count, out, 0, whole=self._fetcher is not None)
        if good < 0:  # some are in the file tier
            ticket = request.defer()
            self._workers.submit(lambda buffers: self._read_late(ticket, offset, size, buffers))
            return None
        # Short if a slot is damaged: the kernel asks again from there.
        size = min(size, (good << PAGE_SHIFT) - lead)
        if not aligned:
            self._layer.counters.add("partial_requests")
            self._reply[:size] = out[lead : lead + size]
        return size

    def _read_late(self, ticket: Ticket, offset: int, size: int, buffers: Buffers) -> None:
        slot, lead = offset >> PAGE_SHIFT, offset & _OFFSET_MASK
        count = (lead + size + _OFFSET_MASK) >> PAGE_SHIFT
        assert self._fetcher is not None, "a slot in the file tier, and no file tier"
        try:
            good = self._fetcher.load(slot, count, buffers.pages, buffers.scratch, ticket.used_file)
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

    def read_late(self, ticket: Ticket, offset: int, size: int, buffers: Buffers) -> None:
        """Answer a read that was begun without Python (``core/disks.c``), and not ended."""
        with self._layer.lock:
            self._counter_words[_READ_BYTES] += size
        self._read_late(ticket, offset, size, buffers)

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
        place = Place.POOL if self._place is None else self._place(slot, count)
        done = 0
        if place is not Place.DOWN:
            self._packer.raw = place is Place.RAW
            try:
                done = self._store(slot, request.payload, count)
            except OverQuota:
                return -ENOSPC
        self._stored()
        if done == count:
            return size
        if place is not Place.DOWN:
            with self._layer.lock:
                self._layer.counters.add("pool_full")
        rest = request.payload[done << PAGE_SHIFT : count << PAGE_SHIFT]
        self._overflow.submit(request.defer(), size, slot + done, rest, count - done)
        return None

    def _store(self, slot: int, pages: memoryview, count: int) -> int:
        done = 0
        while done < count:
            if done:
                self._overtake()
            step = min(STORE_STEP, count - done)
            stored = self._layer.store_run(
                slot + done, pages, done << PAGE_SHIFT, step, self._packer
            )
            done += stored
            if stored < step:
                break
        return done

    def _write_parts(self, request: Request, offset: int, size: int) -> int | None:
        """Write a range that does not begin or end on a page."""
        self._layer.counters.add("partial_requests")
        data = request.payload[:size]
        try:
            done = self._partial.write_now(offset, data)
        except OverQuota:
            return -ENOSPC
        if done:
            self._stored()
            return size
        ticket, copy = request.defer(), memoryview(bytes(data))
        self._workers.submit(lambda buffers: self._write_later(ticket, offset, copy, buffers))
        return None

    def _write_later(self, ticket: Ticket, offset: int, data: memoryview, buffers: Buffers) -> None:
        try:
            result = self._partial.write(offset, data, buffers, ticket.used_file)
        except (TierError, SlotDamaged) as error:
            self.on_failure("write", error)
            result = -EIO
        except OverQuota:  # which is counted
            ticket.reply(-ENOSPC)
            return
        self._stored()
        ticket.reply(self._counted(result) or len(data))

    def _counted(self, result: int) -> int:
        """Count a write that is refused; return *result*."""
        if result == -ENOSPC:
            with self._layer.lock:
                self._layer.counters.add("failed_write_no_room")
        return result

    # ---- discard ----

    def fallocate(self, request: Request, mode: int, offset: int, length: int) -> int | None:
        """Free the whole slots of a range and zero the rest; 0, -errno, or None if deferred."""
        if mode not in DISCARDS:
            return -EOPNOTSUPP
        if offset >= self._size:
            return -EINVAL
        end = min(offset + length, self._size)
        with self._layer.lock:
            self._layer.counters.add("discard_requests")
        try:
            if end - offset <= INLINE_DISCARD_SLOTS << PAGE_SHIFT and self._discard_now(
                offset, end
            ):
                return 0
        except OverQuota:
            return -ENOSPC
        ticket = request.defer()
        self._workers.submit(lambda buffers: self._discard_later(ticket, offset, end, buffers))
        return None

    def _discard_now(self, offset: int, end: int) -> bool:
        """Discard bytes *offset* to *end*; False: some need a worker, which does it all again."""
        self._free_slots(offset, end, background=False)
        return all(
            self._partial.write_now(start, zeros) for start, zeros in self._edges(offset, end)
        )

    def _discard_later(self, ticket: Ticket, offset: int, end: int, buffers: Buffers) -> None:
        result = 0
        try:
            self._free_slots(offset, end, background=True)
            for start, zeros in self._edges(offset, end):
                result = result or self._partial.write(start, zeros, buffers, ticket.used_file)
        except (TierError, SlotDamaged) as error:
            self.on_failure("discard", error)
            result = -EIO
        except OverQuota:
            ticket.reply(-ENOSPC)
            return
        ticket.reply(self._counted(result))

    def _free_slots(self, offset: int, end: int, *, background: bool) -> None:
        """Empty the slots that lie in a range as a whole."""
        first, last = -(-offset >> PAGE_SHIFT), end >> PAGE_SHIFT
        if first < last:
            freed = self._layer.discard_run(first, last - first, background=background)
            with self._layer.lock:
                self._layer.counters.add("discarded_pages", freed)

    def _edges(self, offset: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, zeros) of the parts of pages at both ends; never rounded outwards.

        A page that is empty needs none.
        """
        first, last = -(-offset >> PAGE_SHIFT), end >> PAGE_SHIFT
        edges: tuple[tuple[int, int], ...] = ((offset, end),)  # inside one page
        if first <= last:
            edges = ((offset, first << PAGE_SHIFT), (last << PAGE_SHIFT, end))
        for start, stop in edges:
            if start < stop and not self._layer.is_empty(start >> PAGE_SHIFT):
                yield start, memoryview(_ZEROS)[: stop - start]

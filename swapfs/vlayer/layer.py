"""The virtual slot layer: pages in and out of slots, whatever backs them.

Everything here is synchronous, in memory, and done under ``lock``; nothing waits for a disk.
A slot whose blob lies in the file tier stops a load or a patch, and the caller takes it to
``fetch``; a store that finds the pool full stops too, and the caller takes it to ``writeback``.

Order of every change (I3): the new bytes are in place, then the word is published with one
store, then the old place is freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from swapfs.core._load import Lock, Reader, load
from swapfs.core._rebuild import mark
from swapfs.core._store import publish
from swapfs.errors import TierFull
from swapfs.region.counters import COUNTER_INDEX, COUNTERS, Counters
from swapfs.region.layout import Region
from swapfs.tiers.base import LowerTier
from swapfs.tiers.blob import blob_sectors
from swapfs.tiers.pool import NO_PLACE, Pool
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS, PAGE_SHIFT, PAGE_SIZE
from swapfs.vlayer.entry import (
    FLAGS,
    STATE_OF_KIND,
    TAG_MASK,
    Codec,
    Tag,
    blob_codec,
    blob_length,
    file_sector,
    move_pool,
    pool_place,
)
from swapfs.vlayer.packing import Packer
from swapfs.vlayer.swap_table import SwapTable

if TYPE_CHECKING:
    from typing_extensions import Buffer

_DISCARD_STEP: Final = 64
"""Slots emptied under one hold of the lock by a thread that lets others in."""
_LOOK_UP_MAX: Final = 4096
"""Clusters looked up under one hold of the lock."""
_SLOT_MASK: Final = CLUSTER_SLOTS - 1
_WORD_SHIFT: Final = 3
_POOL, _RAW = int(Tag.POOL), int(Codec.RAW)

_READ_EMPTY = COUNTER_INDEX["read_empty_pages"]
_READ_COUNTS: Final = slice(0, 3)
"""Pages read by tag, EMPTY, SAME, POOL: ``_load.load`` counts in the first three words."""
assert list(COUNTERS[_READ_COUNTS]) == ["read_empty_pages", "read_same_pages", "read_pool_pages"]
_WRITE_SAME = COUNTER_INDEX["write_same_pages"]
_WRITE_COMPRESSED = COUNTER_INDEX["write_compressed_pages"]
_WRITE_RAW = COUNTER_INDEX["write_raw_pages"]
assert (_WRITE_SAME, _WRITE_COMPRESSED, _WRITE_RAW) == (4, 5, 6), "_store.c has them too"


class SlotDamaged(Exception):
    """A slot's bytes in memory are not a page (I4)."""


class VirtualSlotLayer:
    """What the slots of one region hold.

    :param tier: where demoted blobs are released when their slot changes; None: memory only
    """

    def __init__(self, region: Region, tier: LowerTier | None) -> None:
        self.lock = Lock()
        self.pool = Pool(region)
        self.table = SwapTable(region, self.pool)
        self.tier = tier
        self.counters = Counters(region.counter_words)
        self._arena = region.arena
        self._words = region.arena_words
        self._counter_words = region.counter_words
        self.file_payload_bytes = 0
        self._packer = Packer(1)
        self._region = region
        self._books = self._make_books()

    def _make_books(self) -> tuple[Buffer, ...]:
        """Return what ``_store.publish`` keeps up to date, in its order."""
        region, table = self._region, self.table
        return (
            *(region.arena, region.classes, region.counter_words, table.counts, table.occupied),
            *self.pool.books(),
            STATE_OF_KIND,
        )

    def rebuild(self) -> None:
        """Derive every list and count from the region, after another server died (I3)."""
        self.table.rebuild()
        self.pool.begin_rebuild()
        if self.tier is not None:
            self.tier.begin_rebuild()
        self.file_payload_bytes = 0
        marking = self.pool.marking()
        for place in self.table.table_places():
            self.pool.mark(place, PAGE_SIZE, table=True)
            for word in mark(marking, place >> _WORD_SHIFT):
                if self.tier is not None:
                    self.tier.mark(file_sector(word), blob_sectors(blob_length(word)))
                    self.file_payload_bytes += blob_length(word)
        self.pool.finish_rebuild()
        self.table.update_reserve()
        self._books = self._make_books()

    def reader(self, size_bytes: int) -> Reader:
        """Return what reads pages in memory without the GIL; it holds views of the region."""
        region = self._region
        return Reader(
            *(self.lock, region.directory, region.arena, region.counter_words),
            *(COUNTER_INDEX["read_bytes"], size_bytes),
        )

    # ---- store ----

    def store_run(
        self, slot: int, source: memoryview, position: int, count: int, packer: Packer
    ) -> int:
        """Store *count* pages that begin at byte *position* of *source*, from *slot* on.

        Returns how many were stored; fewer than *count* means that the pool is full.

        :param packer: the caller's own, for at least *count* pages
        """
        packer.pack(source, position, count)
        with self.lock:
            return self._store_packed(slot, source, position, count, packer)

    def _store_packed(
        self, slot: int, source: memoryview, position: int, count: int, packer: Packer
    ) -> int:
        """Store what *packer* has: the easy pages in C, up to the next that is not (_store.c)."""
        done = 0
        while done < count:
            at = slot + done
            run = min(count - done, CLUSTER_SLOTS - (at & _SLOT_MASK))
            base = self.table.base(at)
            if base >= 0:
                cluster, index = at >> CLUSTER_SHIFT, base + (at & _SLOT_MASK)
                drafts, blobs = packer.drafts, packer.blobs
                easy = publish(
                    self._books, cluster, index, drafts, done, run, source, position, blobs
                )
                done += easy
                if easy == run:
                    continue
            if not self._store(slot + done, packer, done, source, position):
                break
            done += 1
        return done

    def _store(
        self, slot: int, packer: Packer, index: int, source: memoryview, position: int
    ) -> bool:
        """Store page *index* of the run that *packer* has; False: the pool is full."""
        try:
            self.table.materialise(slot)
        except TierFull:
            return False
        word, counter = packer.drafts[index], _WRITE_SAME
        if word & TAG_MASK == _POOL:
            blob = packer.blob(index, source, position)
            place = self.pool.allocate(len(blob))
            if place == NO_PLACE:
                self.table.release_if_empty(slot)
                return False
            self.put(place, blob)
            counter = _WRITE_RAW if blob_codec(word) == _RAW else _WRITE_COMPRESSED
            word = move_pool(word, place)
        self.free(self.table.exchange(slot, word, "write"))
        self._counter_words[counter] += 1
        return True

    def _store_page(self, slot: int, page: memoryview) -> bool:
        """Store one page; the caller holds the lock. False: the pool is full."""
        self._packer.pack(page, 0, 1)
        return self._store(slot, self._packer, 0, page, 0)

    def free(self, old: int) -> None:
        """Free the place that the unpublished word *old* names; the caller holds the lock."""
        tag = old & TAG_MASK
        if tag == _POOL:
            self.pool.free(pool_place(old), blob_length(old))
        elif tag == Tag.FILE:
            assert self.tier is not None
            length = blob_length(old)
            self.file_payload_bytes -= length
            self.tier.release(file_sector(old), blob_sectors(length))

    def put(self, place: int, blob: bytes | memoryview) -> None:
        """Copy *blob* to its *place* in the arena; the caller holds the lock."""
        self._arena[place : place + len(blob)] = blob

    def blob(self, word: int) -> memoryview:
        """Return the blob of a POOL *word*; valid while the caller holds the lock."""
        place = pool_place(word)
        return self._arena[place : place + blob_length(word)]

    # ---- load ----

    def load_run(
        self, slot: int, count: int, out: memoryview, position: int, *, whole: bool = False
    ) -> int:
        """Fill *out* from byte *position* on with the pages of *count* slots.

        Returns how many pages were filled; fewer than *count* means that the next slot is in
        the file tier, or damaged.

        :param whole: count no page as read unless all were: the caller will ask again
        :raises SlotDamaged: the first page asked for is damaged (a later one ends the run)
        """
        done = 0
        counters = self._counter_words
        with self.lock:
            before = counters[_READ_COUNTS].tolist() if whole else None
            while done < count:
                run = min(count - done, CLUSTER_SLOTS - (slot + done & _SLOT_MASK))
                filled = self._load_in_cluster(
                    slot + done, run, out, position + (done << PAGE_SHIFT), first=done == 0
                )
                done += filled
                if filled < run:
                    if before is not None:
                        for index, reads in enumerate(before, _READ_EMPTY):
                            counters[index] = reads
                    break
        return done

    def _load_in_cluster(
        self, slot: int, count: int, out: memoryview, position: int, *, first: bool
    ) -> int:
        index = self.table.base(slot)
        counters = self._counter_words
        if index < 0:
            out[position : position + count * PAGE_SIZE] = bytes(count * PAGE_SIZE)
            counters[_READ_EMPTY] += count
            return count
        index += slot & _SLOT_MASK
        done = load(self._words, index, count, self._arena, out, position, counters)
        if done == 0 and first and self._words[index] & TAG_MASK != Tag.FILE:
            raise SlotDamaged(f"slot {slot}: its blob is no page")
        return done

    # ---- patch: part of a page ----

    def patch(
        self, slot: int, start: int, data: bytes | memoryview, page: bytearray
    ) -> bool | None:
        """Overwrite bytes of one page; *page* is scratch of 4096 bytes.

        Returns True when done, None when the slot is in the file tier, False when the pool is
        full.

        :raises SlotDamaged: the old page is damaged, so its other bytes are lost
        """
        with self.lock:
            if self.table.get(slot) & TAG_MASK == Tag.FILE:
                return None
            view = memoryview(page)
            assert start + len(data) <= PAGE_SIZE
            self._load_in_cluster(slot, 1, view, 0, first=True)
            view[start : start + len(data)] = data
            return self._store_page(slot, view)

    def replace_file_page(self, slot: int, seen: int, page: memoryview) -> bool | None:
        """Store *page* if *slot* still holds the FILE word *seen*.

        Returns True when done, None when the slot has changed, False when the pool is full.
        """
        with self.lock:
            if (self.table.get(slot) ^ seen) & ~FLAGS:
                return None
            return self._store_page(slot, page)

    def is_empty(self, slot: int) -> bool:
        """Whether *slot* was never written, or was discarded since."""
        with self.lock:
            return not self.table.get(slot)

    # ---- discard ----

    def discard_run(self, slot: int, count: int, breathe: Callable[[], None] | None = None) -> int:
        """Empty *count* slots from *slot* on; return how many held anything.

        Costs as much as what was stored, not as much as the range.

        :param breathe: called without the lock every few slots, by a thread that others wait for
        """
        freed, end = 0, slot + count
        step = _DISCARD_STEP if breathe else CLUSTER_SLOTS
        for cluster in self.live_clusters(slot, end):
            first = max(slot, cluster << CLUSTER_SHIFT)
            stop = min(end, (cluster + 1) << CLUSTER_SHIFT)
            for start in range(first, stop, step):
                with self.lock:
                    freed += self._discard_in_cluster(start, min(step, stop - start))
                if breathe:
                    breathe()
        return freed

    def live_clusters(self, slot: int, end: int) -> Iterator[int]:
        """Yield the clusters of a range that are live, looked up in pieces if there are many.

        The caller does not hold the lock.
        """
        first, past = slot >> CLUSTER_SHIFT, ((end - 1) >> CLUSTER_SHIFT) + 1
        step = past - first if self.table.live_clusters <= _LOOK_UP_MAX else _LOOK_UP_MAX
        for start in range(first, past, max(1, step)):
            with self.lock:
                clusters = self.table.live_between(start, min(past, start + step) - 1)
            yield from clusters

    def _discard_in_cluster(self, slot: int, count: int) -> int:
        freed = 0
        for index, word in enumerate(self.table.run(slot, count)):
            if word:
                self.free(self.table.exchange(slot + index, 0, "discard"))
                freed += 1
        return freed

"""The virtual slot layer: pages in and out of slots, whatever backs them.

Everything here is synchronous, in memory, and done under ``lock``; nothing waits for a disk.
A slot whose blob is in a tier below stops a load or a patch, and the caller takes it to
``fetch``; a store that finds the pool full stops too, and the caller takes it to ``writeback``.

Order of every change (I3): the new bytes are in place, then the word is published with one
store, then the old place is freed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from swapfs.core._core import Decoder, Lock, Log, Reader, Writer
from swapfs.errors import TierFull
from swapfs.region.counters import COUNTER_INDEX, Counters
from swapfs.region.layout import Region
from swapfs.tiers.pool import NO_PLACE, Pool, PoolRebuild
from swapfs.tiers.pool.size_classes import CLASS_OF_GRAINS
from swapfs.units import CLUSTER_SHIFT, PAGE_SIZE
from swapfs.vlayer.entry import (
    BACKING_MASK,
    FLAGS,
    IN_POOL,
    KIND_MASK,
    STATE_OF_WORD,
    Codec,
    Kind,
    blob_codec,
    blob_length,
    is_below,
    move_pool,
    pool_place,
)
from swapfs.vlayer.exports import Exports
from swapfs.vlayer.packing import Packer
from swapfs.vlayer.stack import Stack
from swapfs.vlayer.swap_table import SwapTable

_DISCARD_STEP: Final = 64
"""Slots emptied before a look whether others want the lock."""
_LOOK_UP_MAX: Final = 4096
"""Clusters looked up under one hold of the lock."""
_RAW, _LOST = int(Codec.RAW), int(Kind.LOST)

_WRITE_SAME = COUNTER_INDEX["write_same_pages"]
_WRITE_COMPRESSED = COUNTER_INDEX["write_compressed_pages"]
_WRITE_RAW = COUNTER_INDEX["write_raw_pages"]
_READ_COUNTS: Final = (
    COUNTER_INDEX["read_empty_pages"],
    COUNTER_INDEX["read_same_pages"],
    COUNTER_INDEX["read_pool_pages"],
    COUNTER_INDEX["read_bytes"],
)


def _access_log(region: Region) -> Log | None:
    if not region.geometry.log_bytes:
        return None
    return Log(
        head=region.log_head,
        touched=region.log_touched,
        events=region.log_events,
        class_of_grains=CLASS_OF_GRAINS,
    )


class SlotDamaged(Exception):
    """A slot's bytes in memory are not a page (I4)."""


class VirtualSlotLayer:
    """What the slots of one region hold.

    :param stack: the tiers below the pool, where blobs are released when their slot changes
    """

    def __init__(self, region: Region, stack: Stack | None = None) -> None:
        self.lock = Lock()
        self.decoder = Decoder()
        self.copied: set[int] = set()
        """Slots that a mover has copied and not done with; no other may take them (``mover``)."""
        self.pool = Pool(region)
        self.log = _access_log(region)
        self.stack = Stack() if stack is None else stack
        self.stack.keep_in(region.stack)
        self.exports = Exports(region, self.stack)
        self.table = SwapTable(region, self.pool, self.log, self.exports)
        self.counters = Counters(region.counter_words)
        self._arena = region.arena
        self._counter_words = region.counter_words
        self._packer = Packer(1)
        self.region = region
        self.own_reader = self.reader(region.geometry.size_bytes)
        self.writer = self._make_writer()

    def _make_writer(self) -> Writer:
        region = self.region
        return Writer(
            *((_WRITE_SAME, _WRITE_COMPRESSED, _WRITE_RAW), self.log),
            directory=region.directory,
            arena=region.arena,
            classes=region.classes,
            counters=region.counter_words,
            state_of_word=STATE_OF_WORD,
            **self.table.tables(),
            **self.pool.tables(),
        )

    def rebuild(self) -> None:
        """Derive every list and count from the region, after another server died (I3)."""
        self.table.rebuild()
        rebuild = PoolRebuild(self.region, self.pool)
        self.stack.begin_rebuild()
        for cluster, place in self.table.table_places():
            _mark_cluster(self, rebuild, cluster, place)
        self.stack.end_rebuild()
        rebuild.finish()
        self.table.update_reserve()
        self.writer = self._make_writer()

    def reader(self, size_bytes: int) -> Reader:
        """Return what reads pages in memory without the GIL; it holds views of the region."""
        region = self.region
        return Reader(
            *(self.lock, region.directory, region.arena, region.counter_words),
            *(region.pool_words, _READ_COUNTS, size_bytes, self.log),
        )

    # ---- store ----

    def store_run(
        self, slot: int, source: memoryview, position: int, count: int, packer: Packer
    ) -> int:
        """Store *count* pages that begin at byte *position* of *source*, from *slot* on.

        Returns how many were stored; fewer than *count* means that the pool is full.

        :param packer: the caller's own, for at least *count* pages
        :raises OverQuota: the next one is beyond the quota of its export
        """
        packer.pack(source, position, count)
        with self.lock:
            return self._store_packed(slot, source, position, count, packer)

    def _store_packed(
        self, slot: int, source: memoryview, position: int, count: int, packer: Packer
    ) -> int:
        """Store what *packer* has: the easy pages in C, each that is not easy here (store.c)."""
        drafts, blobs = packer.drafts, packer.blobs
        publish, done = self.writer.publish, 0
        while True:
            done += publish(slot + done, count - done, drafts, done, source, position, blobs)
            if done == count or not self._store(slot + done, packer, done, source, position):
                return done
            done += 1

    def _store(
        self, slot: int, packer: Packer, index: int, source: memoryview, position: int
    ) -> bool:
        """Store page *index* of the run that *packer* has; False: the pool is full."""
        word, counter = packer.drafts[index], _WRITE_SAME
        _require_quota(self, slot, word)
        try:
            self.table.materialise(slot)
        except TierFull:
            return False
        if word & BACKING_MASK == IN_POOL:
            blob = packer.blob(index, source, position)
            place = self.pool.allocate(len(blob))
            if place == NO_PLACE:
                self.table.release_if_empty(slot)
                return False
            self.put(place, blob)
            counter = _WRITE_RAW if blob_codec(word) == _RAW else _WRITE_COMPRESSED
            word = move_pool(word, place)
        self.free(slot, self.table.exchange(slot, word, "write"))
        self._counter_words[counter] += 1
        return True

    def _store_page(self, slot: int, page: memoryview) -> bool:
        """Store one page; the caller holds the lock. False: the pool is full."""
        self._packer.pack(page, 0, 1)
        return self._store(slot, self._packer, 0, page, 0)

    def free(self, slot: int, old: int) -> None:
        """Free the place that the word *old* named for *slot*; the caller holds the lock."""
        if old & BACKING_MASK == IN_POOL:
            self.pool.free(pool_place(old), blob_length(old))
        elif is_below(old):
            self.stack.release(slot, old)

    def put(self, place: int, blob: bytes | memoryview) -> None:
        """Copy *blob* to its *place* in the arena; the caller holds the lock."""
        self._arena[place : place + len(blob)] = blob

    def blob(self, word: int) -> memoryview:
        """Return the blob in the pool of *word*; valid while the caller holds the lock."""
        place = pool_place(word)
        return self._arena[place : place + blob_length(word)]

    # ---- load ----

    def load_run(
        self, slot: int, count: int, out: memoryview, position: int, *, whole: bool = False
    ) -> int:
        """Fill *out* from byte *position* on with the pages of *count* slots.

        Returns how many pages were filled; fewer than *count* means that the next slot is in
        the file tier, or damaged.

        :param whole: load nothing if one of the slots is in the file tier, and return -1
        :raises SlotDamaged: the first page asked for is damaged (a later one ends the run)
        """
        with self.lock:
            return self._load(slot, count, out, position, whole=whole)

    def _load(self, slot: int, count: int, out: memoryview, position: int, *, whole: bool) -> int:
        done = self.own_reader.load(slot, count, out, position, whole)
        if not done and count and not is_below(word := self.table.get(slot)):
            lost = word & KIND_MASK == _LOST
            raise SlotDamaged(f"slot {slot}: its {'page is lost' if lost else 'blob is no page'}")
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
            if is_below(self.table.get(slot)):
                return None
            view = memoryview(page)
            assert start + len(data) <= PAGE_SIZE
            self._load(slot, 1, view, 0, whole=True)
            view[start : start + len(data)] = data
            return self._store_page(slot, view)

    def replace_file_page(self, slot: int, seen: int, page: memoryview) -> bool | None:
        """Store *page* if *slot* still holds *seen*, a blob below the pool.

        Returns True when done, None when the slot has changed, False when the pool is full.
        """
        with self.lock:
            if (self.table.get(slot) ^ seen) & ~FLAGS:
                return None
            return self._store_page(slot, page)

    def look(self, slot: int, page: memoryview, room: memoryview) -> tuple[int, memoryview]:
        """Return the word of *slot*, and a copy of its blob in *room* if that is in the pool.

        *page* gets the page, unless it is in the file tier. Both take 4096 bytes.

        :raises SlotDamaged: the blob is no page
        """
        with self.lock:
            word = self.table.get(slot)
            if not is_below(word):
                self._load(slot, 1, page, 0, whole=True)
            if word & BACKING_MASK != IN_POOL:
                return word, room[:0]
            blob = room[: blob_length(word)]
            blob[:] = self.blob(word)
            return word, blob

    def is_empty(self, slot: int) -> bool:
        """Whether *slot* was never written, or was discarded since."""
        with self.lock:
            return not self.table.get(slot)

    def has_table(self, slot: int) -> bool:
        """Whether the cluster of *slot* has a page of the table, so that a write needs none."""
        with self.lock:
            return self.table.base(slot) >= 0

    # ---- discard ----

    def discard_run(self, slot: int, count: int, *, background: bool = False) -> int:
        """Empty *count* slots from *slot* on; return how many held anything.

        Costs as much as what was stored, not as much as the range.

        :param background: let others have the lock between; for a thread that they wait for
        """
        freed, end, lock = 0, slot + count, self.lock
        for cluster in self.live_clusters(slot, end):
            first = max(slot, cluster << CLUSTER_SHIFT)
            stop = min(end, (cluster + 1) << CLUSTER_SHIFT)
            with lock:
                for start in range(first, stop, _DISCARD_STEP):
                    freed += self._discard(start, min(_DISCARD_STEP, stop - start))
                    if background:
                        lock.resched()
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

    def _discard(self, slot: int, count: int) -> int:
        freed = 0
        for index, word in enumerate(self.table.run(slot, count)):
            if word:
                self.free(slot + index, self.table.exchange(slot + index, 0, "discard"))
                freed += 1
        return freed


def _mark_cluster(layer: VirtualSlotLayer, rebuild: PoolRebuild, cluster: int, place: int) -> None:
    """Take what the table page at *place* names, for whoever has it."""
    first, exports = cluster << CLUSTER_SHIFT, layer.exports
    payload_bytes, taken_bytes = rebuild.payload_bytes, rebuild.taken_bytes
    for number, word in rebuild.mark_table(place):
        layer.stack.mark(first + number, word)
        exports.found_below(first + number, word)
        layer.table.below[cluster] += 1
    payload_bytes = rebuild.payload_bytes - payload_bytes
    taken_bytes = rebuild.taken_bytes - taken_bytes
    exports.found(cluster, layer.table.occupied[cluster], payload_bytes, taken_bytes)


def _require_quota(layer: VirtualSlotLayer, slot: int, draft: int) -> None:
    """Refuse *draft* if the export of *slot* may have no more; it is looked at in C too."""
    pool, table = layer.pool, layer.table
    taken = pool.bytes_for(blob_length(draft)) if draft & BACKING_MASK == IN_POOL else 0
    layer.exports.require(slot, table.get(slot), taken + table.missing_bytes(slot))


def lose(layer: VirtualSlotLayer, slot: int) -> None:
    """Note that the bytes of *slot* are gone; the caller holds the lock."""
    layer.free(slot, layer.table.exchange(slot, _LOST, "lose"))
    layer.counters.add("lost_pages")

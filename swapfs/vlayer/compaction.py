"""Compaction: moving blobs together in the pool, so that whole zspages become free.

Idea: zs_compact() of mm/zsmalloc.c, but no place knows its slot here, so the words that point
into sparse zspages are found by one walk over the table. That is dear, and so a round is made
only if it gains whole zspages, and it empties several.

Two kinds of round. *Packing* moves the blobs of the sparsest zspages of a class into others of
that class; it costs nothing but the work. *Squeezing* is for a pool that could not take a page
though no class has a zspage too many: the blobs of a zspage that holds fewer than a zspage has
pages go to places of larger classes, whole pages at worst. With it a pool holds as many blobs
as pages fit, whatever their sizes were and in whatever order they came (I6): while it holds
fewer, some zspage has fewer than that, and the spare zspage takes what is in it.
"""

from __future__ import annotations

import heapq
import threading
from typing import Final

from swapfs.region.layout import ZSPAGE_BYTES
from swapfs.tiers.pool import NO_PLACE, RAW_CLASS
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS, PAGE_SIZE
from swapfs.vlayer.entry import (
    BACKING_MASK,
    IN_POOL,
    MOVING,
    POOL_ZSPAGE_SHIFT,
    blob_length,
    move_pool,
)
from swapfs.vlayer.layer import VirtualSlotLayer

MOVES_MAX: Final = 16384
"""Blobs that one round may move; their slots are kept in a list meanwhile."""
STEP_BLOBS: Final = 32
"""Blobs moved under one hold of the layer's lock."""
PAGES_PER_ZSPAGE: Final = ZSPAGE_BYTES // PAGE_SIZE
_LOW_SHARE: Final = 16
"""With less than 1/16 of the zspages free, packing begins before a write has to wait for it..."""
_WORTH_SHARE: Final = 64
"""... if it gains 1/64 of them, so that a walk over the table is not made for one zspage."""

_Candidate = tuple[int, int, int]
"""Objects in a zspage, the zspage, its class."""


class Compactor:
    """Makes free zspages in the pool of *layer*. Any thread may; one round runs at a time."""

    def __init__(self, layer: VirtualSlotLayer) -> None:
        self._layer = layer
        self._round = threading.Lock()

        self.fit_to_pool()

    def fit_to_pool(self) -> None:
        """Take note of another size of the pool."""
        zspages = self._layer.pool.zspages.limit
        self.low_zspages = zspages // _LOW_SHARE
        self.worth_zspages = max(1, zspages // _WORTH_SHARE)

    def is_low(self) -> bool:
        """Whether free zspages are short; cheap."""
        return self._layer.pool.free_zspages < self.low_zspages

    def compact_if_low(self) -> int:
        """Pack if free zspages are short and it is worth a walk; return zspages gained."""
        with self._round:
            wanted = 2 * self.low_zspages - self._layer.pool.free_zspages
            if not self.is_low():
                return 0
            return self._pack(wanted, self.worth_zspages)

    def pack_if_worth(self, wanted: int | None = None) -> int:
        """Pack if that gains enough zspages for a walk over the table; return zspages gained.

        :param wanted: no more than so many, however much there is to gain
        """
        with self._round:
            return self._pack(wanted or self._layer.pool.zspages.limit, self.worth_zspages)

    def make_room(self, pages: int, *, look: bool = True) -> bool:
        """Make room for *pages* pages that found none; False if there is no more to be made.

        True says that zspages were emptied, or that others have made room meanwhile.

        :param look: whether it counts if there is room now; not for a write that could not use it
        """
        pool = self._layer.pool
        zspages = -(-pages // PAGES_PER_ZSPAGE) + pool.spare_zspages
        with self._round:
            with self._layer.lock:
                if look and pool.room_for_any():
                    return True
            return bool(self._pack(max(zspages, self.worth_zspages), 1) or self._squeeze(pages))

    # ---- the two kinds of round ----

    def pack(self, wanted: int) -> int:
        """Pack up to *wanted* zspages away, however little it is worth; return zspages gained."""
        with self._round:
            return self._pack(wanted, 1)

    def squeeze(self, pages: int) -> int:
        """Squeeze until there is room for *pages* pages; return zspages emptied."""
        with self._round:
            return self._squeeze(pages)

    def _pack(self, wanted: int, worth: int) -> int:
        zspages = self._layer.pool.zspages
        with self._layer.lock:
            gains = [zspages.gain(size_class) for size_class in range(RAW_CLASS + 1)]
        if sum(gains) < worth:
            return 0
        sparse = [
            candidate
            for size_class, gain in enumerate(gains)
            for candidate in self._sparsest(size_class, min(gain, wanted))
        ]
        return self._empty(heapq.nsmallest(wanted, sparse), pages=0)

    def _squeeze(self, pages: int) -> int:
        sparse = [
            candidate
            for size_class in range(RAW_CLASS)
            for candidate in self._sparsest(size_class, pages)
            if candidate[0] < PAGES_PER_ZSPAGE
        ]
        return self._empty(heapq.nsmallest(pages, sparse), pages)

    def _sparsest(self, size_class: int, count: int) -> list[_Candidate]:
        if count <= 0:
            return []
        zspages = self._layer.pool.zspages
        # Without the lock: it may change at once, and what matters of it is looked at again later.
        return heapq.nsmallest(
            count,
            ((zspages.used[zspage], zspage, size_class) for zspage in zspages.sparse(size_class)),
        )

    # ---- one round ----

    def _empty(self, sparse: list[_Candidate], pages: int) -> int:
        """Empty zspages, the sparsest first; return how many became free.

        :param pages: 0: pack. Else squeeze, until there is room for as many pages.
        """
        pool, lock = self._layer.pool, self._layer.lock
        zspages = pool.zspages
        victims: dict[int, list[int]] = {}
        gained, budget = 0, MOVES_MAX
        try:
            for used, zspage, size_class in sparse:
                budget -= used
                if budget < 0:
                    break
                with lock:
                    if zspages.drain(zspage, size_class):
                        victims[zspage] = []
            if victims:
                self._find_slots(victims)
            for zspage, slots in victims.items():
                with lock:
                    if pages and gained and pool.room_for_any() >= pages:
                        break  # not before: such room is what the write could not use
                gained += (
                    self._squeeze_one(zspage, slots) if pages else self._move_out(zspage, slots)
                )
        finally:
            for zspage in victims:
                with lock:
                    zspages.end_drain(zspage)
        return gained

    def _find_slots(self, victims: dict[int, list[int]]) -> None:
        """Note under each zspage the slots whose words point into it.

        Nothing is placed in these zspages meanwhile, so none is missed; but a word that was
        found may change before its blob is moved.
        """
        table, lock = self._layer.table, self._layer.lock
        for cluster in self._layer.live_clusters(0, table.slots):
            first = cluster << CLUSTER_SHIFT
            with lock:
                words = table.run(first, CLUSTER_SLOTS)
            for index, word in enumerate(words):
                if word >> POOL_ZSPAGE_SHIFT in victims and word & BACKING_MASK == IN_POOL:
                    victims[word >> POOL_ZSPAGE_SHIFT].append(first + index)
            lock.relax()

    def _move_out(self, zspage: int, slots: list[int]) -> bool:
        """Move the blobs of *slots* to zspages of no larger class; is *zspage* free then?"""
        zspages, lock = self._layer.pool.zspages, self._layer.lock
        for start in range(0, len(slots), STEP_BLOBS):
            with lock:
                if not zspages.is_draining(zspage):
                    return True  # its last blob was discarded or rewritten
                largest = zspages.class_of(zspage)
                for slot in slots[start : start + STEP_BLOBS]:
                    word = self._word_in(zspage, slot)
                    if word and not self._move(slot, word, largest, spare=False):
                        return False
            lock.relax()
        with lock:
            return not zspages.is_draining(zspage)

    def _squeeze_one(self, zspage: int, slots: list[int]) -> bool:
        """Move all blobs of *zspage* to larger places at once, or none; is it free then?

        All under one hold of the lock: the spare zspage is lent for as long only.
        """
        zspages = self._layer.pool.zspages
        with self._layer.lock:
            # Also those that are being copied elsewhere, which is of no use then: a write waits.
            words = ((slot, self._word_in(zspage, slot, moving=True)) for slot in slots)
            found = [(slot, word) for slot, word in words if word]
            if not len(found) == zspages.used[zspage] < PAGES_PER_ZSPAGE:
                return not zspages.is_draining(zspage)
            for slot, word in found:
                if not self._move(slot, word, RAW_CLASS, spare=True):
                    return False
        self._layer.lock.relax()
        return True

    def _word_in(self, zspage: int, slot: int, *, moving: bool = False) -> int:
        """Return the word of *slot* if its blob is in *zspage* and may be moved, else 0."""
        word = self._layer.table.get(slot)
        bits = BACKING_MASK if moving else BACKING_MASK | MOVING
        return word if word >> POOL_ZSPAGE_SHIFT == zspage and word & bits == IN_POOL else 0

    def _move(self, slot: int, word: int, largest: int, *, spare: bool) -> bool:
        """Move the blob of *slot*; False: there is no place for it. The lock is held."""
        layer = self._layer
        place = layer.pool.allocate_to_move(blob_length(word), largest, spare=spare)
        if place == NO_PLACE:
            return False
        layer.put(place, layer.blob(word))
        layer.free(slot, layer.table.exchange(slot, move_pool(word & ~MOVING, place), "compact"))
        layer.counters.add("compacted_pages")
        return True

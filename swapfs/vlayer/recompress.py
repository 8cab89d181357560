"""Recompression: cold pages of the pool from lz4 to zstd, before anything goes to a disk.

A walk over the table finds what is cold. Blobs are copied out under the lock and marked as moving,
turned off the lock and without the GIL, and put back where the word is still the one that was
copied: the mover's verb, with the pool as both ends. A page in zstd that is read again and again
returns to lz4. What gains no smaller place stays as it is, and says so in its word, so that nobody
tries again. Idea: recompression of zram (Documentation/admin-guide/blockdev/zram.rst).

The walk cools what it passes by one step. A new blob is as hot as one that was read once, so it is
turned in the second walk after it came; and a walk is only made when there is something new.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Final

from swapfs.core._core import Recoder
from swapfs.tiers.pool import NO_PLACE
from swapfs.tiers.pool.size_classes import INCOMPRESSIBLE_BYTES
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS, PAGE_SHIFT, PAGE_SIZE
from swapfs.vlayer.compaction import Compactor
from swapfs.vlayer.entry import (
    CODEC_KEPT,
    CODEC_SHIFT,
    FLAGS,
    HEAT_ONE,
    MOVING,
    PLACE_SHIFT,
    Kind,
    blob_codec,
    blob_length,
    move_pool,
    pool_place,
)
from swapfs.vlayer.layer import VirtualSlotLayer, lose
from swapfs.vlayer.swap_table import SwapTable

log = logging.getLogger(__name__)

STEP_SLOTS: Final = 32
"""Slots looked at under one hold of the layer's lock."""
BATCH_PAGES: Final = 2 * STEP_SLOTS
"""At most turned in one go: some 0.7 ms of a CPU that nobody else wants."""
_STEP_BLOBS: Final = 16
"""Put back before a look whether others want the lock."""
VIEW_BYTES: Final = 2 * BATCH_PAGES * PAGE_SIZE
LOOK_EVERY_S: Final = 1.0
WALK_EVERY_S: Final = 30.0
"""A walk is due after so long ..."""
_NEW_SHARE: Final = 8
"""... or when 1/8 of what the pool holds is new since the last one."""
_NONE: Final = 0
"""In place of the word of a slot that is another mover's: no slot that is moving has it."""
_KEPT: Final = CODEC_KEPT << CODEC_SHIFT
_DRAFT: Final = (1 << PLACE_SHIFT) - 1 & ~FLAGS


class _Batch:
    """Blobs that were copied out, each with a page of room, and the words that named them."""

    def __init__(self, view: memoryview, *, deep: bool) -> None:
        self.view = view
        self.deep = deep
        self.count = 0
        self.taken = 0  # of them, those whose slots are ours
        self.done = 0
        self.slots = array("Q", bytes(8 * BATCH_PAGES))
        self.words = array("Q", bytes(8 * BATCH_PAGES))
        self._starts = array("I", range(0, BATCH_PAGES << PAGE_SHIFT, PAGE_SIZE))
        self.drafts = array("Q", bytes(8 * BATCH_PAGES))

    def turn(self, recoder: Recoder) -> None:
        """Put the blobs into the other codec; the drafts say what has become of them."""
        for index in range(self.count):
            self.drafts[index] = self.words[index] & _DRAFT
        longest = 0 if self.deep else INCOMPRESSIBLE_BYTES
        recoder.recode(self.view, self._starts, self.drafts, self.count, self.deep, longest)

    def blob(self, index: int) -> memoryview:
        """Return what number *index* has become."""
        return self.view[index << PAGE_SHIFT :][: blob_length(self.drafts[index])]


class Recompressor:
    """Turns cold blobs of the pool of *layer*, in a thread of its own.

    :param view: VIEW_BYTES of reserved memory
    :param start_bytes: cold blobs are turned while the pool uses more
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        recoder: Recoder,
        view: memoryview,
        compactor: Compactor,
        *,
        start_bytes: int,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.start_bytes = start_bytes
        self._layer = layer
        self.recoder = recoder
        self._compactor = compactor
        self._clock_s = clock_s
        half = VIEW_BYTES // 2
        self._deep = _Batch(view[:half], deep=True)
        self._shallow = _Batch(view[half:VIEW_BYTES], deep=False)
        self._stop = threading.Event()
        self._walked_s = -WALK_EVERY_S
        self._stored = 0

    # ---- the thread ----

    def run(self) -> None:
        """Walk whenever a walk is due, until ``stop``."""
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                while self.is_due() and self.walk() and not self._stop.is_set():
                    pass
            except Exception:  # the thread must outlive a bug
                log.exception("recompression failed")
                with self._layer.lock:
                    self._layer.counters.add("handler_errors")

    def stop(self) -> None:
        """Let ``run`` return."""
        self._stop.set()

    def is_due(self) -> bool:
        """Whether a walk would find something new."""
        table = self._layer.table
        counts = table.state_counts()
        deep = counts["recompressed"]
        if self._layer.pool.used_bytes <= self.start_bytes and not deep:
            return False
        new = self._stored_pages() - self._stored
        there = counts["compressed"] + counts["raw"] + deep
        return new * _NEW_SHARE > there or self._clock_s() - self._walked_s >= WALK_EVERY_S

    def _stored_pages(self) -> int:
        counters = self._layer.counters
        return counters.get("write_compressed_pages") + counters.get("write_raw_pages")

    # ---- the walk ----

    def walk(self) -> int:
        """Walk over the table once; return the pages that were turned."""
        self._walked_s, self._stored = self._clock_s(), self._stored_pages()
        lock, batches, turned = self._layer.lock, (self._shallow, self._deep), 0
        try:
            for slot in self._steps():
                with lock:
                    self._look(slot)
                lock.relax()
                for batch in batches:
                    if batch.count > BATCH_PAGES - STEP_SLOTS:
                        turned += self._finish(batch)
                if self._stop.is_set():
                    break
            turned += sum(map(self._finish, batches))
        except BaseException:
            for batch in batches:
                self._drop(batch)
            raise
        self._compactor.pack_if_worth()
        return turned

    def _steps(self) -> Iterator[int]:
        for cluster in self._layer.live_clusters(0, self._layer.table.slots):
            first = cluster << CLUSTER_SHIFT
            yield from range(first, first + CLUSTER_SLOTS, STEP_SLOTS)

    def _look(self, slot: int) -> None:
        """Copy out what is worth it of the slots from *slot* on; the lock is held."""
        layer = self._layer
        base = layer.table.base(slot)
        if base < 0:
            return
        index = base + (slot & (CLUSTER_SLOTS - 1))
        pool = layer.region.arena[: layer.region.pool_bytes]  # the rest may not be touched
        for batch in (self._shallow, self._deep):
            if batch.deep and layer.pool.used_bytes <= self.start_bytes:
                continue
            batch.count = self.recoder.collect(
                *(pool, batch.slots, batch.words, batch.view, batch.count),
                *(index, slot, STEP_SLOTS, batch.deep),
            )
            self._take(batch)

    def _take(self, batch: _Batch) -> None:
        """Have the slots of what was copied last, but those another mover has (``mover``)."""
        copied, table = self._layer.copied, self._layer.table
        for index in range(batch.taken, batch.count):
            slot = batch.slots[index]
            if slot in copied:
                table.mark(slot, MOVING, on=False)
                batch.words[index] = _NONE
            else:
                copied.add(slot)
        batch.taken = batch.count

    def _let_go(self, batch: _Batch) -> None:
        """End *batch*; the lock is held."""
        for index in range(batch.taken):
            if batch.words[index] != _NONE:
                self._layer.copied.discard(batch.slots[index])
        batch.count = batch.taken = batch.done = 0

    # ---- one batch ----

    def _finish(self, batch: _Batch) -> int:
        """Turn *batch* and put it back; return how many pages took their new blob."""
        if not batch.count:
            return 0
        batch.turn(self.recoder)
        lock, taken = self._layer.lock, 0
        with lock:
            while batch.done < batch.count:
                taken += self._put_back(batch)
                lock.resched()
            self._let_go(batch)
        return taken

    def _put_back(self, batch: _Batch) -> int:
        """Put some of *batch* back, at least one; return how many were taken. The lock is held."""
        layer, first = self._layer, batch.done
        payload_bytes = layer.pool.payload_bytes
        end = min(batch.count, first + _STEP_BLOBS)
        batch.done = layer.writer.replace(
            *(batch.slots, batch.words, batch.drafts, batch.view, first, end, batch.deep)
        )
        taken = batch.done - first
        if batch.done < end:
            taken += self._put_one(batch, batch.done)
            batch.done += 1
        counters = layer.counters
        if batch.deep:
            counters.add("recompressed_pages", taken)
            counters.add("recompress_saved_bytes", payload_bytes - layer.pool.payload_bytes)
        else:
            counters.add("recompress_returned_pages", taken)
        return taken

    def _put_one(self, batch: _Batch, index: int) -> bool:
        """Put number *index* back; whether its slot took it. The lock is held."""
        slot, word, draft = batch.slots[index], batch.words[index], batch.drafts[index]
        layer, table = self._layer, self._layer.table
        current = table.get(slot)
        if current != word | MOVING:  # rewritten, discarded, or read: then it stays as it is
            _unmark(table, slot, word)
            return False
        if draft == Kind.LOST:
            lose(layer, slot)
            return False
        blob, place = batch.blob(index), NO_PLACE
        if not blob_codec(draft) & CODEC_KEPT:
            larger = pool_place(word) if batch.deep else NO_PLACE
            place = layer.pool.allocate_below(larger, len(blob))
        if place == NO_PLACE:
            new = word | _KEPT if batch.deep else word - HEAT_ONE
            table.exchange(slot, new, "recompress")
            layer.counters.add("recompress_refused_pages")
            return False
        layer.put(place, blob)
        layer.free(slot, table.exchange(slot, move_pool(draft, place), "recompress"))
        return True

    def _drop(self, batch: _Batch) -> None:
        """Let the slots of what was copied out go on as before."""
        with self._layer.lock:
            for index in range(batch.done, batch.count):
                _unmark(self._layer.table, batch.slots[index], batch.words[index])
            self._let_go(batch)


def _unmark(table: SwapTable, slot: int, word: int) -> None:
    """Let *slot* go on as before, if it still has what *word* named; the lock is held."""
    current = table.get(slot)
    if current & MOVING and not (current ^ word) & ~FLAGS:
        table.mark(slot, MOVING, on=False)

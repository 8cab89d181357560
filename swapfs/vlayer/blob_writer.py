"""Writing batches of blobs down and publishing where they lie.

What demotion, cleaning and direct writes have in common. No disk I/O is done under the
layer's lock, and the lock is let go when it is contended so that requests come in between (I5).
An extent is under way from ``allocate`` until it is settled, which ``drop``, ``commit``, and a
``write_copies`` that fails do too: its room is not lost meanwhile, only not to be seen.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from typing import Final

from swapfs.errors import TierFull, TierIOError, TierNoSpace
from swapfs.tiers import sector_ref
from swapfs.tiers.base import Extent, LowerTier
from swapfs.tiers.blob import Batch, BatchItem
from swapfs.tiers.segments import SEGMENT_SECTORS
from swapfs.units import PAGE_SIZE, SECTOR_SIZE, PSector
from swapfs.vlayer.entry import HEAT_MASK, MOVING, encode_below, is_below, ref_of
from swapfs.vlayer.health import BACKOFF_MAX_S, NO_SPACE_PAUSE_MAX_S, Health
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.progress import WAIT_S, Progress

log = logging.getLogger(__name__)

FILE_TIER: Final = 1
"""The number of the file tier in the table."""
BATCH_SECTORS: Final = SEGMENT_SECTORS
BATCH_BYTES: Final = BATCH_SECTORS * SECTOR_SIZE
_PAGE_SECTORS: Final = PAGE_SIZE // SECTOR_SIZE
_SERVER_SHIFT: Final = 40  # of the sequence numbers that one server may use


class BlobWriter:
    """Writes batches to *tier* for the slots of *layer*; any thread, each with its own batch."""

    def __init__(
        self,
        layer: VirtualSlotLayer,
        tier: LowerTier,
        clock_s: Callable[[], float],
        wait_s: float = WAIT_S,
    ) -> None:
        self.health = Health()
        self.progress = Progress(clock_s, wait_s)
        self.newest_sequence = 0
        self._layer = layer
        self._tier = tier
        self._clock_s = clock_s
        # No number is used twice, not even by the server that comes after this one: they are
        # nonces (seal.py), and the clock may be set back.
        starts = layer.counters.get("server_starts")
        self._sequence = itertools.count((starts << _SERVER_SHIFT) + 1)

    def may_write(self) -> bool:
        """Whether a write may be tried now."""
        return self.health.may_write(self._clock_s())

    def allocate(self, sectors: int, *, cleaning: bool = False) -> Extent:
        """Take an extent of at most *sectors* sectors, which is then under way.

        :raises TierFull: there is none now
        """
        self.progress.begin()
        try:
            extent = self._tier.allocate(sectors, cleaning=cleaning)
        except BaseException as error:
            self.progress.cancel()
            self.health.full |= isinstance(error, TierFull) and not cleaning
            raise
        self.health.full &= cleaning
        return extent

    def settle(self, extent: Extent) -> None:
        """End what *extent* was taken for: every sector of it is published or given back."""
        self._tier.settle(extent)
        self.progress.end()

    def add(
        self, batch: Batch, slot: int, payload: bytes | memoryview, codec: int, *, expected: int = 0
    ) -> None:
        """Append a blob with the next sequence number to *batch*."""
        sequence = next(self._sequence)  # one step, so no two threads get the same
        self.newest_sequence = sequence
        batch.add(slot, payload, codec, sequence, expected=expected)

    def write(self, extent: Extent, batch: Batch) -> bool:
        """Write *batch* to *extent*; False when the tier failed, which is then noted."""
        writer = threading.get_ident()
        self.health.begin(writer, self._clock_s())
        try:
            self._tier.write(extent, batch)
        except TierIOError as error:
            log.error("file tier: %s", error)
            full = isinstance(error, TierNoSpace)
            self._abandon(extent, batch, good=full)
            pause_max_s = NO_SPACE_PAUSE_MAX_S if full else BACKOFF_MAX_S
            self.health.failed(str(error), self._clock_s(), pause_max_s)
            return False
        except BaseException:  # a bug, or no memory: who knows what it wrote
            self._abandon(extent, batch)
            raise
        finally:
            self.health.end(writer)
        self.health.succeeded()
        with self._layer.lock:
            self._layer.counters.add("file_write_ops")
            self._layer.counters.add("file_written_bytes", batch.sectors * SECTOR_SIZE)
        return True

    def write_copies(self, extent: Extent, batch: Batch) -> bool:
        """``write`` a batch of copies; if it fails, settle it, and its slots go on as before."""
        written = False
        try:
            written = self.write(extent, batch)
        finally:
            if not written:
                self.unmark(batch.items)
                self.settle(extent)
        return written

    def drop(self, extent: Extent, batch: Batch) -> None:
        """Give up a batch of which nothing was written, and settle its extent."""
        self._tier.release(extent.sector, extent.sectors)
        self.unmark(batch.items)
        self.settle(extent)

    def _abandon(self, extent: Extent, batch: Batch, *, good: bool = False) -> None:
        """Keep the sectors of a failed write out of use, and only those, unless they are *good*."""
        bad = 0 if good else min(extent.sectors, -(-batch.sectors // _PAGE_SECTORS) * _PAGE_SECTORS)
        if bad:
            self._tier.mark_bad(Extent(extent.sector, bad))
        if bad < extent.sectors:
            self._tier.release(PSector(extent.sector + bad), extent.sectors - bad)
        with self._layer.lock:
            self._layer.counters.add("bad_sectors", bad)

    def publish(self, extent: Extent, item: BatchItem, cause: str) -> None:
        """Let *item*'s slot name its written blob; the caller holds the layer's lock.

        :raises TierFull: no room for a page of the swap table; nothing has changed
        """
        layer = self._layer
        sector = extent.sector + item.start_sector
        ref = sector_ref.encode(sector, item.length, item.checksum)
        old = layer.table.exchange(item.slot, encode_below(FILE_TIER, item.codec, ref), cause)
        layer.file_payload_bytes += sector_ref.longest(ref)
        layer.free(old)

    def commit(self, extent: Extent, batch: Batch, cause: str) -> list[BatchItem]:
        """Publish a written batch of copies and settle its extent.

        Returns the items whose slots took theirs.
        """
        taken: list[BatchItem] = []
        lock = self._layer.lock
        done = 0
        try:
            with lock:
                try:
                    for item in batch.items:
                        lock.resched()
                        if self._commit_one(extent, item, cause):
                            taken.append(item)
                        done += 1
                except BaseException:  # a bug, or no memory
                    self.give_back(extent, batch.items[done:])
                    raise
        except BaseException:
            self.unmark(batch.items[done:])
            raise
        finally:
            self.settle(extent)
        return taken

    def give_back(self, extent: Extent, items: list[BatchItem]) -> None:
        """Release written blobs that will not be published; the first may have been.

        The lock is held, and was since that one was tried: else its slot may have let go of it.
        """
        for item in items:
            word = self._layer.table.get(item.slot)
            sector = extent.sector + item.start_sector
            if not is_below(word) or sector_ref.sector(ref_of(word)) != sector:
                self.release(extent, item)

    def _commit_one(self, extent: Extent, item: BatchItem, cause: str) -> bool:
        table = self._layer.table
        current = table.get(item.slot)
        if current != item.expected | MOVING:
            # Rewritten or discarded; or read, which makes it warm: then it stays in memory.
            if current & ~HEAT_MASK == item.expected | MOVING:
                table.mark(item.slot, MOVING, on=False)
            self.release(extent, item)
            return False
        self.publish(extent, item, cause)
        return True

    def release(self, extent: Extent, item: BatchItem) -> None:
        """Give the sectors of a written blob back that no slot took."""
        self._tier.release(PSector(extent.sector + item.start_sector), item.sectors)

    def unmark(self, items: list[BatchItem]) -> None:
        """Let the slots of a batch that was not written go on as before."""
        lock, table = self._layer.lock, self._layer.table
        with lock:
            for item in items:
                lock.resched()
                if table.get(item.slot) & ~HEAT_MASK == item.expected | MOVING:
                    table.mark(item.slot, MOVING, on=False)

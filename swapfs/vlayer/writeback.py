"""Moving blobs down: demotion of cold ones, cleaning, and writes that found the pool full.

Demotion keeps the pool between two watermarks from a thread of its own. It copies cold blobs
into one batch, writes the batch in one piece, and only then publishes the new words; a slot
that was read, rewritten or discarded meanwhile keeps what it has and the copy is dropped (I3).
No disk I/O is done under the layer's lock. When a write fails, the pages are still in memory:
demotion stops, tries again after a growing pause, and says so.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from swapfs.errors import BlobCorrupt, TierFull, TierIOError
from swapfs.tiers.base import READ_SLACK_BYTES, Extent, LowerTier
from swapfs.tiers.blob import Batch, BatchItem, blob_sectors, check_blob, peek
from swapfs.tiers.segments import SEGMENT_SECTORS
from swapfs.units import SECTOR_SIZE, PSector
from swapfs.vlayer.clock import ClockHand
from swapfs.vlayer.entry import (
    CHECK_MASK,
    MOVING,
    REFERENCED,
    TAG_MASK,
    Tag,
    blob_codec,
    blob_length,
    encode_file,
    file_check,
    file_sector,
)
from swapfs.vlayer.layer import VirtualSlotLayer

log = logging.getLogger(__name__)

BATCH_SECTORS: Final = SEGMENT_SECTORS
BATCH_BYTES: Final = BATCH_SECTORS * SECTOR_SIZE
SCRATCH_BYTES: Final = BATCH_BYTES + READ_SLACK_BYTES
COMMIT_STEP: Final = 64
"""Words published under one hold of the lock."""
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
STUCK_AFTER_S: Final = 5.0
"""A batch that takes longer is reported as stuck."""


@dataclass(slots=True)
class Health:
    """Whether the tier takes writes; times are monotonic seconds."""

    backoff_s: float = 0.0
    retry_at_s: float = 0.0
    busy_since_s: float = 0.0
    reason: str = ""
    full: bool = False

    def failed(self, reason: str, now_s: float) -> None:
        """Note a failed write: the next attempt waits twice as long as the last one did."""
        self.backoff_s = min(BACKOFF_MAX_S, self.backoff_s * 2 or BACKOFF_FIRST_S)
        self.retry_at_s = now_s + self.backoff_s
        self.reason = reason

    def succeeded(self) -> None:
        """Note a write that went well."""
        self.backoff_s = self.retry_at_s = 0.0
        self.reason = ""
        self.full = False

    def may_write(self, now_s: float) -> bool:
        """Whether a write may be tried now."""
        return now_s >= self.retry_at_s

    def problem(self, now_s: float) -> str:
        """Say in a few words what is wrong; empty: nothing is."""
        if self.reason:
            return (
                f"writes fail ({self.reason}), next try in {max(0, self.retry_at_s - now_s):.0f}s"
            )
        if self.busy_since_s and now_s - self.busy_since_s > STUCK_AFTER_S:
            return f"a write has been stuck for {now_s - self.busy_since_s:.0f}s"
        return "full" if self.full else ""


class Writeback:
    """Everything that writes to the lower tier of *layer*.

    :param batch_view: page aligned, SCRATCH_BYTES long; only the demoting thread uses it
    :param high_bytes: demotion starts when the pool uses more
    :param low_bytes: and stops when it uses no more than this
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        tier: LowerTier,
        batch_view: memoryview,
        scratch: memoryview,
        *,
        high_bytes: int,
        low_bytes: int,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        assert low_bytes < high_bytes
        self._layer = layer
        self._tier = tier
        self._batch = Batch(batch_view[:BATCH_BYTES])
        self._scratch = scratch
        self._hand = ClockHand(layer)
        self._sequence = itertools.count(time.time_ns())
        self.newest_sequence = 0
        self.high_bytes = high_bytes
        self.low_bytes = low_bytes
        self._clock_s = clock_s
        self.health = Health()
        self._wake = threading.Event()
        self._stop = False
        self._requests: queue.SimpleQueue[tuple[int, Callable[[int], None]]] = queue.SimpleQueue()

    # ---- the thread ----

    def run(self) -> None:
        """Demote whenever the pool is above the high watermark, until ``stop``."""
        while not self._stop:
            pause_s = self.health.retry_at_s - self._clock_s()
            self._wake.wait(timeout=pause_s if pause_s > 0 else 1.0)
            self._wake.clear()
            try:
                self.balance()
                self._serve_requests()
                self.clean()
            except Exception:  # the thread must outlive a bug: without it the pool fills
                log.exception("writeback failed")
                with self._layer.lock:
                    self._layer.counters.add("failed_demotions")
                self.health.failed("internal error", self._clock_s())

    def request(self, pages: int, done: Callable[[int], None]) -> None:
        """Have the thread demote about *pages* pages and call *done* with how many it did."""
        self._requests.put((pages, done))
        self._wake.set()

    def _serve_requests(self) -> None:
        while not self._requests.empty():
            pages, done = self._requests.get()
            moved = 0
            try:
                moved = self.demote(pages)
            finally:
                done(moved)

    def kick_if_needed(self) -> None:
        """Wake the thread if the pool is above the high watermark; cheap."""
        if self._layer.pool.used_bytes > self.high_bytes and not self._wake.is_set():
            self._wake.set()

    def stop(self) -> None:
        """Let ``run`` return after the batch in hand."""
        self._stop = True
        self._wake.set()

    # ---- demotion ----

    def balance(self) -> int:
        """Demote down to the low watermark if the pool is above the high one; return pages."""
        moved = 0
        if self._layer.pool.used_bytes <= self.high_bytes:
            return 0
        while self._layer.pool.used_bytes > self.low_bytes and not self._stop:
            demoted = self.demote_batch()
            if not demoted:
                break
            moved += demoted
        return moved

    def demote(self, pages: int) -> int:
        """Demote about *pages* pages now, whatever the watermarks say; return how many."""
        moved = 0
        while moved < pages and (demoted := self.demote_batch(pages - moved)):
            moved += demoted
        return moved

    def demote_batch(self, pages_max: int = BATCH_SECTORS) -> int:
        """Write one batch of cold blobs down; return how many slots now live there.

        0 when nothing is cold, there is no room, or writes fail and it is too early to try.
        """
        if not self.health.may_write(self._clock_s()):
            return 0
        try:
            extent = self._tier.allocate(BATCH_SECTORS)
        except TierFull:
            self.health.full = True
            return 0
        self.health.full = False
        self._batch.reset(extent.sectors)
        self._collect(pages_max)
        if not self._batch.items:
            self._tier.release(extent.sector, extent.sectors)
            return 0
        if not self.write(extent, self._batch):
            with self._layer.lock:
                self._layer.counters.add("failed_demotions")
            self._unmark(self._batch.items)
            return 0
        return self._commit(extent, "demote")

    def _collect(self, pages_max: int) -> None:
        """Copy cold blobs into the batch and mark their slots as moving."""
        lock = self._layer.lock
        lock.acquire()
        try:
            for victims in self._hand.victims():
                for slot, word in victims:
                    full = not self._batch.fits(blob_length(word))
                    if full or len(self._batch.items) >= pages_max:
                        self._hand.back(slot)
                        return
                    self._copy(slot, word)
                lock.release()  # let waiting requests in
                lock.acquire()
        finally:
            lock.release()

    def _copy(self, slot: int, word: int) -> None:
        payload = self._layer.blob(word)
        self.add(self._batch, slot, payload, blob_codec(word), expected=word)
        self._layer.table.mark(slot, MOVING, on=True)

    def add(
        self, batch: Batch, slot: int, payload: bytes | memoryview, codec: int, *, expected: int = 0
    ) -> None:
        """Append a blob with the next sequence number to *batch*; any thread."""
        self.newest_sequence = next(self._sequence)
        batch.add(slot, payload, codec, self.newest_sequence, expected=expected)

    def write(self, extent: Extent, batch: Batch) -> bool:
        """Write *batch* to *extent*; False when the tier failed, which is then noted."""
        self.health.busy_since_s = self._clock_s()
        try:
            self._tier.write(extent, batch)
        except TierIOError as error:
            log.error("file tier: %s", error)
            self._tier.mark_bad(extent)
            with self._layer.lock:
                self._layer.counters.add("bad_sectors", extent.sectors)
            self.health.failed(str(error), self._clock_s())
            return False
        finally:
            self.health.busy_since_s = 0.0
        self.health.succeeded()
        with self._layer.lock:
            self._layer.counters.add("file_write_ops")
            self._layer.counters.add("file_written_bytes", batch.sectors * SECTOR_SIZE)
        return True

    def _commit(self, extent: Extent, cause: str) -> int:
        """Publish the words of a written batch; return how many slots took them."""
        moved = 0
        for items in _steps(self._batch.items):
            with self._layer.lock:
                moved += sum(self._commit_one(extent, item, cause) for item in items)
        counters = self._layer.counters
        with self._layer.lock:
            if cause == "demote":
                counters.add("demoted_pages", moved)
                counters.add("demoted_batches")
            else:
                counters.add("cleaned_pages", moved)
        return moved

    def _commit_one(self, extent: Extent, item: BatchItem, cause: str) -> bool:
        layer = self._layer
        current = layer.table.get(item.slot)
        if current != item.expected | MOVING:
            # Rewritten or discarded; or read, which makes it warm: then it stays in memory.
            if current & ~REFERENCED == item.expected | MOVING:
                layer.table.mark(item.slot, MOVING, on=False)
            self._tier.release(PSector(extent.sector + item.start_sector), item.sectors)
            return False
        self.publish(extent, item, cause)
        if cause == "demote":
            layer.counters.add("demoted_payload_bytes", item.length)
        return True

    def publish(self, extent: Extent, item: BatchItem, cause: str) -> None:
        """Let *item*'s slot name its written blob; the caller holds the layer's lock."""
        layer = self._layer
        sector = extent.sector + item.start_sector
        word = encode_file(sector, item.length, item.codec, item.checksum)
        old = layer.table.exchange(item.slot, word, cause)
        layer.file_payload_bytes += item.length
        layer.free(old)

    def _unmark(self, items: list[BatchItem]) -> None:
        """Let the slots of a batch that was not written go on as before."""
        for step in _steps(items):
            with self._layer.lock:
                for item in step:
                    if self._layer.table.get(item.slot) & ~REFERENCED == item.expected | MOVING:
                        self._layer.table.mark(item.slot, MOVING, on=False)

    # ---- cleaning ----

    def clean(self) -> int:
        """Move the live blobs of sparse segments together while free segments are short.

        Idea: the cleaner of log-structured file systems (Rosenblum and Ousterhout, 1991).
        Returns the slots moved.
        """
        moved = 0
        while not self._stop and self.health.may_write(self._clock_s()):
            segment = self._tier.segment_to_clean()
            if segment is None:
                break
            cleaned = self._clean_segment(segment)
            moved += cleaned
            if not cleaned:  # only bad space, or blobs that came and went: no gain
                break
        return moved

    def _clean_segment(self, segment: Extent) -> int:
        try:
            view = self._tier.read(segment.sector, segment.sectors, self._scratch)
            extent = self._tier.allocate(BATCH_SECTORS, cleaning=True)
        except (TierFull, TierIOError) as error:
            log.warning("cleaning the file tier: %s", error)
            return 0
        self._batch.reset(extent.sectors)
        for slot, word, blob in self._live_blobs(segment, view):
            length, codec = blob_length(word), blob_codec(word)
            try:
                payload, _ = check_blob(blob, slot, length, codec, file_check(word), CHECK_MASK)
            except BlobCorrupt:
                continue  # its reader will be told; moving it would hide the damage
            with self._layer.lock:
                if self._layer.table.get(slot) != word:
                    continue
                self._layer.table.mark(slot, MOVING, on=True)
            self.add(self._batch, slot, payload, codec, expected=word)
        if not self._batch.items:
            self._tier.release(extent.sector, extent.sectors)
            return 0
        if not self.write(extent, self._batch):
            self._unmark(self._batch.items)
            return 0
        return self._commit(extent, "clean")

    def _live_blobs(
        self, segment: Extent, view: memoryview
    ) -> Iterator[tuple[int, int, memoryview]]:
        """Yield (slot, word, blob) of what the table still names in *segment*."""
        position = 0
        slots = self._layer.table.slots
        while position < segment.sectors:
            found = peek(view[position * SECTOR_SIZE :])
            step = 1
            if found is not None and found[0] < slots:
                slot, sectors = found
                with self._layer.lock:
                    word = self._layer.table.get(slot)
                here = word & TAG_MASK == Tag.FILE and (
                    file_sector(word) == segment.sector + position
                )
                if here and not word & MOVING and sectors == blob_sectors(blob_length(word)):
                    yield slot, word, view[position * SECTOR_SIZE :][: sectors * SECTOR_SIZE]
                    step = sectors
            position += step


def _steps(items: list[BatchItem]) -> Iterator[list[BatchItem]]:
    for start in range(0, len(items), COMMIT_STEP):
        yield items[start : start + COMMIT_STEP]

"""Demotion: cold blobs of the pool go down to the next tier, in a thread of its own.

The pool is kept between two watermarks. Cold blobs are copied into one batch, the batch is
written in one piece, and only then are the new words published; a slot that was read,
rewritten or discarded meanwhile keeps what it has and the copy is dropped (I3). When a write
fails, the pages are still in memory: demotion stops, tries again after a growing pause, and
says so. The same thread keeps the tier clean.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from swapfs.errors import TierFull
from swapfs.tiers.base import READ_SLACK_BYTES, LowerTier
from swapfs.tiers.blob import Batch
from swapfs.vlayer.blob_writer import BATCH_BYTES as BATCH_BYTES
from swapfs.vlayer.blob_writer import BATCH_SECTORS, BlobWriter
from swapfs.vlayer.cleaning import Cleaner
from swapfs.vlayer.clock import ClockHand
from swapfs.vlayer.entry import MOVING, blob_codec, blob_length
from swapfs.vlayer.health import Health
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.progress import WAIT_S

log = logging.getLogger(__name__)

SCRATCH_BYTES: Final = BATCH_BYTES + READ_SLACK_BYTES
_LOOK_AGAIN_S: Final = 1.0
_PAGES_WAITED_FOR: Final = 256
"""Demoted for one who waits: a short batch."""


class Writeback:
    """Moves blobs of *layer* to *tier*, and about in it.

    :param batch_view: page aligned, BATCH_BYTES long; only the demoting thread uses it
    :param scratch: page aligned, SCRATCH_BYTES long; likewise
    :param high_bytes: demotion starts when the pool uses more
    :param low_bytes: and stops when it uses no more than this
    :param wait_s: how long those who wait for the tier do so while nothing gets on
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
        wait_s: float = WAIT_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        assert low_bytes < high_bytes
        self.writer = BlobWriter(layer, tier, clock_s, wait_s)
        self.high_bytes = high_bytes
        self.low_bytes = low_bytes
        self._layer = layer
        self._tier = tier
        self._batch = Batch(batch_view[:BATCH_BYTES], tier.seal)
        self._hand = ClockHand(layer)
        self._cleaner = Cleaner(layer, tier, self.writer, self._batch, scratch, clock_s)
        self._clock_s = clock_s
        self._wake = threading.Event()
        self._stop = False
        self._requests: queue.SimpleQueue[tuple[int, Callable[[int], None]]] = queue.SimpleQueue()
        self._rounds: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._tell: Callable[[int], None] | None = None

    @property
    def health(self) -> Health:
        """Whether the tier takes writes."""
        return self.writer.health

    @property
    def newest_sequence(self) -> int:
        """The sequence number of the newest blob."""
        return self.writer.newest_sequence

    # ---- the thread ----

    def run(self) -> None:
        """Demote whenever the pool is above the high watermark, until ``stop``."""
        while not self._stop:
            pause_s = self.health.retry_at_s - self._clock_s()
            self._wake.wait(timeout=pause_s if pause_s > 0 else _LOOK_AGAIN_S)
            self._wake.clear()
            rounds = self._rounds_wanted()
            try:
                self.balance()
                self._serve_requests()
                self.clean()
            except Exception:  # the thread must outlive a bug: without it the pool fills
                log.exception("writeback failed")
                with self._layer.lock:
                    self._layer.counters.add("failed_demotions")
                self.health.failed("internal error", self._clock_s())
            self._end_rounds(rounds)
        self._serve_requests()
        self._end_rounds(self._rounds_wanted())

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

    def want_round(self) -> bool:
        """Have the thread demote and clean, under way until it has; False: it has been stopped."""
        if self._stop:
            return False
        self.writer.progress.begin()
        self._rounds.put(None)
        self._wake.set()
        return True

    def _rounds_wanted(self) -> int:
        wanted = 0
        while not self._rounds.empty():
            self._rounds.get()
            wanted += 1
        return wanted

    def _end_rounds(self, rounds: int) -> None:
        for _ in range(rounds):
            self.writer.progress.end()

    def wait_for_demotion(self, timeout_s: float) -> bool:
        """Have the thread demote, and wait until something went down, whatever for.

        False: nothing can, or time is up. One caller at a time.
        """
        moved: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._tell = moved.put  # it may have much to do before it comes to the request
        self.request(_PAGES_WAITED_FOR, moved.put)
        try:
            return moved.get(timeout=timeout_s) > 0
        except queue.Empty:
            return False
        finally:
            self._tell = None

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
        while moved < pages and not self._stop:
            demoted = self.demote_batch(pages - moved)
            if not demoted:
                break
            moved += demoted
        return moved

    def demote_batch(self, pages_max: int = BATCH_SECTORS) -> int:
        """Write one batch of cold blobs down; return how many slots now live there.

        0 when nothing is cold, there is no room, or writes fail and it is too early to try.
        """
        if not self.writer.may_write():
            return 0
        try:
            extent = self.writer.allocate(BATCH_SECTORS)
        except TierFull:
            return 0
        batch, counters = self._batch, self._layer.counters
        batch.reset(extent.sectors)
        try:
            self._collect(pages_max)
        except BaseException:
            self.writer.drop(extent, batch)
            raise
        if not batch.items:
            self.writer.drop(extent, batch)
            return 0
        if not self.writer.write_copies(extent, batch):
            with self._layer.lock:
                counters.add("failed_demotions")
            return 0
        taken = self.writer.commit(extent, batch, "demote")
        with self._layer.lock:
            counters.add("demoted_pages", len(taken))
            counters.add("demoted_payload_bytes", sum(item.length for item in taken))
            counters.add("demoted_batches")
        if taken and (tell := self._tell):
            tell(len(taken))
        return len(taken)

    def _collect(self, pages_max: int) -> None:
        """Copy cold blobs into the batch and mark their slots as moving."""
        lock = self._layer.lock
        with lock:
            for victims in self._hand.victims():
                found = len(self._batch.items)
                for slot, word in victims:
                    if lock.contended() and len(self._batch.items) > found:
                        self._hand.back(slot)  # a request waits: the rest comes in the next step
                        break
                    full = not self._batch.fits(blob_length(word))
                    if full or len(self._batch.items) >= pages_max:
                        self._hand.back(slot)
                        return
                    self.writer.add(
                        self._batch, slot, self._layer.blob(word), blob_codec(word), expected=word
                    )
                    self._layer.table.mark(slot, MOVING, on=True)
                lock.resched()

    def clean(self) -> int:
        """Clean the tier while free segments are short; return the slots moved."""
        return self._cleaner.run(lambda: not self._stop)

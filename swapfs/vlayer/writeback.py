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
from collections.abc import Callable, Sequence
from typing import Final

from swapfs.region.layout import ZSPAGE_BYTES
from swapfs.tiers.base import Staging
from swapfs.tiers.sector_tier import CLEANING_SCRATCH_BYTES
from swapfs.vlayer.blob_writer import BATCH_BYTES as BATCH_BYTES
from swapfs.vlayer.blob_writer import BlobWriter
from swapfs.vlayer.choice import Chooser
from swapfs.vlayer.cleaning import Cleaner
from swapfs.vlayer.compaction import Compactor
from swapfs.vlayer.drains import Drains
from swapfs.vlayer.entry import blob_codec, blob_length, is_raw
from swapfs.vlayer.exports import Export
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.mover import Mover
from swapfs.vlayer.progress import WAIT_S

log = logging.getLogger(__name__)

SCRATCH_BYTES: Final = CLEANING_SCRATCH_BYTES
_LOOK_AGAIN_S: Final = 1.0
_NO_LIMIT: Final = 1 << 30
_PAGES_WAITED_FOR: Final = 256
"""Demoted for one who waits: a short batch."""


_Group = Sequence[Export]


class Writeback:
    """Moves blobs of the pool of *layer* down its stack, and has the tiers cleaned.

    :param batch_view: BATCH_BYTES long; only the demoting thread uses it
    :param scratch: page aligned, SCRATCH_BYTES long; likewise
    :param high_bytes: demotion starts when the pool uses more
    :param low_bytes: and stops when it uses no more than this
    :param wait_s: how long those who wait for the tier do so while nothing gets on
    :param chooser: says what goes down; without one, the default policy
    :param compactor: moves blobs together where that makes the room; None: nobody does
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        batch_view: memoryview,
        scratch: memoryview,
        *,
        high_bytes: int,
        low_bytes: int,
        wait_s: float = WAIT_S,
        clock_s: Callable[[], float] = time.monotonic,
        chooser: Chooser | None = None,
        compactor: Compactor | None = None,
    ) -> None:
        assert low_bytes < high_bytes
        self.writer = BlobWriter(layer, clock_s, wait_s)
        self.high_bytes = high_bytes
        self.low_bytes = low_bytes
        self._layer = layer
        self._mover = Mover(layer, self.writer, Staging(batch_view[:BATCH_BYTES]))
        self.drains = Drains(layer, self._mover, scratch, clock_s)
        self.chooser = chooser or Chooser(layer)
        self._compactor = compactor
        self._cleaner = Cleaner(layer, self.writer, self._mover, scratch, clock_s)
        self._clock_s = clock_s
        self._wake = threading.Event()
        self._stop = False
        self._requests: queue.SimpleQueue[tuple[int, Callable[[int], None]]] = queue.SimpleQueue()
        self._rounds: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._tell: Callable[[int], None] | None = None

    @property
    def newest_sequence(self) -> int:
        """The sequence number of the newest blob."""
        return self.writer.newest[0]

    # ---- the thread ----

    def run(self) -> None:
        """Demote whenever the pool is above the high watermark, until ``stop``."""
        while not self._stop:
            self._wake.wait(timeout=self._pause_s())
            self._wake.clear()
            rounds = self._rounds_wanted()
            try:
                self.chooser.hear()
                self.balance()
                self._serve_requests()
                self.clean()
                if self.drains.step(lambda: not self._stop):
                    self._wake.set()
            except Exception:  # the thread must outlive a bug: without it the pool fills
                log.exception("writeback failed")
                with self._layer.lock:
                    self._layer.counters.add("failed_demotions")
                for level in self._layer.stack:
                    level.health.failed("internal error", self._clock_s())
            self._end_rounds(rounds)
        self._serve_requests()
        self._end_rounds(self._rounds_wanted())

    def _pause_s(self) -> float:
        """Return how long to sleep unless woken: until a tier that failed may be tried again."""
        due_s = [level.health.retry_at_s - self._clock_s() for level in self._layer.stack]
        return min((each for each in due_s if each > 0), default=_LOOK_AGAIN_S)

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
        if self._layer.pool.used_bytes <= self.high_bytes or not self._layer.stack:
            return
        if not self._wake.is_set():
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

    def demote_if_it_gets_on(self, pages: int) -> int:
        """Have the thread demote about *pages* pages, and wait for that; return how many it did.

        0 also if nothing gets on any more, as on a disk that hangs.
        """
        moved: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.request(pages, moved.put)
        progress = self.writer.progress
        while True:
            mark = progress.mark()
            try:
                return moved.get(timeout=progress.wait_s)
            except queue.Empty:
                if progress.mark().ended == mark.ended:
                    return 0

    def wake(self) -> None:
        """Have the thread look at once whether there is anything to do."""
        self._wake.set()

    def stop(self) -> None:
        """Let ``run`` return after the batch in hand."""
        self._stop = True
        self._wake.set()

    # ---- demotion ----

    def balance(self) -> int:
        """Demote down to the low watermark if the pool is above the high one; return pages."""
        moved, packed = 0, False
        if self._layer.pool.used_bytes <= self.high_bytes:
            return 0
        while self._layer.pool.used_bytes > self.low_bytes and not self._stop:
            if packed := not packed and self.pack():  # in turns, so that something goes down too
                continue
            demoted = self.demote_batch()
            if not demoted:
                break
            moved += demoted
        return moved

    def pack(self) -> bool:
        """Move blobs together if they would then be below the low watermark; were any?

        Other orders than that of the slots leave holes everywhere: LRU took 3000 pages down for the
        room of 500.
        """
        if self._compactor is None or self._layer.pool.object_bytes > self.low_bytes:
            return False
        above = self._layer.pool.used_bytes - self.low_bytes
        return self._compactor.pack_if_worth(max(1, -(-above // ZSPAGE_BYTES))) > 0

    def demote(self, pages: int) -> int:
        """Demote about *pages* pages now, whatever the watermarks say; return how many."""
        moved = 0
        while moved < pages and not self._stop:
            demoted = self.demote_batch(pages - moved)
            if not demoted:
                break
            moved += demoted
        return moved

    def demote_batch(self, pages_max: int = _NO_LIMIT) -> int:
        """Write one batch of cold blobs down; return how many slots now live there.

        0 when nothing is cold, there is no room, or writes fail and it is too early to try.
        """
        self.chooser.hear()
        for group in self.chooser.groups():
            if self.begin_batch(pages_max, group) and (moved := self.end_batch()):
                return moved
        return 0

    def begin_batch(self, pages_max: int = _NO_LIMIT, group: _Group | None = None) -> bool:
        """Copy one batch of cold blobs; False: none can go down now. Else ``end_batch`` follows.

        They are pages of *group*, whose exports may use the same tiers; None: of the first.
        """
        mover, chooser = self._mover, self.chooser
        if group is None:
            chooser.hear()
            group = chooser.groups()[0]
        if not any(map(mover.begin, chooser.targets(self._layer.exports.levels(group)))):
            return False
        try:
            _collect(self._layer, mover, self.chooser, group, pages_max)
        except BaseException:
            mover.abort()
            raise
        return True

    def end_batch(self) -> int:
        """Write what was copied; return how many slots now live there."""
        mover, counters = self._mover, self._layer.counters
        found = bool(mover.items)
        taken = mover.finish("demote")
        if taken is None:
            with self._layer.lock:
                counters.add("failed_demotions")
            return 0
        if not found:
            return 0
        with self._layer.lock:
            counters.add("demoted_pages", len(taken))
            counters.add("demoted_raw_pages", sum(is_raw(item.expected) for item in taken))
            counters.add("demoted_payload_bytes", sum(item.length for item in taken))
            counters.add("demoted_batches")
            for item in taken:
                self._layer.exports.at(item.slot).figures.add("demoted_pages")
        if taken and (tell := self._tell):
            tell(len(taken))
        return len(taken)

    def clean(self) -> int:
        """Clean the tiers where free space is short; return the slots moved."""
        return self._cleaner.run(lambda: not self._stop)


def _collect(
    layer: VirtualSlotLayer,
    mover: Mover,
    chooser: Chooser,
    group: Sequence[Export],
    pages_max: int,
) -> None:
    """Copy what the policy offers of *group*, and mark the slots as moving."""
    lock = layer.lock
    with lock:
        for slot, word in chooser.victims(group):
            full = not mover.fits(blob_length(word))
            if full or len(mover.items) >= pages_max:
                chooser.back(slot)
                return
            mover.copy(slot, word, blob_codec(word), layer.blob(word))
            lock.resched()

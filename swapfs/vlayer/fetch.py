"""Reading slots whose blobs are in a tier below; runs in worker threads, never in the loop.

Blobs that a tier has side by side are read in one go, and reads of one blob share one read
(``single_flight``). A read never trusts a place after it let the lock go: the header and
checksum tell whether the bytes are the blob that the word named, and if they are not, the word
is looked at again before anything is called damaged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from swapfs.core._core import EVENT_LOAD, EVENT_REFAULT, sign
from swapfs.errors import BlobCorrupt, TierError
from swapfs.tiers.base import Failure, Traffic
from swapfs.tiers.pool import NO_PLACE
from swapfs.tiers.sectors import READ_SLACK_BYTES
from swapfs.units import CLUSTER_SLOTS, PAGE_SHIFT, PAGE_SIZE
from swapfs.vlayer.entry import (
    BACKING_MASK,
    FLAGS,
    HEAT_MASK,
    HEAT_ONE,
    REF_SHIFT,
    blob_codec,
    encode_pool,
    is_below,
    tier_of,
)
from swapfs.vlayer.layer import SlotDamaged, VirtualSlotLayer
from swapfs.vlayer.prefetch import Prefetcher
from swapfs.vlayer.single_flight import GIVEN_UP, Flight, Run, SingleFlight
from swapfs.vlayer.stack import Level

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 256 * 1024
"""The most that one disk read asks for."""
SCRATCH_BYTES: Final = WINDOW_BYTES + READ_SLACK_BYTES
"""Scratch that each worker brings, page aligned."""
_SLOT_MASK: Final = CLUSTER_SLOTS - 1
_NO_TIER: Final = Failure(BlobCorrupt, "the tier that had it is gone")
_NO_PAGE: Final = Failure(BlobCorrupt, "its blob does not decompress to a page")


class Fetcher:
    """Loads runs of slots, wherever they are.

    :param promote: (slot, was it refaulted) -> may its blob go back to the pool? None: never
    :param newest_sequence: the number of the newest blob: one that was written no more than
        a pool full of pages ago counts as refaulted
    :param prefetcher: brings pages along that lie beside those asked for; None: nobody does
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        *,
        promote: Callable[[int, bool], bool] | None = None,
        newest_sequence: Callable[[], int] = lambda: 0,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self._layer = layer
        self._unpack = layer.decoder.unpack
        self._promote = promote
        self._newest_sequence = newest_sequence
        self._prefetcher = prefetcher
        self._recent_blobs = layer.pool.limit_bytes // PAGE_SIZE
        self._reads = SingleFlight()

    @property
    def followers(self) -> int:
        """How many wait for a disk read that another thread makes."""
        return self._reads.followers

    def load(
        self,
        slot: int,
        count: int,
        out: memoryview,
        scratch: memoryview,
        on_disk: Callable[[], None] = lambda: None,
    ) -> int:
        """Fill *out* with the pages of *count* slots from *slot* on; blocks.

        Returns how many pages are good, from the first on; fewer than *count* means that the
        next slot is damaged or unreadable.

        :param on_disk: called before each wait for the disk
        :raises TierError: the first slot is (BlobCorrupt, TierIOError)
        :raises SlotDamaged: the first slot is, in memory
        """
        done = 0
        while done < count:
            try:
                done += self._layer.load_run(slot + done, count - done, out, done << PAGE_SHIFT)
                if done < count and (words := self._words_below(slot + done, count - done)):
                    on_disk()
                    done += self._load_run(
                        slot + done, words, count - done, out[done << PAGE_SHIFT :], scratch
                    )
            except (TierError, SlotDamaged):
                if done == 0:
                    raise
                return done
        return done

    def _words_below(self, slot: int, count: int) -> list[int]:
        """Return the words of *slot* and those after it that are best read at once.

        They may be more than *count*: those that come along.
        """
        with self._layer.lock:
            if self._prefetcher is not None:
                count += self._prefetcher.wanted(slot, count)
            words = self._layer.table.run(slot, min(count, CLUSTER_SLOTS - (slot & _SLOT_MASK)))
        if not is_below(words[0]):
            return []
        if len(words) == 1:
            return words
        first, refs = words[0] & BACKING_MASK, []
        for word in words:
            if word & BACKING_MASK != first:
                break
            refs.append(word >> REF_SHIFT)
        level = self._layer.stack.get(tier_of(first))
        return words[: level.tier.span(refs, WINDOW_BYTES) if level is not None else 1]

    # ---- one disk read ----

    def _load_run(
        self, slot: int, words: list[int], count: int, out: memoryview, scratch: memoryview
    ) -> int:
        """Load at least one page from the disk; 0 when the first slot has changed meanwhile.

        Of *words* the first *count* were asked for.
        """
        run = self._reads.board(slot, words)
        if run.follows:
            self._reads.wait(run)
        else:
            self._read_and_land(run, scratch)
        done = self._deliver(run, run.flights[:count], out)
        if self._prefetcher is not None and done == count < len(run.flights):
            with self._layer.lock:
                self._prefetcher.take(slot + count, run.flights[count:])
        return done

    def _read_and_land(self, run: Run, scratch: memoryview) -> None:
        try:
            self._read_run(run, scratch)
        except BaseException:  # nobody may wait for these flights for ever
            run.give_up()
            raise
        finally:
            self._reads.land(run)

    def _read_run(self, run: Run, scratch: memoryview) -> None:
        """Note in each flight of *run* its bytes, in *scratch*, or why there are none."""
        flights, traffic = run.flights, Traffic(0, 0)
        with self._layer.lock:
            level = self._layer.stack.get(tier_of(flights[0].word))
            if level is None:
                flights[0].failure = _NO_TIER
                return
            level.users += 1
        began_s = time.monotonic()
        try:
            traffic = level.tier.load(flights, scratch)
        finally:
            self._count_read(level, traffic, time.monotonic() - began_s)

    def _count_read(self, level: Level, traffic: Traffic, took_s: float) -> None:
        with self._layer.lock:
            level.users -= 1
            level.reading.note(took_s)
            self._layer.counters.add("file_read_ops", traffic.reads)
            self._layer.counters.add("file_read_bytes", traffic.read_bytes)
            level.figures.add("reads", traffic.reads)
            level.figures.add("read_bytes", traffic.read_bytes)

    # ---- what becomes of it ----

    def _deliver(self, run: Run, flights: Sequence[Flight], out: memoryview) -> int:
        """Put the pages of *flights* of *run* into *out*, up to the first that is none; how many.

        0 when the first is none and its slot has changed meanwhile; else that one's error.
        """
        payloads: list[bytes | memoryview] = []
        failure = None
        for flight in flights:
            payload, failure = run.outcome(flight)
            at = len(payloads) << PAGE_SHIFT
            if failure is None and not self._unpack(payload, blob_codec(flight.word), out, at):
                failure = _NO_PAGE
            if failure is not None:
                break
            payloads.append(payload)
        if failure is not None and not payloads:
            return self._verdict(run.slot, run.flights[0].word, failure)
        self.account(run, payloads)
        return len(payloads)  # the next round decides about the one after them

    def account(self, run: Run, payloads: list[bytes | memoryview]) -> None:
        """Count pages that were delivered, and bring them back to the pool if that is wanted."""
        layer, flights = self._layer, run.flights[: len(payloads)]
        with layer.lock:
            layer.counters.add("read_file_pages", len(flights))
            if (level := layer.stack.get(tier_of(flights[0].word))) is not None:
                level.figures.add("read_pages", len(flights))
            oldest = self._newest_sequence() - self._recent_blobs
            refaulted = sum(flight.sequence >= oldest for flight in flights)
            layer.counters.add("refaulted_pages", refaulted)
            self._log_reads(run.slot, flights, payloads, oldest)
            for index, flight in enumerate(flights):
                if index:
                    layer.lock.resched()
                slot, word = run.slot + index, flight.word
                current = layer.table.get(slot)
                if (current ^ word) & ~FLAGS:
                    continue
                near = flight.sequence >= oldest
                if self._promote is not None and self._promote(slot, near):
                    self._bring_back(slot, word, payloads[index])
                elif current & HEAT_MASK != HEAT_MASK:  # what is warm does not sink
                    layer.table.warm(slot)

    def _log_reads(
        self,
        slot: int,
        flights: Sequence[Flight],
        payloads: Sequence[bytes | memoryview],
        oldest: int,
    ) -> None:
        """Note pages in the access log that were read from *slot* on."""
        log = self._layer.log
        if log is None:
            return
        for index, flight in enumerate(flights):
            word, length = flight.word, len(payloads[index])
            log.add(EVENT_LOAD, slot + index, word, word, length)
            if flight.sequence >= oldest:
                log.add(EVENT_REFAULT, slot + index, word, word, length)

    def _bring_back(self, slot: int, word: int, payload: bytes | memoryview) -> None:
        layer = self._layer
        length = len(payload)
        place = layer.pool.allocate(length)
        if place == NO_PLACE:
            return
        layer.put(place, payload)
        new = sign(encode_pool(place, length, blob_codec(word)), payload) | HEAT_ONE
        layer.free(slot, layer.table.exchange(slot, new, "promote"))
        layer.counters.add("promoted_pages")
        if (level := layer.stack.get(tier_of(word))) is not None:
            level.figures.add("moved_out_pages")

    def _verdict(self, slot: int, word: int, failure: Failure) -> int:
        """Return 0 if *slot* has changed since *word* was read, for another look; else raise.

        Also if nobody has read it: then the other look will.

        :raises TierError: what *failure* says
        """
        layer = self._layer
        with layer.lock:
            if failure is GIVEN_UP or (layer.table.get(slot) ^ word) & ~FLAGS:
                return 0
            corrupt = failure.kind is BlobCorrupt
            layer.counters.add("failed_read_checksum" if corrupt else "failed_read_io")
            if (level := layer.stack.get(tier_of(word))) is not None:
                level.figures.add("read_errors")
        log.error("slot %d in tier %d: %s", slot, tier_of(word), failure.reason)
        raise failure.kind(failure.reason)  # a new one, which no frame of its traceback holds

"""Playing a trace over a slot layer in memory: what a configuration would have made of it.

The layer, the mover and the policy are those of a server; only the pages are not there. Stores,
loads and discards are done again (in C as far as nothing is to be decided), and what became of
them when the trace was recorded is left out. Demotion is done at once where a server's thread
would do it soon after, so a replay is the same each time.
"""

from __future__ import annotations

import gc
import mmap
import time
from array import array
from collections.abc import Callable
from typing import Final

from swapfs.core._core import HEAT_ONE, sign
from swapfs.errors import ConfigError, RegionError
from swapfs.lab.length_tier import LengthTier, length_of, sequence_of
from swapfs.lab.setup import Outcome as Outcome
from swapfs.lab.setup import Setup as Setup
from swapfs.lab.trace import GAP, Trace
from swapfs.policy import Policy
from swapfs.region.access_log import SLOT_MASK, EventKind
from swapfs.region.counters import COUNTER_INDEX
from swapfs.region.layout import ZSPAGE_BYTES, Region
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer import writeback
from swapfs.vlayer.capacity import geometry_for
from swapfs.vlayer.choice import Chooser
from swapfs.vlayer.compaction import Compactor
from swapfs.vlayer.entry import (
    BACKING_MASK,
    REF_SHIFT,
    Codec,
    Kind,
    blob_codec,
    encode_pool,
    is_below,
    ref_of,
    tier_of,
)
from swapfs.vlayer.fetch import WINDOW_BYTES, Fetcher
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.packing import Packer
from swapfs.vlayer.prefetch import Prefetcher
from swapfs.vlayer.single_flight import Flight, Run
from swapfs.vlayer.stack import Stack
from swapfs.vlayer.writeback import Writeback

STEP_EVENTS: Final = 64
"""Events between two looks at the watermark: a swap-out request has some 100 pages."""
HEAR_EVENTS: Final = 8192
HEAR_EVENTS_MIN: Final = 64
SAMPLES: Final = 500
LOG_BYTES: Final = 4 * MiB
_POOL_READS: Final = COUNTER_INDEX["read_pool_pages"]
_PAGES_AT_ONCE: Final = 256
_REQUEST_GAP_NS: Final = 50_000
"""Between two pages of one request in the log less, and more to the next that waits for a disk."""


class _Drafted(Packer):
    """Takes drafts that were made elsewhere."""

    def pack(self, source: memoryview, position: int, count: int) -> None:
        pass


class Player:
    """One configuration, for one trace.

    :raises ConfigError: there is no memory for it
    """

    def __init__(self, trace: Trace, setup: Setup, kind: type[Policy]) -> None:
        self._trace = trace
        pool_bytes = max(setup.pool_bytes // ZSPAGE_BYTES, 4) * ZSPAGE_BYTES
        try:
            region = Region.create(geometry_for(trace.meta.size_bytes, pool_bytes, LOG_BYTES))
        except RegionError as error:
            raise ConfigError("pool", str(error)) from error
        self._region = region
        self._tiers = [LengthTier(size) for size in setup.tier_bytes]
        stack = Stack.of(*self._tiers)
        self.layer = layer = VirtualSlotLayer(region, stack)
        layer.counters.add("server_starts")
        self.chooser = Chooser(layer, kind, raw_first=setup.raw_first)
        self._compactor = Compactor(layer)
        self._down = Writeback(
            layer,
            memoryview(mmap.mmap(-1, writeback.BATCH_BYTES)),
            memoryview(mmap.mmap(-1, writeback.SCRATCH_BYTES)),
            high_bytes=pool_bytes * setup.high_percent // 100,
            low_bytes=pool_bytes * setup.low_percent // 100,
            chooser=self.chooser,
            compactor=self._compactor,
        )
        self._promote = setup.promote
        self._batch_ns = setup.batch_ns
        self._due_ns = 0
        """When the batch that is under way has gone down; 0: none is."""
        self._fetcher = Fetcher(
            layer, promote=self._brings_back, newest_sequence=lambda: self._down.newest_sequence
        )
        self._prefetcher: Prefetcher | None = None
        if setup.prefetch:
            self._prefetcher = Prefetcher(
                layer, self.chooser.prefetch, setup.prefetch, self._has_room
            )
        self._packer = _Drafted(1)
        self._blank = memoryview(bytes(PAGE_SIZE))
        self.outcome = Outcome(policy=self.chooser.name, pool_bytes=pool_bytes)

    def close(self) -> None:
        """Let go of the memory."""
        self._region.close()

    def _has_room(self) -> bool:
        return self.layer.pool.used_bytes < self._down.high_bytes

    def _brings_back(self, slot: int, refaulted: bool) -> bool:
        if not self._has_room():
            return False
        return self.chooser.brings_back(slot, refaulted=refaulted, otherwise=self._promote)

    # ---- the trace ----

    def run(self, progress: Callable[[int], None] = lambda events: None) -> Outcome:
        """Play all of it; return what became of it.

        :raises ConfigError: its events are not those of a file of its size
        """
        outcome, collects = self.outcome, gc.isenabled()
        began_s, every = time.perf_counter(), max(1, self._trace.count // SAMPLES)
        gc.disable()  # as in a server, and for the same reason: the layer makes no cycles
        try:
            for words in self._trace.chunks(max(HEAR_EVENTS_MIN, min(every, HEAR_EVENTS))):
                self._play(words)
                outcome.events += len(words) // 2
                self.chooser.hear()
                self._note(every, words)
                progress(outcome.events)
        except ValueError as error:
            raise ConfigError(str(self._trace.path), f"cannot be played: {error}") from error
        finally:
            if collects:
                gc.enable()
        self._end_batch()
        outcome.seconds = time.perf_counter() - began_s
        return self._finish()

    def _finish(self) -> Outcome:
        outcome, get = self.outcome, self.layer.counters.get
        outcome.misses = get("read_file_pages")
        outcome.loads = get("read_pool_pages") + outcome.misses
        outcome.refaults = get("refaulted_pages")
        outcome.demoted = get("demoted_pages")
        outcome.promoted = get("promoted_pages")
        outcome.prefetched = get("prefetched_pages")
        outcome.prefetch_used = get("prefetch_used_pages")
        outcome.written_bytes = get("file_written_bytes")
        outcome.policy_failures = get("policy_failures")
        outcome.tiers = [self.layer.table.slots_in(n) for n in range(1, len(self._tiers) + 1)]
        return outcome

    def _note(self, every: int, words: array[int]) -> None:
        """Note how much memory is in use, some SAMPLES times."""
        outcome = self.outcome
        if outcome.events >= every * len(outcome.ram) and len(words):
            passed_ns = max(0, words[-1] - self._trace.meta.monotonic_ns)
            outcome.ram.append((round(passed_ns / 1e9, 3), self.layer.pool.used_bytes))
            outcome.below.append(self._pages_below())

    def _pages_below(self) -> int:
        return sum(self.layer.table.slots_in(n) for n in range(1, len(self._tiers) + 1))

    def _play(self, words: array[int]) -> None:
        layer, pool, high = self.layer, self.layer.pool, self._down.high_bytes
        play, blank, counts = layer.writer.play, self._blank, layer.table.counts
        at, events, outcome = 0, len(words) // 2, self.outcome
        while at < events:
            end = min(at + STEP_EVENTS, events)
            with layer.lock:
                at = play(words, at, end, blank, _POOL_READS)
            if at < end:
                self._decide(words, at)
                at += 1
            resident = counts[2] + counts[3]
            if resident > outcome.peak_pages:
                outcome.peak_pages = resident
            if self._batch_ns:
                self._demote_until(words[2 * at - 1])
            elif pool.used_bytes > high and self._tiers:
                self._down.balance()

    def _demote_until(self, now_ns: int) -> None:
        """Do what a thread would have done until *now_ns*, of which each batch takes a while."""
        down, pool = self._down, self.layer.pool
        while self._tiers:
            begin_ns, limit = now_ns, down.high_bytes
            if self._due_ns:
                if now_ns < self._due_ns:
                    return
                begin_ns, limit = self._due_ns, down.low_bytes
                self._end_batch()
            if pool.used_bytes <= limit or (down.pack() and pool.used_bytes <= down.low_bytes):
                return
            if not down.begin_batch():
                return
            self._due_ns = begin_ns + self._batch_ns

    def _end_batch(self) -> bool:
        """Let the batch that is under way go down now; False: none is."""
        if not self._due_ns:
            return False
        self._due_ns = 0
        self._down.end_batch()
        return True

    # ---- what C leaves ----

    def _decide(self, words: array[int], at: int) -> None:
        word = words[2 * at]
        kind, slot = word >> 40 & 15, word & SLOT_MASK
        assert self.layer.log is not None
        self.layer.log.set_clock(words[2 * at + 1])
        if kind == EventKind.STORE:
            self._store(slot, word >> 44 & 0xFF)
        elif kind == EventKind.LOAD:
            self._load(slot)
            if self._prefetcher is not None and not _goes_on(words, at, slot):
                self._prefetch(self._prefetcher, slot)
        elif kind == EventKind.DISCARD:
            self.layer.discard_run(slot, 1)
        else:
            assert kind != GAP

    def _store(self, slot: int, size_class: int) -> None:
        self._packer.drafts[0] = self._draft(size_class)
        for make_room in (self._end_batch, self._balance, self._demote, self._compact, None):
            if self.layer.store_run(slot, self._blank, 0, 1, self._packer):
                return
            if make_room is None or (not make_room() and make_room is self._compact):
                break
        self.outcome.refused += 1

    def _draft(self, size_class: int) -> int:
        sizes = self._trace.meta.class_sizes
        if size_class >= len(sizes):
            return Kind.SAME
        length = min(sizes[size_class], PAGE_SIZE)
        codec = Codec.RAW if length == PAGE_SIZE else Codec.LZ4
        return sign(encode_pool(0, length, codec), self._blank[:length]) | HEAT_ONE

    def _balance(self) -> int:
        return self._down.balance() if self._tiers else 0

    def _demote(self) -> int:
        return self._down.demote(_PAGES_AT_ONCE) if self._tiers else 0

    def _compact(self) -> int:
        return int(self._compactor.make_room(1))

    def _load(self, slot: int) -> None:
        with self.layer.lock:
            word = self.layer.table.get(slot)
        assert is_below(word)
        flight = self._flight(slot, word)
        self._fetcher.account(Run(slot, [flight]), [flight.payload])

    def _flight(self, slot: int, word: int) -> Flight:
        ref = ref_of(word)
        blob = self._blank[: length_of(ref)]
        return Flight(slot, ref, blob_codec(word), blob, sequence_of(ref), None, word)

    def _prefetch(self, prefetcher: Prefetcher, slot: int) -> None:
        """Bring up what follows *slot*, the last of a request that was read from below."""
        table = self.layer.table
        with self.layer.lock:
            first = table.get(slot)
            count = min(prefetcher.wanted(slot, 1), -(slot + 1) % CLUSTER_SLOTS)
            if not is_below(first) or not count:
                return
            words = [first]
            for word in table.run(slot + 1, count):
                if (word ^ first) & BACKING_MASK:
                    break
                words.append(word)
            tier = self.layer.stack[tier_of(first)].tier
            words = words[: tier.span([word >> REF_SHIFT for word in words], WINDOW_BYTES)]
            flights = [self._flight(slot + n, word) for n, word in enumerate(words)]
            prefetcher.take(slot + 1, flights[1:])


def _goes_on(words: array[int], at: int, slot: int) -> bool:
    """Whether the request that read *slot* goes on: its pages stand side by side in a trace."""
    for following in range(2 * at + 2, len(words), 2):
        word = words[following]
        if word >> 40 & 15 != EventKind.REFAULT:
            near = words[following + 1] - words[2 * at + 1] < _REQUEST_GAP_NS
            return near and word >> 40 & 15 == EventKind.LOAD and word & SLOT_MASK == slot + 1
    return False

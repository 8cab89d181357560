"""A slot layer with everything around it, without a mount and without threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from errno import ENOSPC
from itertools import pairwise

from swapfs.core._core import ZSPAGE_SHIFT, Decoder, Recoder
from swapfs.errors import OverQuota
from swapfs.policy import Policy
from swapfs.policy.second_chance import SecondChance
from swapfs.region.export_rows import ExportRow, write_exports
from swapfs.region.layout import Geometry, Region
from swapfs.testing.blobs import aligned
from swapfs.tiers import sector_ref
from swapfs.tiers.base import Tier
from swapfs.tiers.pool.size_classes import SIZES
from swapfs.tiers.sector_tier import SectorTier
from swapfs.tiers.sectors import SectorStore
from swapfs.units import CLUSTER_SHIFT, PAGE_SIZE, SECTOR_SIZE, TIERS_MAX, PSector
from swapfs.vlayer import fetch, writeback
from swapfs.vlayer import recompress as recompress_
from swapfs.vlayer.choice import Chooser
from swapfs.vlayer.disks import make_disks
from swapfs.vlayer.entry import (
    BACKING_MASK,
    IN_POOL,
    MOVING,
    STATES,
    Backing,
    backing,
    blob_length,
    is_below,
    pool_place,
    ref_of,
    state_of,
    tier_of,
)
from swapfs.vlayer.fetch import Fetcher
from swapfs.vlayer.health import Health
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.packing import Packer
from swapfs.vlayer.prefetch import Prefetcher
from swapfs.vlayer.recode_staged import StagedRecoder
from swapfs.vlayer.recompress import Recompressor
from swapfs.vlayer.stack import Level, Stack
from swapfs.vlayer.stalled import StalledWrites
from swapfs.vlayer.write_around import WriteAround
from swapfs.vlayer.writeback import Writeback

ZSTD_LEVEL = 3


class Ticket:
    """Takes the answer of a direct write."""

    def __init__(self) -> None:
        self.results: list[int] = []
        self._answered = threading.Event()

    def reply(self, result: int, /) -> None:
        """Take bytes written, or a negative errno value."""
        self.results.append(result)
        self._answered.set()

    def wait(self, timeout_s: float = 30.0) -> int:
        """Return the answer, which another thread gives."""
        assert self._answered.wait(timeout_s), "never answered"
        return self.results[0]

    def used_file(self) -> None:
        """Hear that the answer waits for the file tier."""


AnyTier = Tier | SectorStore
"""A tier, or what a sector tier stands on."""


def stack_of(tiers: AnyTier | Sequence[AnyTier] | None) -> Stack:
    """Return the stack of *tiers*, the first to be filled first."""
    if not isinstance(tiers, Sequence):
        tiers = () if tiers is None else (tiers,)
    return Stack.of(*(t if isinstance(t, Tier) else SectorTier(t) for t in tiers))


class Harness:
    """One region of *slots* slots over *tier*, driven by hand.

    :param region: the region of an earlier harness whose server died
    :param raw_first: see ``TableEyes``
    :param recompress: what goes down goes in zstd
    :param clock_s: the writers' clock; without it, tests move ``now_s``
    """

    def __init__(
        self,
        slots: int,
        pool_bytes: int,
        tier: AnyTier | Sequence[AnyTier] | None = None,
        *,
        promote: bool = False,
        region: Region | None = None,
        wait_s: float = 0.0,
        log_bytes: int = 0,
        policy: type[Policy] = SecondChance,
        clock_s: Callable[[], float] | None = None,
        recompress: bool = False,
        raw_first: bool = False,
        prefetch: int = 0,
        exports: Sequence[ExportRow] = (),
    ) -> None:
        self.now_s = 1000.0
        self._clock_s = clock_s or (lambda: self.now_s)
        recover = region is not None
        self.region = region or Region.create(Geometry(slots * PAGE_SIZE, pool_bytes, log_bytes))
        if exports and not recover:
            write_exports(self.region.exports, exports)
        self.tier = tier[0] if isinstance(tier, Sequence) else tier
        self.stack = stack_of(tier)
        self.stack.prepare()
        self.layer = VirtualSlotLayer(self.region, self.stack)
        if recover:
            self.layer.rebuild()
        self.layer.counters.add("server_starts")  # as a server does; numbers its blobs
        view = aligned(2 * writeback.BATCH_BYTES)
        self.stalled = StalledWrites(self.layer, [view], clock_s=self._clock_s)
        self._local = threading.local()
        self.recompressor = Recompressor(
            *(self.layer, Recoder(ZSTD_LEVEL, False), aligned(recompress_.VIEW_BYTES)),
            *(self.stalled.compactor,),
            start_bytes=0,
            clock_s=self._clock_s,
        )
        if tier is None:
            return
        self.down = Writeback(
            self.layer,
            aligned(writeback.BATCH_BYTES),
            aligned(writeback.SCRATCH_BYTES),
            high_bytes=pool_bytes * 90 // 100,
            low_bytes=pool_bytes * 80 // 100,
            wait_s=wait_s,
            clock_s=self._clock_s,
            chooser=Chooser(self.layer, policy, raw_first=raw_first),
            compactor=self.stalled.compactor,
        )
        if recompress:
            self.down.writer.recoder = StagedRecoder([Recoder(ZSTD_LEVEL, False)])
        views = [aligned(writeback.BATCH_BYTES) for _ in range(2)]
        self.direct = WriteAround(
            *(self.layer, self.down, views), stalled=self.stalled, clock_s=self._clock_s
        )
        self.disks = make_disks(self.layer, self.down.writer.newest, 4)
        self._stays_below = not promote and not prefetch
        self.prefetcher = (
            Prefetcher(self.layer, self.down.chooser.prefetch, prefetch) if prefetch else None
        )
        self.fetcher = Fetcher(
            self.layer,
            promote=(lambda slot, refaulted: True) if promote else None,
            newest_sequence=lambda: self.down.newest_sequence,
            prefetcher=self.prefetcher,
        )

    @property
    def health(self) -> Health:
        """That of the first tier."""
        return next(iter(self.stack)).health

    def counter(self, name: str) -> int:
        """Return one counter."""
        return self.layer.counters.get(name)

    # ---- as data requests do it ----

    def store(self, slot: int, *pages: bytes) -> int:
        """Store pages in memory; return how many fitted."""
        source = memoryview(b"".join(pages))
        return self.layer.store_run(slot, source, 0, len(pages), Packer(len(pages)))

    def write(self, slot: int, page: bytes) -> int:
        """Store one page wherever there is room; return PAGE_SIZE or a negative errno value."""
        try:
            if self.store(slot, page):
                return PAGE_SIZE
        except OverQuota:
            return -ENOSPC
        if self.tier is None:
            ticket = Ticket()
            self.stalled.submit(ticket, PAGE_SIZE, slot, memoryview(page), 1)
            self.run_stalled()
            (answer,) = ticket.results
            return answer
        result = self.write_direct(slot, page)
        if result < 0 and self.down.clean():
            result = self.write_direct(slot, page)
        return result

    def write_direct(self, slot: int, *pages: bytes) -> int:
        """Write pages past the pool; return the answer to the request."""
        ticket = Ticket()
        size = len(pages) * PAGE_SIZE
        self.direct.submit(ticket, size, slot, memoryview(b"".join(pages)), len(pages))
        self.run_direct()
        self.run_stalled()
        self.run_direct()
        (result,) = ticket.results
        return result

    def run_direct(self) -> None:
        """Write what is packed."""
        self.direct.stop()
        self.direct.run()

    def recompress(self) -> int:
        """Put what nobody reads in between into zstd; return how many pages."""
        return sum(self.recompressor.walk() for _ in range(4))

    def run_stalled(self) -> None:
        """Serve what waits for compaction."""
        self.stalled.stop()
        self.stalled.run()

    def load(self, slot: int, count: int = 1) -> bytes:
        """Read pages, wherever they are; shorter than asked for at a slot that cannot be read."""
        out = bytearray(count * PAGE_SIZE)
        if self.tier is None:
            good = self.layer.load_run(slot, count, memoryview(out), 0)
        else:
            if not hasattr(self._local, "scratch"):
                self._local.scratch = aligned(fetch.SCRATCH_BYTES)
                self._local.page, self._local.decoder = bytearray(PAGE_SIZE), Decoder()
            of_thread = (self._local.page, self._local.decoder)
            if self._stays_below and self.disks.load(out, *of_thread, slot, count):
                return bytes(out)
            good = self.fetcher.load(slot, count, memoryview(out), self._local.scratch)
        return bytes(out[: good * PAGE_SIZE])

    def backing(self, slot: int) -> Backing:
        """Return what backs *slot*."""
        return backing(self.layer.table.get(slot))

    def sector(self, slot: int) -> PSector:
        """Return where the blob of *slot* begins in its tier, which has sectors."""
        word = self.layer.table.get(slot)
        assert is_below(word)
        return sector_ref.sector(ref_of(word))

    # ---- what must always hold ----

    def check(self) -> None:
        """Assert the region's invariants; nothing may be under way."""
        table, pool = self.layer.table, self.layer.pool
        pool.zspages.check()
        states: Counter[str] = Counter()
        places: dict[int, int] = {place: PAGE_SIZE for _, place in table.table_places()}
        pool_payload, used_clusters = 0, set()
        below: dict[int, list[int]] = {level.number: [] for level in self.stack}
        for slot, word in table.occupied_words():
            assert slot < table.slots
            assert not word & MOVING
            used_clusters.add(slot >> CLUSTER_SHIFT)
            states[state_of(word)] += 1
            if word & BACKING_MASK == IN_POOL:
                assert pool_place(word) not in places, "two words share a place"
                places[pool_place(word)] = blob_length(word)
                pool_payload += blob_length(word)
            elif is_below(word):
                below[tier_of(word)].append(ref_of(word))
        _check_exports(self.layer)
        states["empty"] = table.slots - states.total()
        assert {s: states[s] for s in STATES} == table.state_counts()
        assert used_clusters == set(table.clusters()), "a cluster without slots has a page"
        assert sum(table.below) == sum(map(len, below.values()))
        _assert_disjoint(sorted(places.items()), "pool")
        stats = pool.stats()
        assert stats.payload_bytes == pool_payload
        assert stats.table_bytes == table.table_bytes == len(used_clusters) * PAGE_SIZE
        assert pool_payload + stats.table_bytes <= stats.object_bytes <= stats.used_bytes
        for level in self.stack:
            assert len(below[level.number]) == table.slots_in(level.number)
            _check_level(level, below[level.number])


def _check_exports(layer: VirtualSlotLayer) -> None:
    """Assert that what each export has is what the table says."""
    stored: Counter[int] = Counter()
    payload: Counter[int] = Counter()
    taken: Counter[tuple[int, int]] = Counter()
    classes = layer.region.classes
    for cluster in layer.table.clusters():
        taken[layer.exports.at(cluster << CLUSTER_SHIFT).index, 0] += PAGE_SIZE
    for slot, word in layer.table.occupied_words():
        index = layer.exports.at(slot).index
        stored[index] += 1
        if word & BACKING_MASK == IN_POOL:
            payload[index] += blob_length(word)
            taken[index, 0] += SIZES[classes[pool_place(word) >> ZSPAGE_SHIFT]]
        elif is_below(word):
            tier = layer.stack[tier_of(word)].tier
            payload[index] += tier.payload_bytes(ref_of(word))
            taken[index, tier_of(word)] += tier.taken_bytes(ref_of(word))
    for export in layer.exports:
        assert export.stored == stored[export.index]
        assert export.payload_bytes == payload[export.index]
        for number in range(TIERS_MAX):
            assert export.bytes_in(number) == taken[export.index, number]


def _check_level(level: Level, refs: list[int]) -> None:
    tier = level.tier
    assert level.payload_bytes == sum(map(tier.payload_bytes, refs))
    if isinstance(tier, SectorTier):
        sectors = sorted((sector_ref.sector(ref), sector_ref.sectors(ref)) for ref in refs)
        _assert_disjoint(sectors, level.name)
        taken = sum(count for _, count in sectors) * SECTOR_SIZE
        assert tier.stats().used_bytes == taken, "sectors leak"
    else:
        assert len(set(refs)) == len(refs), "two words share a blob"


def _assert_disjoint(runs: Sequence[tuple[int, int]], what: str) -> None:
    for (start, length), (following, _) in pairwise(runs):
        assert start + length <= following, f"two {what} blobs overlap"

"""Writes, discards, reads, demotion, cleaning and compaction race, as a seed says.

The swap file is as large as the guaranteed room and no larger, so no write may be refused (I6),
however the steps of the threads fall between one another.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapfs.core._core import Decoder
from swapfs.region.layout import ZSPAGE_BYTES, Geometry
from swapfs.server import partial
from swapfs.server.partial import PartialWrites
from swapfs.server.workers import Buffers
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.testing.schedule import Lock, Scheduler
from swapfs.tiers import segments
from swapfs.tiers.blob import Batch
from swapfs.tiers.sectors import Extent
from swapfs.tiers.segments import CLEANING_RESERVE, SEGMENT_BYTES
from swapfs.units import PAGE_SHIFT, PAGE_SIZE, PSector
from swapfs.vlayer import (
    blob_writer,
    compaction,
    fetch,
    progress,
    recode_staged,
    recompress,
    single_flight,
    stalled,
    write_around,
    writeback,
)
from swapfs.vlayer.capacity import guaranteed_bytes
from swapfs.vlayer.packing import STORE_STEP, Packer

MODULES = (
    *(blob_writer, compaction, progress, recode_staged, recompress, segments, single_flight),
    *(partial, stalled, write_around, writeback),
)
POOL_BYTES = 8 * ZSPAGE_BYTES
WAIT_S = 5.0
TEXT = [page("text", seed) for seed in range(12)]


class SteppedTier(MemoryTier):
    """Lets others go first whenever the disk would."""

    def __init__(self, scheduler: Scheduler, count: int) -> None:
        super().__init__(count)
        self._scheduler = scheduler

    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:
        self._scheduler.wait()
        view = super().read(sector, sectors, scratch)
        self._scheduler.wait()
        return view

    def segments_to_clean(self) -> list[Extent]:
        assert self.map.free_segments >= CLEANING_RESERVE, "the reserve did not come back"
        return super().segments_to_clean()

    def write(self, extent: Extent, batch: Batch) -> None:
        self._scheduler.wait()
        super().write(extent, batch)
        self._scheduler.wait()


class Request:
    """A write under way: what the kernel waits for."""

    def __init__(self, race: Race, slot: int, pages: list[bytes]) -> None:
        self._race = race
        self.slot = slot
        self.pages = pages
        self.results: list[int] = []

    def reply(self, result: int, /) -> None:
        """Take the answer."""
        self.results.append(result)
        self._race.answered(self, result)

    def used_file(self) -> None:
        """Hear that the answer waits for the file tier."""


class Race:
    """One swap file, its threads, and who uses it."""

    def __init__(self, seed: int, share: float, count: int, raw: float, high_percent: int) -> None:
        self.scheduler = Scheduler(seed, share)
        self._random = random.Random(seed + 1)
        self._raw = raw
        # The tables' size depends on the slots, and the room on the tables'.
        room = guaranteed_bytes(Geometry(PAGE_SIZE, POOL_BYTES), count * SEGMENT_BYTES)
        geometry = Geometry(room, POOL_BYTES)
        self.slots = guaranteed_bytes(geometry, count * SEGMENT_BYTES) // PAGE_SIZE
        with self.scheduler.installed(*MODULES):
            self.tier = SteppedTier(self.scheduler, count)
            self.harness = Harness(
                *(self.slots, POOL_BYTES, self.tier),
                promote=True,
                recompress=True,
                wait_s=WAIT_S,
                clock_s=self.scheduler.clock_s,
            )
        self.harness.down.high_bytes = POOL_BYTES * high_percent // 100
        self.harness.down.low_bytes = self.harness.down.high_bytes // 2
        self.harness.layer.lock = Lock(self.scheduler)  # type: ignore[assignment]
        self.model: dict[int, bytes] = {}
        self.refused: list[Request] = []
        self._busy: set[int] = set()
        self._under_way = 0
        self._users = 0
        self._packer = Packer(STORE_STEP)

    # ---- the kernel's side ----

    def answered(self, request: Request, result: int) -> None:
        """Note the answer of a write."""
        assert len(request.results) == 1, "answered twice"
        if result < 0:
            self.refused.append(request)
        self._busy -= set(range(request.slot, request.slot + len(request.pages)))
        self._under_way -= 1

    def write(self, slot: int, count: int) -> None:
        """Write pages as the session thread does."""
        slots = set(range(slot, slot + count))
        self.scheduler.wait(lambda: not slots & self._busy)
        pages = [self._page() for _ in range(count)]
        request = Request(self, slot, pages)
        self._under_way += 1
        self._busy |= slots
        self.model.update(zip(range(slot, slot + count), pages, strict=True))
        source = memoryview(b"".join(pages))
        done = 0
        while done < count:
            step = min(STORE_STEP, count - done)
            stored = self.harness.layer.store_run(
                slot + done, source, done << PAGE_SHIFT, step, self._packer
            )
            done += stored
            if stored < step:
                break
        self.harness.down.kick_if_needed()
        self.harness.stalled.kick_if_needed()
        if done == count:
            request.reply(count * PAGE_SIZE)
            return
        rest = memoryview(bytearray(source[done << PAGE_SHIFT :]))
        self.harness.direct.submit(request, count * PAGE_SIZE, slot + done, rest, count - done)
        rest[:] = bytes(len(rest))  # the request's buffer is used again

    def _page(self) -> bytes:
        if self._random.random() < self._raw:
            return self._random.randbytes(PAGE_SIZE)
        return self._random.choice(TEXT)

    def _idle_run(self, longest: int) -> tuple[int, int]:
        """Return a slot and how many from it on nobody uses; the kernel has a lock for each."""
        slot = self._random.randrange(self.slots)
        count = 0
        for at in range(slot, min(self.slots, slot + self._random.randint(1, longest))):
            if at in self._busy:
                break
            count += 1
        return slot, count

    def session(self, requests: int, longest: int) -> None:
        """Fill the swap file, then write and discard at random; less and less compresses."""
        for slot in range(0, self.slots, 16):
            self.write(slot, min(16, self.slots - slot))
        step = (1 - self._raw) / requests
        for _ in range(requests):
            self._raw += step
            slot, count = self._idle_run(longest)
            if count and self._random.random() < 0.03:
                self._discard(slot, count)
            elif count:
                self.write(slot, count)
        self._users -= 1

    def _discard(self, slot: int, count: int) -> None:
        taken = set(range(slot, slot + count))
        self._busy |= taken
        self.harness.layer.discard_run(slot, count)
        for at in taken:
            self.model.pop(at, None)
        self._busy -= taken

    def reader(self, requests: int) -> None:
        """Read what nobody writes; promotes."""
        for _ in range(requests):
            slot, count = self._idle_run(8)
            self.scheduler.wait()
            if not count or self._busy & set(range(slot, slot + count)):
                continue
            self._busy |= set(range(slot, slot + count))
            got = self.harness.load(slot, count)
            assert got == b"".join(self._expected(at) for at in range(slot, slot + count))
            self._busy -= set(range(slot, slot + count))
        self._users -= 1

    def patcher(self, requests: int) -> None:
        """Write parts of pages, as a worker does."""
        harness = self.harness
        partial = PartialWrites(
            harness.layer, harness.stalled.compactor.make_room, harness.fetcher, harness.direct
        )
        buffers = Buffers(
            memoryview(bytearray(PAGE_SIZE)),
            memoryview(bytearray(fetch.SCRATCH_BYTES)),
            bytearray(PAGE_SIZE),
            Decoder(),
        )
        for _ in range(requests):
            slot, count = self._idle_run(1)
            self.scheduler.wait()
            if not count or slot in self._busy:
                continue
            self._busy.add(slot)
            start = self._random.randrange(0, PAGE_SIZE, 512)
            data = self._random.randbytes(512)
            old = self._expected(slot)
            self.model[slot] = old[:start] + data + old[start + 512 :]
            offset = (slot << PAGE_SHIFT) + start
            result = partial.write(offset, memoryview(data), buffers, lambda: None)
            assert result == 0, f"{len(self.model)} pages of {self.slots}: a part is refused"
            self._busy.remove(slot)
        self._users -= 1

    def _expected(self, slot: int) -> bytes:
        return self.model.get(slot, bytes(PAGE_SIZE))

    # ---- the run ----

    def run(self, requests: int, longest: int) -> None:
        """Let all of them race to the end, and look at what is left."""
        harness, scheduler = self.harness, self.scheduler
        services = itertools.count()
        running: set[int] = set()

        @contextmanager
        def counted() -> Iterator[None]:
            number = next(services)
            running.add(number)
            yield
            running.discard(number)

        def serve(name: str, loop: object) -> None:
            def live() -> None:
                with counted():
                    loop()  # type: ignore[operator]

            scheduler.spawn(name, live)

        serve("writeback", harness.down.run)
        serve("direct", harness.direct.run)
        serve("second", harness.stalled.run)
        serve("recompress", harness.recompressor.run)
        self._users = 3
        scheduler.spawn("session", lambda: self.session(requests, longest))
        scheduler.spawn("reader", lambda: self.reader(requests))
        scheduler.spawn("patcher", lambda: self.patcher(requests))
        try:
            scheduler.run(lambda: bool(self.refused) or not (self._users or self._under_way))
            assert not self.refused, f"{len(self.model)} pages of {self.slots}: refused"
            for service in (harness.down, harness.direct, harness.stalled, harness.recompressor):
                service.stop()
            scheduler.run(lambda: not running)
        finally:
            scheduler.stop()
        self.check()

    def check(self) -> None:
        """Every page is there, and nothing is lost or kept by mistake."""
        self.harness.check()
        self.tier.map.check()
        for slot in range(self.slots):
            assert self.harness.load(slot) == self._expected(slot)
        assert self.harness.counter("failed_write_no_room") == 0
        assert self.harness.counter("handler_errors") == 0


@given(
    seed=st.integers(0, 1 << 32),
    share=st.sampled_from([0.02, 0.1, 0.4]),
    count=st.integers(4, 7),
    longest=st.sampled_from([1, 8, 40]),
    raw=st.sampled_from([0.2, 0.8, 1.0]),
    high_percent=st.sampled_from([50, 90]),
)
@settings(max_examples=20)
@pytest.mark.timeout(300)
def test_no_write_within_the_guarantee_is_refused(
    seed: int, share: float, count: int, longest: int, raw: float, high_percent: int
) -> None:
    race = Race(seed, share, count, raw, high_percent)
    try:
        with race.scheduler.installed(*MODULES):
            race.run(150, longest)
    finally:
        race.harness.region.close()

"""A history of a swap file that dies between any two stores, and what must hold then (I3)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from swapfs.region.export_rows import ExportRow
from swapfs.region.layout import ZSPAGE_BYTES, Region
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.model import SwapModel
from swapfs.testing.pages import page
from swapfs.testing.wrapper import TierWrapper
from swapfs.tiers import sector_ref
from swapfs.tiers.blob import Batch
from swapfs.tiers.sectors import Extent, SectorStore
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, SECTOR_SIZE, PSector
from swapfs.vlayer.entry import is_below, ref_of, tier_of
from swapfs.vlayer.shrink import Shrink, grow
from swapfs.vlayer.stack import Phase
from tests.property.tape import Tape

SLOTS: Final = 3 * CLUSTER_SLOTS
POOL_BYTES: Final = 8 * 64 * 1024
SEGMENTS: Final = 4
_NEWS: Final = [page(kind, 77) for kind in ("random", "heap", "text")]
"""Pages that no history has."""


@dataclass(frozen=True, slots=True)
class DiskEvent:
    """*data* came to lie at *sector* of *tier* after *stores* stores; or sectors were released."""

    stores: int
    tier: int
    sector: int
    data: bytes = b""
    released: int = 0


class TapedTier(TierWrapper):
    """Notes what happens to the medium, and when; a write may also be cut off in the middle."""

    def __init__(self, inner: MemoryTier, number: int, events: list[DiskEvent]) -> None:
        super().__init__(inner)
        self.data = inner.data
        self.tape: Tape | None = None
        self._number = number
        self._events = events

    def write(self, extent: Extent, batch: Batch) -> None:
        data = bytes(batch.view[: batch.sectors * SECTOR_SIZE])
        super().write(extent, batch)
        half = batch.sectors // 2 * SECTOR_SIZE
        self._note(extent.sector, data=data[:half])
        self._note(extent.sector, data=data)

    def release(self, sector: PSector, sectors: int) -> None:
        super().release(sector, sectors)
        self._note(sector, released=sectors)

    def _note(self, sector: int, *, data: bytes = b"", released: int = 0) -> None:
        if self.tape is not None:
            self._events.append(DiskEvent(self.tape.stores, self._number, sector, data, released))


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: the stores that it made, and the pages before and after it."""

    name: str
    first: int
    last: int
    before: dict[int, bytes]
    after: dict[int, bytes]


class History:
    """Operations on a swap file and on the model; those inside ``taped`` can be cut anywhere."""

    exports: tuple[ExportRow, ...] = ()

    def __init__(self, *, tiers: int = 1, promote: bool = False) -> None:
        self.events: list[DiskEvent] = []
        self.tiers = [TapedTier(MemoryTier(SEGMENTS), n, self.events) for n in range(1, tiers + 1)]
        self.promote, self.model = promote, SwapModel(SLOTS)
        self.harness = Harness(
            *(SLOTS, POOL_BYTES, self.tiers),
            promote=promote,
            recompress=promote,
            log_bytes=PAGE_SIZE,
            exports=self.exports,
        )
        self.region = self.harness.region
        self.steps: list[Step] = []
        self.tape: Tape

    @contextmanager
    def taped(self) -> Iterator[None]:
        """Have every store of the operations inside on the tape."""
        self.media = [bytearray(tier.data) for tier in self.tiers]
        self.tape = Tape(self.region)
        with self.tape:
            for tier in self.tiers:
                tier.tape = self.tape
            yield
            for tier in self.tiers:
                tier.tape = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note what one operation stores."""
        if self.tiers[0].tape is None:
            yield
            return
        first, before = self.tape.stores, dict(self.model.pages)
        yield
        self.steps.append(Step(name, first, self.tape.stores, before, dict(self.model.pages)))

    # ---- operations ----

    def store(self, slot: int, *pages: bytes) -> None:
        """Store pages in memory, as many as fit."""
        with self.step("store"):
            for index in range(self.harness.store(slot, *pages)):
                self.model.write(slot + index, pages[index])

    def write_around(self, slot: int, *pages: bytes) -> None:
        """Write pages past the pool."""
        with self.step("write around"):
            if self.harness.write_direct(slot, *pages) > 0:
                for index, data in enumerate(pages):
                    self.model.write(slot + index, data)

    def patch(self, slot: int, start: int, data: bytes) -> None:
        """Overwrite a part of a page."""
        layer = self.harness.layer
        with self.step("patch"):
            done = layer.patch(slot, start, data, bytearray(PAGE_SIZE))
            if done is None:
                seen = layer.table.get(slot)
                old = self.model.read(slot)
                new = old[:start] + data + old[start + len(data) :]
                done = layer.replace_file_page(slot, seen, memoryview(new))
            if done:
                self.model.patch(slot, start, data)

    def discard(self, slot: int, count: int = 1) -> None:
        """Empty slots."""
        with self.step("discard"):
            self.harness.layer.discard_run(slot, count)
            self.model.discard(slot, count)

    def read(self, slot: int, count: int = 1) -> None:
        """Read slots; what is in the file comes back to the pool if this history promotes."""
        with self.step("read"):
            assert len(self.harness.load(slot, count)) == count * PAGE_SIZE

    def demote(self, pages: int) -> int:
        """Move cold blobs down."""
        with self.step("demote"):
            return self.harness.down.demote(pages)

    def clean(self) -> int:
        """Move the blobs of sparse segments together."""
        with self.step("clean"):
            return self.harness.down.clean()

    def drain(self, number: int) -> int:
        """Move all that is in a tier to others."""
        with self.step("drain"):
            moved = self.harness.down.drains.drain(number).run().moved
        self.harness.stack[number].phase = Phase.ACTIVE
        return moved

    def sink(self, pages: int) -> int:
        """Move some of the first tier to the next."""
        with self.step("sink"):
            return self.harness.down.drains.sink(1, pages).run().moved

    def waterfall(self) -> int:
        """Let what is cold in a tier that presses sink, as the server does in the background."""
        drains = self.harness.down.drains
        before = self.harness.counter("sunk_pages")
        with self.step("waterfall"):
            self.harness.stack[1].presses = self.harness.stack[1].health.full = True
            while drains.step(lambda: True):
                pass
        return self.harness.counter("sunk_pages") - before

    def resize(self, zspages: int) -> None:
        """Make the pool smaller or larger, and have the region say so."""
        layer, down = self.harness.layer, self.harness.down
        with self.step("resize"):
            if zspages > layer.pool.zspages.limit:
                grow(layer, zspages)
            else:
                assert Shrink(layer, zspages, lambda want: down.demote(want) > 0).run()
            self.region.pool_bytes = zspages * ZSPAGE_BYTES

    def compact(self) -> bool:
        """Move the blobs of sparse zspages together."""
        with self.step("compact"):
            return self.harness.stalled.compactor.make_room(1, look=False)

    def recompress(self) -> int:
        """Put what is cold into zstd, and what was read often back."""
        with self.step("recompress"):
            return self.harness.recompressor.walk()

    def crash(self) -> None:
        """Let another server take over, which may die over it too."""
        with self.step("rebuild"):
            self.harness = _server_after(self.region, self.tiers, promote=self.promote)


def _server_after(
    region: Region, tiers: Sequence[SectorStore], *, promote: bool = False
) -> Harness:
    return Harness(SLOTS, POOL_BYTES, tiers, promote=promote, recompress=promote, region=region)


# ---- dying ----


class Autopsy:
    """Lets a taped *history* die after every store, and after every half of a write below."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._media = [bytearray(medium) for medium in history.media]
        self._steps = iter(history.steps)
        self._turned: set[int] = set()
        begin = history.steps[0].before
        self._step = Step("begin", 0, 0, begin, begin)
        self.deaths = 0
        self._fd = os.memfd_create("swapfs-crash", os.MFD_CLOEXEC)

    def run(self) -> int:
        """Look at every death; return how many there were."""
        history = self._history
        events = iter(history.events)
        event = next(events, None)
        try:
            for stores, image in history.tape.images():
                self._advance(stores)
                if not history.tape.is_inside_a_run(stores) or self._is_edge(stores):
                    self._die(stores, image)
                while event is not None and event.stores == stores:
                    self._happen(event, stores, image)
                    event = next(events, None)
        finally:
            os.close(self._fd)
        return self.deaths

    def _is_edge(self, stores: int) -> bool:
        return stores in (self._step.first, self._step.last)

    def _advance(self, stores: int) -> None:
        """Find the operation that is under way after *stores* stores."""
        while stores > self._step.last:
            self._step = next(self._steps)
            self._turned.clear()

    def _happen(self, event: DiskEvent, stores: int, image: bytearray) -> None:
        if event.data:
            start = event.sector * SECTOR_SIZE
            self._media[event.tier - 1][start : start + len(event.data)] = event.data
        self._die(stores, image, event)

    def _die(self, stores: int, image: bytearray, event: DiskEvent | None = None) -> None:
        os.pwrite(self._fd, image, 0)
        region = Region.attach(os.dup(self._fd))
        self.deaths += 1
        try:
            harness = _server_after(
                region, [MemoryTier(SEGMENTS, bytearray(medium)) for medium in self._media]
            )  # a copy: with a full pool it writes there
            pages = self._check(harness, stores)
            if event is not None and event.released:
                _check_released(harness, event)
            _live_on(harness, pages)
        except Exception as error:
            within = f"{stores - self._step.first} of {self._step.last - self._step.first}"
            error.add_note(f"died in {self._step.name!r} after {within} stores, {event=}")
            raise
        finally:
            region.close()

    def _check(self, harness: Harness, stores: int) -> dict[int, bytes]:
        """Each slot has its old page or the new one, and never the old one again; return them."""
        harness.check()
        step, pages = self._step, {}
        assert {slot for slot, _ in harness.layer.table.occupied_words()} <= {
            *step.before,
            *step.after,
        }, "a slot that nobody wrote holds something"
        zeros = bytes(PAGE_SIZE)
        for slot in {*step.before, *step.after}:
            old, new = step.before.get(slot, zeros), step.after.get(slot, zeros)
            got = pages[slot] = harness.load(slot)
            if got == new:
                self._turned.add(slot)
            else:
                assert got == old, f"slot {slot} has neither page"
                assert slot not in self._turned, f"slot {slot} has its old page again"
                assert stores < step.last, f"slot {slot} was not written"
        return pages


def _check_released(harness: Harness, event: DiskEvent) -> None:
    """The sectors that were given back just now are named by no word."""
    gone = range(event.sector, event.sector + event.released)
    for slot, word in harness.layer.table.occupied_words():
        if is_below(word) and tier_of(word) == event.tier:
            first = sector_ref.sector(ref_of(word))
            count = sector_ref.sectors(ref_of(word))
            assert first >= gone.stop or first + count <= gone.start, (
                f"slot {slot}: its sectors were freed before its word changed"
            )


def _live_on(harness: Harness, pages: dict[int, bytes]) -> None:
    """Store, overwrite and discard in what the rebuild made; all else stays as it is."""
    slots = sorted(slot for slot, _ in harness.layer.table.occupied_words())
    news = dict(zip((*slots[:1], SLOTS - 1, SLOTS - CLUSTER_SLOTS), _NEWS, strict=False))
    for slot, data in news.items():
        assert harness.write(slot, data) == PAGE_SIZE
    for slot in slots[1:3]:
        assert harness.layer.discard_run(slot, 1) == 1
    news |= dict.fromkeys(slots[1:3], bytes(PAGE_SIZE))
    harness.check()
    for slot in (*news, *slots[3::8]):
        assert harness.load(slot) == news.get(slot, pages.get(slot))


def die_everywhere(history: History, play: Callable[[History], None]) -> int:
    """Tape what *play* does to *history*, and die after each of its stores."""
    with history.taped():
        play(history)
    return Autopsy(history).run()


def names(steps: Sequence[Step]) -> set[str]:
    """Return the names of the operations of *steps* that stored anything."""
    return {step.name for step in steps if step.last > step.first}

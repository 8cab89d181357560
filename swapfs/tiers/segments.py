"""Which sectors of a backing file are free: bitmaps in segments of 1 MiB.

Two bitmaps, as in the kernel's virtual swap patches (v5, patch 20): taken, and bad. Fresh
segments are handed out whole, so that demotion writes are long and sequential; when none is
left, the longest holes of the emptiest segments are. Segments are kept in lists by how full
they are, so that nothing here costs more for a larger file. Pure bookkeeping, no I/O; thread
safe.

Two segments are kept for cleaning, which takes one to fill and gives back those that it empties.
To be sure of that, nothing new may come to lie in them meanwhile: they are *closed*, and one where
an extent is *under way*, handed out and not settled, is not picked.
"""

from __future__ import annotations

import re
import threading
from array import array
from collections.abc import Iterator
from typing import Final

from swapfs.errors import TierFull
from swapfs.region.lists import ListHeads
from swapfs.tiers.blob import BLOB_SECTORS_MAX
from swapfs.tiers.sector_bits import SectorBits
from swapfs.tiers.sectors import Extent
from swapfs.units import SECTOR_SIZE, MiB, PSector

SEGMENT_BYTES: Final = MiB
SEGMENT_SECTORS: Final = SEGMENT_BYTES // SECTOR_SIZE
CLEANING_RESERVE: Final = 2
"""Segments that only cleaning may take: without them a full file could not be compacted."""
CLEAN_BELOW_SHARE: Final = 8
"""Cleaning starts when fewer than one in eight segments is free."""
_HOLE_SECTORS_MIN: Final = -(-BLOB_SECTORS_MAX // 8) * 8  # holes are whole bytes of a bitmap
_HOLES_TRIED: Final = 16
_SOURCES_MAX: Final = 16  # segments read for one cleaning step

# Lists of segments: without a taken or bad sector, then by sixteenths in use, those whose
# cleaning gained nothing since their use last changed, and those that are being cleaned.
_FREE: Final = 0
_STEP: Final = SEGMENT_SECTORS // 16
_CLEAN_MAX: Final = 14  # more than 7/8 full: cleaning gains less than it costs
_CLEAN_MAX_SHORT: Final = 15  # unless there is hardly any room left
_FULL: Final = 16
_PASSED: Final = 17
_CLOSED: Final = 18
_NONZERO: Final = re.compile(rb"[^\0]")
_PAGES_PER_SEGMENT: Final = (SEGMENT_SECTORS - _STEP) // BLOB_SECTORS_MAX
"""Raw pages in a segment for certain, 213: a sixteenth may be lost in holes that nobody cleans.

Why this many can always be reached. Say nothing is under way, an allocation fails, and there is
nothing to clean; let F be the free segments. F <= CLEANING_RESERVE, or the allocation would have
had one. Call a segment sparse if it has at most 15/16 in use, that is 1920 sectors.

- With two sparse segments there is something to clean, if F >= 1. A step fills a fresh segment.
  The emptiest source fits into it, so one segment is freed for the one that was taken. Either all
  sources do, and only the fresh one may be sparse then; or it is full, and only the last source
  is. Each step leaves fewer sparse segments, so cleaning comes to an end.
- With one sparse segment the allocation finds its hole, the first that it looks for; or there is
  none that a blob fits into, and cleaning copies it, which leaves all that was free in one piece.
- So there is none: each of at least ``segments - CLEANING_RESERVE`` segments has more than 1920
  sectors in use, and with no blob above 9 sectors holds more than 213 blobs.

F >= 1 holds because only cleaning takes from the reserve and each step gives back what it took:
its sources are closed, so what is moved out of them leaves them empty. A failed write would keep
a segment for good, but never the last one (``mark_bad``). Segments with a bad sector are not
counted at all, though their holes are used. A damaged blob cannot be moved, and its segment then
keeps what it is in; that is beyond the guarantee, as the page is lost anyway.
"""


class SegmentMap:
    """The free and bad space of *segments* segments."""

    def __init__(self, segments: int) -> None:
        assert segments > CLEANING_RESERVE
        self.segments = segments
        self._lock = threading.Lock()
        self._bad = SectorBits(segments * SEGMENT_SECTORS)
        self._bad_sectors = 0
        self._bad_segments = 0
        self._reset()

    @property
    def map_bytes(self) -> int:
        """Memory that this map takes: two bits a sector, and some bytes a segment."""
        live, lists = 2 * self.segments, 9 * self.segments
        return len(self._bad.data) + len(self._taken.data) + live + len(self._under_way) + lists

    def _reset(self) -> None:
        self._taken = self._bad.copy()
        self._live = array("H", bytes(2 * self.segments))  # sectors taken or bad, by segment
        self._under_way = bytearray(self.segments)  # extents not settled yet, by segment
        self._extents = 0  # all of them
        self._head = 0  # the segment that small extents fill before they take a fresh one
        self._lists = ListHeads(self.segments, _CLOSED + 1)
        self._taken_sectors = 0

    # ---- allocation ----

    def allocate(self, sectors: int, *, cleaning: bool = False) -> Extent:
        """Take a free extent of at most *sectors* sectors; it is under way until ``settle``.

        :raises TierFull: no hole holds a largest blob
        """
        with self._lock:
            extent = self._fresh(sectors, 0 if cleaning else CLEANING_RESERVE)
            if extent is None:
                extent = self._hole(sectors)
            self._set(extent.sector, extent.sectors)
            self._under_way[extent.sector // SEGMENT_SECTORS] += 1
            self._extents += 1
            return extent

    def settle(self, extent: Extent) -> None:
        """Note that what *extent* was taken for is done, well or not: it is no longer under way."""
        with self._lock:
            self._under_way[extent.sector // SEGMENT_SECTORS] -= 1
            self._extents -= 1

    def _fresh(self, sectors: int, kept: int) -> Extent | None:
        """Find an extent in a fresh segment; a small one shares it with the small ones before."""
        small = sectors < SEGMENT_SECTORS
        if small and 1 <= self._lists.where(self._head) <= _FULL:
            rest = self._longest_hole(self._head)
            if rest is not None and rest.sectors >= sectors:
                return Extent(rest.sector, sectors)
        if self._lists.length(_FREE) <= kept:
            return None
        segment = self._lists.first(_FREE)
        if small:
            self._head = segment
        return Extent(PSector(segment * SEGMENT_SECTORS), min(sectors, SEGMENT_SECTORS))

    def _hole(self, sectors: int) -> Extent:
        tries = _HOLES_TRIED
        for ring in (*range(1, _FULL + 1), _PASSED):
            for segment in self._lists.numbers(ring, tries):
                tries -= 1
                found = self._longest_hole(segment)
                if found is not None:
                    return Extent(found.sector, min(sectors, found.sectors))
                self._lists.move(segment, ring, last=True)  # look at others the next time
        raise TierFull("the backing file is full")

    def _longest_hole(self, segment: int) -> Extent | None:
        """Return the longest hole of *segment* if it holds any blob."""
        sector, sectors = self._taken.longest_hole(segment * SEGMENT_SECTORS, SEGMENT_SECTORS)
        return Extent(PSector(sector), sectors) if sectors >= _HOLE_SECTORS_MIN else None

    def release(self, sector: int, sectors: int) -> None:
        """Take sectors back; those marked bad stay out of use."""
        with self._lock:
            self._release(sector, sectors)

    def _release(self, sector: int, sectors: int) -> None:
        count = self._taken.clear(sector, sectors, keep=self._bad)
        self._taken_sectors -= count
        self._count(sector, sectors, -count)

    def mark_bad(self, sector: int, sectors: int) -> int:
        """Keep taken sectors out of use for good; return how many were not bad before.

        When no segment is free they are released instead: a disk that failed for a while would
        else take the last segment that cleaning has, and nothing could be moved ever again.
        """
        with self._lock:
            if not self._lists.length(_FREE):
                self._release(sector, sectors)
                return 0
            if not self._has_bad(sector // SEGMENT_SECTORS):
                self._bad_segments += 1
            count = self._bad.set(sector, sectors)
            self._bad_sectors += count
            self._taken_sectors -= count
            return count

    def _has_bad(self, segment: int) -> bool:
        return self._bad.count(segment * SEGMENT_SECTORS, SEGMENT_SECTORS) > 0

    def _set(self, sector: int, sectors: int) -> None:
        count = self._taken.set(sector, sectors)
        assert count == sectors, "took sectors that were not free"
        self._taken_sectors += sectors
        self._count(sector, sectors, sectors)

    def _count(self, sector: int, sectors: int, change: int) -> None:
        segment = sector // SEGMENT_SECTORS
        assert (sector + sectors - 1) // SEGMENT_SECTORS == segment, "an extent in two segments"
        live = self._live[segment] + change
        self._live[segment] = live
        ring, current = (live + _STEP - 1) // _STEP, self._lists.where(segment)
        if current not in (ring, _CLOSED):
            self._lists.move(segment, ring)

    def next_taken(self, sector: int) -> Extent | None:
        """See ``SectorStore.next_taken``."""
        found = _NONZERO.search(memoryview(self._live).cast("B"), 2 * (sector // SEGMENT_SECTORS))
        while found is not None:  # without the lock: a terabyte has a million segments
            segment = found.start() // 2
            first = max(sector, segment * SEGMENT_SECTORS)
            with self._lock:
                start, sectors = self._taken.span(first, (segment + 1) * SEGMENT_SECTORS - first)
            if sectors:
                return Extent(PSector(start), sectors)
            found = _NONZERO.search(memoryview(self._live).cast("B"), 2 * (segment + 1))
        return None

    # ---- rebuilding ----

    def begin_rebuild(self) -> None:
        """Forget every allocation, not what is bad."""
        self._reset()
        for segment in range(self.segments if self._bad_sectors else 0):
            first = segment * SEGMENT_SECTORS
            self._count(first, 1, self._bad.count(first, SEGMENT_SECTORS))

    def mark(self, sector: int, sectors: int) -> None:
        """Declare sectors taken, after ``begin_rebuild``."""
        self._set(PSector(sector), sectors)

    # ---- cleaning and figures ----

    def segments_to_clean(self) -> list[Extent]:
        """Return segments whose live blobs should be moved together, the emptiest first.

        They are as many as fill one segment, and closed to ``allocate`` until ``end_cleaning``.
        None when free segments are not short, or when moving would gain nothing.
        """
        with self._lock:
            picked = self._sources()
            for segment in picked:
                self._lists.move(segment, _CLOSED)
            return [Extent(PSector(s * SEGMENT_SECTORS), SEGMENT_SECTORS) for s in picked]

    def _sources(self) -> list[int]:
        free = self._lists.length(_FREE)
        if free > max(CLEANING_RESERVE, self.segments // CLEAN_BELOW_SHARE):
            return []
        short = free <= CLEANING_RESERVE
        picked: list[int] = []
        live = 0
        for segment in self._sparse(_CLEAN_MAX_SHORT if short else _CLEAN_MAX):
            picked.append(segment)
            live += self._live[segment]
            # Without a free segment, after damage: one at a time, into the holes of others.
            if live >= SEGMENT_SECTORS or len(picked) == _SOURCES_MAX or not free:
                break
        if len(picked) == 1 and free and not (short and self._longest_hole(picked[0]) is None):
            return []  # the copy would be as sparse as it is
        return picked

    def _sparse(self, fullest: int) -> Iterator[int]:
        """Yield the segments up to list *fullest* where nothing is under way, emptiest first."""
        for ring in range(1, fullest + 1):
            for segment in self._lists.numbers(ring, _SOURCES_MAX + self._extents):
                if not self._under_way[segment]:
                    yield segment

    def end_cleaning(self, segment: Extent, *, skip: bool) -> None:
        """Open *segment* again.

        :param skip: it could not be emptied: leave it out of cleaning until what it holds changes
        """
        with self._lock:
            number = segment.sector // SEGMENT_SECTORS
            assert self._lists.where(number) == _CLOSED
            live = self._live[number]
            self._lists.move(number, _PASSED if skip and live else (live + _STEP - 1) // _STEP)

    def retry_skipped(self) -> None:
        """Let cleaning look again at the segments that it left out."""
        with self._lock:
            for number in self._lists.members(_PASSED):
                self._lists.move(number, (self._live[number] + _STEP - 1) // _STEP)

    def has_room(self) -> bool:
        """Whether an allocation that failed with nothing under way may succeed after cleaning."""
        with self._lock:
            free = self._lists.length(_FREE)
            if not 0 < free <= CLEANING_RESERVE:
                return free > 0  # with none, cleaning itself needs such a hole
            return next(self._sparse(_CLEAN_MAX_SHORT), None) is not None

    @property
    def free_segments(self) -> int:
        """Segments of which no sector is taken or bad."""
        return self._lists.length(_FREE)

    @property
    def taken_bytes(self) -> int:
        """Bytes of sectors that are taken."""
        return self._taken_sectors * SECTOR_SIZE

    @property
    def bad_bytes(self) -> int:
        """Bytes of sectors that are out of use."""
        return self._bad_sectors * SECTOR_SIZE

    def room_pages(self) -> int:
        """Return how many raw pages fit for certain, cleaning included."""
        return guaranteed_pages(self.segments, self._bad_segments)

    def check(self) -> None:
        """Assert that bitmaps, counts and lists agree; for tests, O(segments)."""
        listed = []
        for ring in range(_CLOSED + 1):
            numbers = self._lists.numbers(ring, self.segments + 1)
            assert len(numbers) == self._lists.length(ring)
            listed += numbers
            for segment in numbers:
                live = self._taken.count(segment * SEGMENT_SECTORS, SEGMENT_SECTORS)
                assert live == self._live[segment]
                assert ring in ((live + _STEP - 1) // _STEP, _CLOSED) or (ring == _PASSED and live)
        assert sorted(listed) == list(range(self.segments))
        taken = int.from_bytes(self._taken.data, "little")
        assert not int.from_bytes(self._bad.data, "little") & ~taken
        assert self._bad.count() == self._bad_sectors
        assert sum(map(self._has_bad, range(self.segments))) == self._bad_segments
        assert sum(self._under_way) == self._extents
        assert self._taken.count() - self._bad_sectors == self._taken_sectors


def guaranteed_pages(segments: int, bad_segments: int = 0) -> int:
    """Return how many raw pages *segments* segments hold for certain, cleaning included.

    :param bad_segments: those with a bad sector
    """
    return max(0, segments - CLEANING_RESERVE - bad_segments) * _PAGES_PER_SEGMENT

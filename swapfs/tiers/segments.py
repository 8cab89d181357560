"""Which sectors of a backing file are free: bitmaps in segments of 1 MiB.

Two bitmaps, as in the kernel's virtual swap patches (v5, patch 20): taken, and bad. Fresh
segments are handed out whole, so that demotion writes are long and sequential; when none is
left, the longest holes of the emptiest segments are. Segments are kept in lists by how full
they are, so that nothing here costs more for a larger file. Pure bookkeeping, no I/O; thread
safe.
"""

from __future__ import annotations

import threading
from array import array
from typing import Final

from swapfs.errors import TierFull
from swapfs.region.lists import ListHeads
from swapfs.tiers.base import Extent
from swapfs.tiers.blob import BLOB_SECTORS_MAX
from swapfs.units import SECTOR_SIZE, MiB, PSector

SEGMENT_BYTES: Final = MiB
SEGMENT_SECTORS: Final = SEGMENT_BYTES // SECTOR_SIZE
CLEANING_RESERVE: Final = 2
"""Segments that only cleaning may take: without them a full file could not be compacted."""
CLEAN_BELOW_SHARE: Final = 8
"""Cleaning starts when fewer than one in eight segments is free."""
_BYTES_PER_SEGMENT: Final = SEGMENT_SECTORS // 8
_HOLE_BYTES_MIN: Final = -(-BLOB_SECTORS_MAX // 8)  # bitmap bytes of a hole that holds any blob
_HOLES_TRIED: Final = 16
_SOURCES_MAX: Final = 16  # segments read for one cleaning step

# Lists of segments: without a taken or bad sector, then by sixteenths in use, and those whose
# cleaning gained nothing since their use last changed.
_FREE: Final = 0
_STEP: Final = SEGMENT_SECTORS // 16
_CLEAN_MAX: Final = 14  # more than 7/8 full: cleaning gains less than it costs
_CLEAN_MAX_SHORT: Final = 15  # unless there is hardly any room left
_FULL: Final = 16
_PASSED: Final = 17
_NONZERO: Final = bytes([0]) + bytes([1]) * 255
_PAGES_PER_SEGMENT: Final = (SEGMENT_SECTORS - _STEP) // BLOB_SECTORS_MAX
"""Raw pages in a segment for certain: a sixteenth may be lost in holes that nobody cleans."""


def _bit_mask(start: int, count: int) -> tuple[int, int, int]:
    """Return (first byte, bytes, mask) of bits *start*..*start+count* in a bitmap."""
    first, shift = divmod(start, 8)
    length = (shift + count + 7) // 8
    return first, length, ((1 << count) - 1) << shift


class SegmentMap:
    """The free and bad space of *segments* segments."""

    def __init__(self, segments: int) -> None:
        assert segments > CLEANING_RESERVE
        self.segments = segments
        self._lock = threading.Lock()
        self._bad = bytearray(segments * _BYTES_PER_SEGMENT)
        self._bad_sectors = 0
        self._reset()

    @property
    def map_bytes(self) -> int:
        """Memory that this map takes: two bits a sector, and some bytes a segment."""
        live, lists = 2 * self.segments, 9 * self.segments
        return len(self._bad) + len(self._taken) + live + lists

    def _reset(self) -> None:
        self._taken = bytearray(self._bad)
        self._live = array("H", bytes(2 * self.segments))  # sectors taken or bad, by segment
        self._lists = ListHeads(self.segments, _PASSED + 1)
        self._taken_sectors = 0

    # ---- allocation ----

    def allocate(self, sectors: int, *, cleaning: bool = False) -> Extent:
        """Take a free extent of at most *sectors* sectors.

        :raises TierFull: no hole holds a largest blob
        """
        with self._lock:
            if self._lists.length(_FREE) > (0 if cleaning else CLEANING_RESERVE):
                start = self._lists.first(_FREE) * SEGMENT_SECTORS
                extent = Extent(PSector(start), min(sectors, SEGMENT_SECTORS))
            elif cleaning:
                raise TierFull("no free segment for cleaning")
            else:
                extent = self._hole(sectors)
            self._set(extent.sector, extent.sectors)
            return extent

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
        """Find the longest run of free whole bitmap bytes; runs of odd sectors are passed over."""
        first = segment * _BYTES_PER_SEGMENT
        bits = self._taken[first : first + _BYTES_PER_SEGMENT]
        best = max(bits.translate(_NONZERO).split(b"\1"), key=len)
        if len(best) < _HOLE_BYTES_MIN:
            return None
        start = bits.find(best)
        return Extent(PSector((first + start) * 8), len(best) * 8)

    def release(self, sector: int, sectors: int) -> None:
        """Take sectors back; those marked bad stay out of use."""
        with self._lock:
            first, length, mask = _bit_mask(sector, sectors)
            bits = int.from_bytes(self._taken[first : first + length], "little")
            assert bits & mask == mask, "released sectors that were free"
            mask &= ~int.from_bytes(self._bad[first : first + length], "little")
            self._taken[first : first + length] = (bits & ~mask).to_bytes(length, "little")
            count = mask.bit_count()
            self._taken_sectors -= count
            self._count(sector, sectors, -count)

    def mark_bad(self, sector: int, sectors: int) -> int:
        """Keep taken sectors out of use for good; return how many were not bad before."""
        with self._lock:
            first, length, mask = _bit_mask(sector, sectors)
            bits = int.from_bytes(self._bad[first : first + length], "little")
            self._bad[first : first + length] = (bits | mask).to_bytes(length, "little")
            count = (mask & ~bits).bit_count()
            self._bad_sectors += count
            self._taken_sectors -= count
            return count

    def _set(self, sector: int, sectors: int) -> None:
        first, length, mask = _bit_mask(sector, sectors)
        bits = int.from_bytes(self._taken[first : first + length], "little")
        assert not bits & mask, "took sectors that were not free"
        self._taken[first : first + length] = (bits | mask).to_bytes(length, "little")
        self._taken_sectors += sectors
        self._count(sector, sectors, sectors)

    def _count(self, sector: int, sectors: int, change: int) -> None:
        segment = sector // SEGMENT_SECTORS
        assert (sector + sectors - 1) // SEGMENT_SECTORS == segment, "an extent in two segments"
        live = self._live[segment] + change
        self._live[segment] = live
        ring = (live + _STEP - 1) // _STEP
        if ring != self._lists.where(segment):
            self._lists.move(segment, ring)

    # ---- rebuilding ----

    def begin_rebuild(self) -> None:
        """Forget every allocation, not what is bad."""
        self._reset()
        for segment in range(self.segments if self._bad_sectors else 0):
            first = segment * _BYTES_PER_SEGMENT
            bits = int.from_bytes(self._bad[first : first + _BYTES_PER_SEGMENT], "little")
            self._count(segment * SEGMENT_SECTORS, 1, bits.bit_count())

    def mark(self, sector: int, sectors: int) -> None:
        """Declare sectors taken, after ``begin_rebuild``."""
        self._set(PSector(sector), sectors)

    # ---- cleaning and figures ----

    def segments_to_clean(self) -> list[Extent]:
        """Return segments whose live blobs should be moved together, the emptiest first.

        They are as many as fill one segment. None when free segments are not short, or when
        moving would gain nothing.
        """
        with self._lock:
            free = self._lists.length(_FREE)
            if not 0 < free <= max(CLEANING_RESERVE, self.segments // CLEAN_BELOW_SHARE):
                return []
            short = free <= CLEANING_RESERVE
            picked: list[int] = []
            live = 0
            for ring in range(1, (_CLEAN_MAX_SHORT if short else _CLEAN_MAX) + 1):
                for segment in self._lists.numbers(ring, _SOURCES_MAX - len(picked)):
                    if live < SEGMENT_SECTORS:
                        picked.append(segment)
                        live += self._live[segment]
            if len(picked) == 1 and not (short and self._longest_hole(picked[0]) is None):
                return []  # the copy would be as sparse as it is
            return [Extent(PSector(s * SEGMENT_SECTORS), SEGMENT_SECTORS) for s in picked]

    def skip(self, segment: Extent) -> None:
        """Leave *segment* out of cleaning until what it holds changes."""
        with self._lock:
            number = segment.sector // SEGMENT_SECTORS
            if self._live[number]:
                self._lists.move(number, _PASSED)

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
        return guaranteed_pages(self.segments, self._bad_sectors)

    def check(self) -> None:
        """Assert that bitmaps, counts and lists agree; for tests, O(segments)."""
        listed = []
        for ring in range(_PASSED + 1):
            numbers = self._lists.numbers(ring, self.segments + 1)
            assert len(numbers) == self._lists.length(ring)
            listed += numbers
            for segment in numbers:
                first = segment * _BYTES_PER_SEGMENT
                bits = int.from_bytes(self._taken[first : first + _BYTES_PER_SEGMENT], "little")
                live = bits.bit_count()
                assert live == self._live[segment]
                assert ring == (live + _STEP - 1) // _STEP or (ring == _PASSED and live)
        assert sorted(listed) == list(range(self.segments))
        taken = int.from_bytes(self._taken, "little")
        bad = int.from_bytes(self._bad, "little")
        assert not bad & ~taken
        assert bad.bit_count() == self._bad_sectors
        assert (taken & ~bad).bit_count() == self._taken_sectors


def segments_for_pages(pages: int) -> int:
    """Return the segments of a file that holds *pages* raw pages for certain."""
    return -(-pages // _PAGES_PER_SEGMENT) + CLEANING_RESERVE


def guaranteed_pages(segments: int, bad_sectors: int = 0) -> int:
    """Return how many raw pages *segments* segments hold for certain, cleaning included."""
    usable = segments - CLEANING_RESERVE - -(-bad_sectors // SEGMENT_SECTORS)
    return max(0, usable) * _PAGES_PER_SEGMENT

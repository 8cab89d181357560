"""Which sectors of a backing file are free: bitmaps in segments of 1 MiB.

Two bitmaps, as in the kernel's virtual swap patches (vss.md patch 20): taken, and bad. Fresh
segments are handed out whole, so that demotion writes are long and sequential; when none is
left, the longest holes of the emptiest segments are. Pure bookkeeping, no I/O; thread safe.
"""

from __future__ import annotations

import threading
from array import array
from typing import Final

from swapfs.errors import TierFull
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
        self._taken = bytearray(segments * _BYTES_PER_SEGMENT)
        self._bad = bytearray(segments * _BYTES_PER_SEGMENT)
        self._live = array("H", bytes(2 * segments))  # sectors taken or bad, by segment
        self._free = list(range(segments - 1, -1, -1))
        self._bad_sectors = 0
        self._taken_sectors = 0

    # ---- allocation ----

    def allocate(self, sectors: int, *, cleaning: bool = False) -> Extent:
        """Take a free extent of at most *sectors* sectors.

        :raises TierFull: no hole holds a largest blob
        """
        with self._lock:
            kept = 0 if cleaning else CLEANING_RESERVE
            if len(self._free) > kept:
                start = self._free.pop() * SEGMENT_SECTORS
                extent = Extent(PSector(start), min(sectors, SEGMENT_SECTORS))
            elif cleaning:
                raise TierFull("no free segment for cleaning")
            else:
                extent = self._hole(sectors)
            self._set(extent.sector, extent.sectors)
            return extent

    def _hole(self, sectors: int) -> Extent:
        free = set(self._free)
        room = BLOB_SECTORS_MAX
        candidates = [
            segment
            for segment, live in enumerate(self._live)
            if live <= SEGMENT_SECTORS - room and segment not in free
        ]
        candidates.sort(key=self._live.__getitem__)
        for segment in candidates[:_HOLES_TRIED]:
            found = self._longest_hole(segment)
            if found is not None:
                return Extent(found.sector, min(sectors, found.sectors))
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
            bad = int.from_bytes(self._bad[first : first + length], "little") & mask
            mask &= ~bad
            self._taken[first : first + length] = (bits & ~mask).to_bytes(length, "little")
            count = mask.bit_count()
            self._taken_sectors -= count
            self._count(sector, sectors, mask, first, -1)

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
        self._count(sector, sectors, mask, first, 1)

    def _count(self, sector: int, sectors: int, mask: int, first: int, sign: int) -> None:
        segment = sector // SEGMENT_SECTORS
        assert (sector + sectors - 1) // SEGMENT_SECTORS == segment, "an extent in two segments"
        live = self._live[segment] + sign * mask.bit_count()
        self._live[segment] = live
        if live == 0 and sign < 0:
            self._free.append(segment)

    # ---- rebuilding ----

    def begin_rebuild(self) -> None:
        """Forget every allocation, not what is bad."""
        self._taken = bytearray(self._bad)
        self._live = array("H", bytes(2 * self.segments))
        self._taken_sectors = 0
        for segment in range(self.segments):
            first = segment * _BYTES_PER_SEGMENT
            bits = int.from_bytes(self._bad[first : first + _BYTES_PER_SEGMENT], "little")
            self._live[segment] = bits.bit_count()

    def mark(self, sector: int, sectors: int) -> None:
        """Declare sectors taken, after ``begin_rebuild``."""
        self._set(PSector(sector), sectors)

    def finish_rebuild(self) -> None:
        """Derive the list of free segments."""
        self._free = [s for s in range(self.segments - 1, -1, -1) if not self._live[s]]

    # ---- cleaning and figures ----

    def segment_to_clean(self) -> Extent | None:
        """Return the emptiest segment in part use, if free ones are short and it is worth it."""
        with self._lock:
            if len(self._free) > max(CLEANING_RESERVE, self.segments // CLEAN_BELOW_SHARE):
                return None
            free = set(self._free)
            used = [s for s in range(self.segments) if s not in free]
            if not used or not self._free:
                return None
            segment = min(used, key=self._live.__getitem__)
            # A segment more than 7/8 full gains less than it costs.
            if self._live[segment] > SEGMENT_SECTORS * 7 // 8:
                return None
            return Extent(PSector(segment * SEGMENT_SECTORS), SEGMENT_SECTORS)

    @property
    def free_segments(self) -> int:
        """Segments of which no sector is taken or bad."""
        return len(self._free)

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


_NONZERO: Final = bytes([0]) + bytes([1]) * 255


def segments_for_pages(pages: int) -> int:
    """Return the segments of a file that holds *pages* raw pages for certain."""
    return -(-pages // (SEGMENT_SECTORS // BLOB_SECTORS_MAX)) + CLEANING_RESERVE


def guaranteed_pages(segments: int, bad_sectors: int = 0) -> int:
    """Return how many raw pages *segments* segments hold for certain, cleaning included."""
    usable = segments - CLEANING_RESERVE - -(-bad_sectors // SEGMENT_SECTORS)
    return max(0, usable) * (SEGMENT_SECTORS // BLOB_SECTORS_MAX)

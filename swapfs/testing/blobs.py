"""Blobs on a tier without a swap table: what the conformance checks store and find again."""

from __future__ import annotations

import itertools
import mmap
from typing import Final

from swapfs.errors import TierFull
from swapfs.testing.pages import page
from swapfs.tiers import sector_ref
from swapfs.tiers.blob import Batch, check_blob
from swapfs.tiers.sectors import READ_SLACK_BYTES, Extent, SectorStore
from swapfs.tiers.segments import SEGMENT_BYTES, SEGMENT_SECTORS
from swapfs.units import PAGE_SIZE, PSector

SEGMENTS: Final = 8
_CODEC: Final = 1
_ROUNDS_MAX: Final = 200
_SOURCE: Final = page("random", 5) + page("random", 6)


def aligned(size_bytes: int) -> memoryview:
    """Return a page aligned buffer, as direct I/O wants it."""
    return memoryview(mmap.mmap(-1, size_bytes))


class Blobs:
    """The blobs of some slots on *tier*: stored, moved and released as the slot layer does it.

    ``places`` has the extent of each slot's blob. One thread.
    """

    def __init__(self, tier: SectorStore, *, first_sequence: int = 1) -> None:
        self.tier = tier
        self.places: dict[int, Extent] = {}
        self._facts: dict[int, tuple[int, int, int]] = {}  # length, checksum, sequence
        self._sequences = itertools.count(first_sequence)
        self._batch = Batch(aligned(SEGMENT_BYTES), tier.seal)
        self._scratch = aligned(SEGMENT_BYTES + READ_SLACK_BYTES)

    def put(self, *blobs: tuple[int, int]) -> None:
        """Store a blob of so many bytes for each (slot, length), in as few writes as it takes.

        :raises TierFull: there is no room for all of them; some may be stored
        """
        rest = list(blobs)
        while rest:
            extent = self.tier.allocate(SEGMENT_SECTORS)
            self._batch.reset(extent.sectors)
            while rest and self._batch.fits(rest[0][1]):
                self._add(*rest.pop(0))
            self._write(extent)
            self.tier.settle(extent)

    def put_or_clean(self, blob: tuple[int, int]) -> None:
        """Store a blob; when there is no room for it, after cleaning.

        :raises TierFull: there is none, and the tier has said so
        """
        try:
            self.put(blob)
        except TierFull:
            if not self.tier.has_room():
                raise
            self.clean()
            self.put(blob)

    def _add(self, slot: int, length: int) -> None:
        sequence = next(self._sequences)
        item = self._batch.add(slot, _payload(slot, sequence, length), _CODEC, sequence)
        self._facts[slot] = (length, item.checksum, sequence)

    def _write(self, extent: Extent) -> None:
        self.tier.write(extent, self._batch)
        for item in self._batch.items:
            old = self.places.get(item.slot)
            sector = PSector(extent.sector + item.start_sector)
            self.places[item.slot] = Extent(sector, item.sectors)
            if old is not None:
                self.tier.release(*old)

    def drop(self, slot: int) -> None:
        """Release the blob of *slot*."""
        self.tier.release(*self.places.pop(slot))

    def clean(self) -> int:
        """Do as ``vlayer/cleaning.py`` until the tier asks for no more; return blobs moved."""
        moved = 0
        for _ in range(_ROUNDS_MAX):
            sources = self.tier.segments_to_clean()
            if not sources:
                return moved
            extent = self.tier.allocate(SEGMENT_SECTORS, cleaning=True)
            self._batch.reset(extent.sectors)
            emptied = [source for source in sources if self._gather(source)]
            moved += len(self._batch.items)
            if self._batch.items:
                self._write(extent)
            else:
                self.tier.release(*extent)
            self.tier.settle(extent)
            for source in sources:
                self.tier.end_cleaning(source, skip=source in emptied)
        raise AssertionError("cleaning comes to no end")

    def _gather(self, source: Extent) -> bool:
        for slot, place in self.places.items():
            if source.sector <= place.sector < source.sector + source.sectors:
                length = self._facts[slot][0]
                if not self._batch.fits(length):
                    return False
                self._add(slot, length)
        return True

    def read(self, place: Extent) -> bytes:
        """Return the sectors of *place*."""
        return bytes(self.tier.read(place.sector, place.sectors, self._scratch))

    def check(self) -> None:
        """Assert that every blob is what was stored last.

        :raises BlobCorrupt: one is another blob, or damaged
        """
        for slot, place in self.places.items():
            length, checksum, sequence = self._facts[slot]
            view = memoryview(self.read(place))
            ref = sector_ref.encode(place.sector, length, checksum)
            payload, found = check_blob(view, slot, _CODEC, ref, self.tier.seal)
            assert found == sequence
            assert payload == _payload(slot, sequence, length)


def _payload(slot: int, sequence: int, length: int) -> bytes:
    start = (slot * 31 + sequence) % PAGE_SIZE
    return _SOURCE[start : start + length]

"""Who may have a place in the pool: blobs, pages of the swap table, blobs that move."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swapfs.core._core import GRAIN_SHIFT, ZSPAGE_SHIFT
from swapfs.region.layout import ZSPAGE_BYTES, Region
from swapfs.tiers.pool.size_classes import (
    CLASS_OF_GRAINS,
    GRAIN,
    OBJECTS,
    RAW_CLASS,
    SIZES,
    TABLE_CLASS,
)
from swapfs.tiers.pool.zspages import NO_PLACE, Zspages
from swapfs.units import PAGE_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer


def spare_zspages(zspages: int) -> int:
    """Return how many of a pool's *zspages* only compaction may take: one, if it is not tiny."""
    return min(1, zspages // 8)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What the pool holds, in bytes.

    ``used_bytes`` counts whole zspages, ``object_bytes`` the objects handed out, and
    ``payload_bytes`` what was asked for; table pages count in the first two.
    """

    limit_bytes: int
    used_bytes: int
    object_bytes: int
    payload_bytes: int
    table_bytes: int
    peak_bytes: int
    zspages_free: int


class Pool:
    """Places of 1 to 4096 bytes in the arena of *region*; a place is a byte offset in it."""

    def __init__(self, region: Region) -> None:
        self.spare_zspages = spare_zspages(region.geometry.zspages)
        self.reserve_zspages = 0
        self.reset(Zspages(region), array("l", [0]), 0)

    def reset(self, zspages: Zspages, payload: array[int], table_bytes: int) -> None:
        """Begin with what a rebuild has found; *payload* is one number, of bytes."""
        self.zspages = zspages
        self._payload = payload
        self._table_bytes = table_bytes

    @property
    def limit_bytes(self) -> int:
        """Size of the pool."""
        return self.zspages.limit * ZSPAGE_BYTES

    @property
    def reserve_zspages(self) -> int:
        """Free zspages that only ``allocate_page`` may take: room for table pages."""
        return self._kept_free - self.spare_zspages

    @reserve_zspages.setter
    def reserve_zspages(self, zspages: int) -> None:
        self._kept_free = zspages + self.spare_zspages

    def tables(self) -> dict[str, Buffer]:
        """Return what ``_core.Writer`` keeps up to date, by its names; anew after a rebuild."""
        return {**self.zspages.tables(), "payload": self._payload}

    # ---- handing out and taking back ----

    def allocate(self, size: int) -> int:
        """Return a place for *size* bytes (1..4096), or NO_PLACE."""
        place = self._take(_class_for(size), self._kept_free)
        if place != NO_PLACE:
            self._payload[0] += size
        return place

    def allocate_below(self, other: int, size: int) -> int:
        """Return a place that is smaller than the object at *other*, or NO_PLACE.

        :param other: NO_PLACE: the place may be of any size
        """
        largest = (
            RAW_CLASS + 1 if other == NO_PLACE else self.zspages.class_of(other >> ZSPAGE_SHIFT)
        )
        if _class_for(size) >= largest:
            return NO_PLACE
        place = self.allocate(size)
        if place == NO_PLACE or self.zspages.class_of(place >> ZSPAGE_SHIFT) < largest:
            return place
        self.free(place, size)
        return NO_PLACE

    def allocate_to_move(self, size: int, largest: int, *, spare: bool) -> int:
        """Return a place for a blob that moves, in classes up to *largest*, or NO_PLACE.

        Claims no free zspage, but with *spare* the spare one, for places of one page.
        """
        zspages = self.zspages
        place = zspages.pop_any(_class_for(size), largest)
        if place == NO_PLACE and spare and len(zspages.free) > self.reserve_zspages:
            place = zspages.pop(zspages.claim(RAW_CLASS), RAW_CLASS)
        if place != NO_PLACE:
            self._payload[0] += size
        return place

    def allocate_page(self) -> int:
        """Return a place for one table page, page aligned, or NO_PLACE; may use the reserve."""
        place = self._take(TABLE_CLASS, 0)
        if place == NO_PLACE:
            place = self.zspages.pop_any(RAW_CLASS, RAW_CLASS)
        if place != NO_PLACE:
            self._table_bytes += PAGE_SIZE
        return place

    def bytes_for(self, size: int) -> int:
        """Return what a place for *size* bytes takes, of the class that is asked first."""
        return SIZES[_class_for(size)]

    def free(self, place: int, size: int) -> None:
        """Take back the place of a blob of *size* bytes."""
        self._payload[0] -= size
        self.zspages.give(place)

    def free_page(self, place: int) -> None:
        """Take back the place of a table page."""
        self._table_bytes -= PAGE_SIZE
        self.zspages.give(place)

    def _take(self, size_class: int, kept_free: int) -> int:
        zspages = self.zspages
        zspage = zspages.with_room(size_class)
        if zspage < 0:
            if len(zspages.free) <= kept_free:
                # Full: an object of a larger class is better than a refusal; never a table page.
                return zspages.pop_any(size_class + 1, RAW_CLASS)
            zspage = zspages.claim(size_class)
        return zspages.pop(zspage, size_class)

    # ---- what it holds ----

    @property
    def free_zspages(self) -> int:
        """Zspages that no class owns."""
        return len(self.zspages.free)

    @property
    def table_zspages(self) -> int:
        """Zspages that hold table pages and nothing else."""
        return self.zspages.owned[TABLE_CLASS]

    @property
    def used_bytes(self) -> int:
        """Bytes in zspages that hold anything."""
        return self.zspages.in_use * ZSPAGE_BYTES

    @property
    def object_bytes(self) -> int:
        """Bytes of the objects handed out: what it would use if they lay together."""
        return sum(n * size for n, size in zip(self.zspages.objects, SIZES, strict=True))

    @property
    def payload_bytes(self) -> int:
        """Bytes of blobs."""
        return self._payload[0]

    def room_for_any(self) -> int:
        """Return how many blobs of any size would get a place now; 0 is exact, more is not."""
        zspages = self.zspages
        room = max(0, len(zspages.free) - self._kept_free) * OBJECTS[RAW_CLASS]
        if zspages.with_room(RAW_CLASS) >= 0:
            room += zspages.owned[RAW_CLASS] * OBJECTS[RAW_CLASS] - zspages.objects[RAW_CLASS]
        return room

    def stats(self) -> PoolStats:
        """Return what the pool holds now."""
        zspages = self.zspages
        return PoolStats(
            limit_bytes=self.limit_bytes,
            used_bytes=self.used_bytes,
            object_bytes=self.object_bytes,
            payload_bytes=self.payload_bytes,
            table_bytes=self._table_bytes,
            peak_bytes=zspages.most_used * ZSPAGE_BYTES,
            zspages_free=len(zspages.free),
        )


def _class_for(size: int) -> int:
    return CLASS_OF_GRAINS[(size + GRAIN - 1) >> GRAIN_SHIFT]

"""The pool made anew from the swap table, after another server died."""

from __future__ import annotations

from array import array
from typing import Final

from swapfs.core._core import Marker
from swapfs.region.layout import Region
from swapfs.tiers.pool.allocator import Pool
from swapfs.tiers.pool.size_classes import SIZES
from swapfs.tiers.pool.zspages import Zspages
from swapfs.units import PAGE_SIZE

_WORD_SHIFT: Final = 3


class PoolRebuild:
    """Takes every place that the table of *region* names; ``finish`` puts them into *pool*.

    Every method raises AssertionError when the table and the pool do not agree.
    """

    def __init__(self, region: Region, pool: Pool) -> None:
        self._pool = pool
        self._zspages = Zspages(region)
        self._zspages.free.clear()
        self._payload, self._table_bytes = array("l", [0]), 0
        self._taken = array("l", [0])
        self._marker = Marker(
            arena=region.arena,
            classes=region.classes,
            sizes=array("H", SIZES),
            used=self._zspages.used,
            objects=self._zspages.objects,
            payload=self._payload,
            taken=self._taken,
        )

    @property
    def payload_bytes(self) -> int:
        """Bytes of the blobs so far."""
        return self._payload[0]

    @property
    def taken_bytes(self) -> int:
        """Bytes of the objects in which they are."""
        return self._taken[0]

    def mark(self, place: int, size: int) -> None:
        """Declare *place* in use by a blob of *size* bytes."""
        self._marker.mark(place, size)

    def mark_page(self, place: int) -> None:
        """Declare *place* in use by a table page."""
        self._marker.mark_page(place)
        self._table_bytes += PAGE_SIZE

    def mark_table(self, place: int) -> list[tuple[int, int]]:
        """Declare a table page and every blob in the pool that its words name in use.

        Returns the words of the blobs below the pool, each with its number in the page.
        """
        self.mark_page(place)
        return self._marker.mark_words(place >> _WORD_SHIFT)

    def finish(self) -> None:
        """Make the free lists from what was marked."""
        zspages, marker = self._zspages, self._marker
        for zspage in range(zspages.count - 1, -1, -1):
            used = zspages.used[zspage]
            if not used:
                zspages.adopt_free(zspage)
            else:
                full = used == zspages.capacity(zspage)
                zspages.adopt(zspage, None if full else marker.relink(zspage))
        zspages.most_used = zspages.in_use
        self._pool.reset(zspages, self._payload, self._table_bytes)

"""Refault distance: a page that comes back soon, counted in pages that went meanwhile, is active.

Source: mm/workingset.c of the kernel. An eviction notes the time, counted in evictions and
activations; if a page is asked for again before as many have passed as there are pages in the
pool, it would have stayed in a pool that much larger, and is worth a place at the cost of an
active one. So it alone comes back to the pool, and the others stay below.
"""

from __future__ import annotations

from swapfs.policy.base import Eyes, Facts, Listed

INACTIVE, ACTIVE, SHADOW = range(3)
_CLOCK_MASK = (1 << 31) - 1


class RefaultDistance(Listed):
    """Two lists as the kernel's, and the shadows of what went."""

    name = "refault-distance"
    tracks = 8
    lists = 3

    def __init__(self, facts: Facts, eyes: Eyes) -> None:
        super().__init__(facts, eyes)
        self._age = 0

    def _resident(self) -> int:
        return self.pages.length(INACTIVE) + self.pages.length(ACTIVE)

    def _is_near(self, slot: int) -> bool:
        distance = (self._age - self.pages.marked(slot)) & _CLOCK_MASK
        return self.pages.where(slot) == SHADOW and distance <= self._resident()

    def stored(self, slot: int, age: int) -> None:
        """Be inactive; active if it went not long ago; one that is there was used."""
        pages, ring = self.pages, self.pages.where(slot)
        if ring in (INACTIVE, ACTIVE, self.offered):
            self.read(slot, age)
            return
        near = ring == SHADOW and self._is_near(slot)
        self._age += near
        pages.add(slot, ACTIVE if near else INACTIVE)
        pages.mark(slot, 0)

    def read(self, slot: int, age: int) -> None:
        """Be referenced; at the second time, active (mark_page_accessed)."""
        pages, ring = self.pages, self.pages.where(slot)
        if ring == self.offered or (ring == INACTIVE and pages.marked(slot)):
            pages.mark(slot, 0)
            pages.add(slot, ACTIVE)
            self._age += 1
        elif ring in (INACTIVE, ACTIVE):
            pages.mark(slot, 1)

    def rejoins(self, slot: int) -> bool:
        """Take nothing back: ``read`` does."""
        return False

    def demoted(self, slot: int) -> None:
        """Leave a shadow with the time; as many as twice the pages that are there."""
        pages = self.pages
        self._age += 1
        if pages.add(slot, SHADOW):
            pages.mark(slot, self._age & _CLOCK_MASK)
        while pages.length(SHADOW) > max(16, 2 * self._resident()):
            pages.remove(pages.oldest(SHADOW))

    def victim(self) -> int:
        """Return the oldest inactive page; active ones become inactive while those are few."""
        pages = self.pages
        while pages.length(ACTIVE) > pages.length(INACTIVE):
            slot = pages.oldest(ACTIVE)
            pages.mark(slot, 0)
            pages.add(slot, INACTIVE)
        return pages.oldest(INACTIVE)

    def brings_back(self, slot: int, *, refaulted: bool) -> bool | None:
        """Bring back what is near, whatever is configured."""
        return self._is_near(slot)

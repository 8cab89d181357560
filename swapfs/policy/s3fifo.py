"""S3-FIFO: a small queue for what comes new, a main queue for what was used in it, and ghosts.

Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO Queues are All You Need for Cache Eviction", SOSP
2023; the figures (a tenth, two reads, nine tenths) are those of its authors' simulator.
"""

from __future__ import annotations

from typing import Final

from swapfs.policy.base import Eyes, Facts, Listed

SMALL, MAIN, GHOST = range(3)
READS_MAX: Final = 3
TO_MAIN: Final = 2
"""Reads in the small queue that bring a page to the main one."""
_FROM_SMALL: Final = 8
"""The mark of a page that was offered out of the small queue."""


class S3Fifo(Listed):
    """Two bits a page."""

    name = "s3-fifo"
    tracks = 8
    lists = 3

    def __init__(self, facts: Facts, eyes: Eyes) -> None:
        super().__init__(facts, eyes)
        self._evicted = False

    def _capacity(self) -> int:
        """Return how many pages the pool holds: if that is not fixed, those that are there."""
        if self.facts.fixed:
            return self.facts.pool_pages
        return self.pages.length(SMALL) + self.pages.length(MAIN)

    def stored(self, slot: int, age: int) -> None:
        """Join the small queue, or the main one if it is remembered; else it was used."""
        pages = self.pages
        ring = pages.where(slot)
        if ring == GHOST:
            pages.mark(slot, 0)
            pages.add(slot, MAIN)
        elif ring >= 0:
            self.read(slot, age)
        else:
            early = self.facts.fixed and not self._evicted
            full = early and pages.length(SMALL) >= self._capacity() // 10
            pages.add(slot, MAIN if full else SMALL)

    def read(self, slot: int, age: int) -> None:
        """Count it, up to three."""
        pages = self.pages
        ring = pages.where(slot)
        if ring == self.offered:
            pages.mark(slot, 0)
            pages.add(slot, MAIN)
        elif ring in (SMALL, MAIN):
            pages.mark(slot, min(pages.marked(slot) + 1, READS_MAX))

    def rejoins(self, slot: int) -> bool:
        """Take nothing back: ``read`` does."""
        return False

    def demoted(self, slot: int) -> None:
        """Remember what left the small queue, so many as nine tenths of the pool."""
        pages = self.pages
        if not pages.marked(slot) & _FROM_SMALL:
            pages.remove(slot)
            return
        pages.add(slot, GHOST)
        while pages.length(GHOST) > max(1, self._capacity() * 9 // 10):
            pages.remove(pages.oldest(GHOST))

    def victim(self) -> int:
        """Return the oldest of the small queue, or of the main one if that is too long."""
        pages = self.pages
        self._evicted = True
        while pages.length(SMALL) + pages.length(MAIN):
            capacity = self._capacity()
            if pages.length(MAIN) > capacity - capacity // 10 or not pages.length(SMALL):
                slot = pages.oldest(MAIN)
                if not (reads := pages.marked(slot)):
                    return slot
                pages.mark(slot, reads - 1)
            else:
                slot = pages.oldest(SMALL)
                if pages.marked(slot) < TO_MAIN:
                    pages.mark(slot, _FROM_SMALL)
                    return slot
                pages.mark(slot, 0)
            pages.add(slot, MAIN)
        return -1

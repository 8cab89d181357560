"""2Q: what comes new waits in a queue; only what is asked for again after it left is kept by use.

Source: Johnson, Shasha, "2Q: A Low Overhead High Performance Buffer Management Replacement
Algorithm", VLDB 1994, full version: Kin a quarter and Kout half of the pages.
"""

from __future__ import annotations

from swapfs.policy.base import Listed

IN, MAIN, OUT = range(3)


class TwoQ(Listed):
    """Pages that are read once, one after the other, do not push out what is used."""

    name = "2q"
    tracks = 6
    lists = 3

    def _capacity(self) -> int:
        if self.facts.fixed:
            return self.facts.pool_pages
        return self.pages.length(IN) + self.pages.length(MAIN)

    def stored(self, slot: int, age: int) -> None:
        """Wait in the queue; in the main list if it was remembered or is there."""
        ring = self.pages.where(slot)
        if ring < 0:
            self.pages.add(slot, IN)
        elif ring != IN:
            self.pages.mark(slot, 0)
            self.pages.add(slot, MAIN)

    def read(self, slot: int, age: int) -> None:
        """Become the newest of the main list, if it is in it; the queue is left as it is."""
        if self.pages.where(slot) in (MAIN, self.offered):
            self.pages.mark(slot, 0)
            self.pages.add(slot, MAIN)

    def rejoins(self, slot: int) -> bool:
        """Take nothing back: ``read`` does."""
        return False

    def demoted(self, slot: int) -> None:
        """Remember what left the queue, for half as many pages as there are."""
        pages = self.pages
        if not pages.marked(slot):
            pages.remove(slot)
            return
        pages.add(slot, OUT)
        while pages.length(OUT) > max(1, self._capacity() // 2):
            pages.remove(pages.oldest(OUT))

    def victim(self) -> int:
        """Return the oldest of the queue while that is long, else the least recently used."""
        pages = self.pages
        if pages.length(IN) > self._capacity() // 4 or not pages.length(MAIN):
            slot = pages.oldest(IN)
            if slot >= 0:
                pages.mark(slot, 1)
            return slot
        return pages.oldest(MAIN)

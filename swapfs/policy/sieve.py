"""SIEVE: a queue that nothing is moved in, and a hand that takes what was not visited.

Source: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU", NSDI 2024.
"""

from __future__ import annotations

from swapfs.policy.base import Eyes, Facts, Listed


class Sieve(Listed):
    """One bit a page, and one hand from the oldest towards the newest."""

    name = "sieve"

    def __init__(self, facts: Facts, eyes: Eyes) -> None:
        super().__init__(facts, eyes)
        self._hand = -1

    def stored(self, slot: int, age: int) -> None:
        """Join the queue; a page that is in it was visited."""
        if self.pages.where(slot) < 0:
            self.pages.add(slot, 0)
        else:
            self.pages.mark(slot, 1)

    def read(self, slot: int, age: int) -> None:
        """Note the visit."""
        self.pages.mark(slot, 1)

    def left(self, slot: int) -> None:
        """Forget it; the hand goes on to the next."""
        if slot == self._hand:
            self._hand = self.pages.newer(slot)
        self.pages.remove(slot)

    def victim(self) -> int:
        """Return what the hand finds unvisited; it forgets the visits that it passes."""
        pages = self.pages
        slot = self._hand if self._hand >= 0 else pages.oldest(0)
        while slot >= 0 and pages.marked(slot):
            pages.mark(slot, 0)
            slot = pages.newer(slot)
            if slot < 0:
                slot = pages.oldest(0)
        self._hand = pages.newer(slot) if slot >= 0 else -1
        return slot

"""CLOCK by the log: a queue in which what was used since it joined joins again.

Source: Corbato, "A Paging Experiment with the Multics System", 1968, as FIFO with reinsertion.
``second_chance`` is the same idea over the swap table, without a list.
"""

from __future__ import annotations

from swapfs.policy.base import Listed


class Clock(Listed):
    """One bit a page."""

    name = "clock"

    def stored(self, slot: int, age: int) -> None:
        """Join the queue; a page that is in it was used."""
        if self.pages.where(slot) < 0:
            self.pages.add(slot, 0)
        else:
            self.pages.mark(slot, 1)

    def read(self, slot: int, age: int) -> None:
        """Note that it was used."""
        self.pages.mark(slot, 1)

    def victim(self) -> int:
        """Return the oldest that was not used; let those that were join again."""
        pages = self.pages
        while (slot := pages.oldest(0)) >= 0 and pages.marked(slot):
            pages.mark(slot, 0)
            pages.add(slot, 0)
        return slot

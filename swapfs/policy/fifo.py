"""First in, first out: what came into the pool first goes down first, however often it is read."""

from __future__ import annotations

from swapfs.policy.base import Listed


class Fifo(Listed):
    """The floor that others must beat."""

    name = "fifo"

    def stored(self, slot: int, age: int) -> None:
        """Join the queue, unless it is in it."""
        if self.pages.where(slot) < 0:
            self.pages.add(slot, 0)

    def victim(self) -> int:
        """Return the oldest."""
        return self.pages.oldest(0)

"""Least recently used, exactly: from the log, which has every access in its order."""

from __future__ import annotations

from swapfs.policy.base import Listed


class Lru(Listed):
    """What was stored or read longest ago goes down first."""

    name = "lru"

    def stored(self, slot: int, age: int) -> None:
        """Become the newest."""
        self.pages.add(slot, 0)

    def read(self, slot: int, age: int) -> None:
        """Become the newest, if it is known."""
        if self.pages.where(slot) >= 0:
            self.pages.add(slot, 0)

    def victim(self) -> int:
        """Return the least recently used."""
        return self.pages.oldest(0)

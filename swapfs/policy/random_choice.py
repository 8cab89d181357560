"""Any page at all: what others must beat to be worth their memory."""

from __future__ import annotations

from typing import Final

from swapfs.policy.base import Eyes, Facts, Listed

_FACTOR: Final = 6364136223846793005
_ADDED: Final = 1442695040888963407
_MASK: Final = (1 << 64) - 1


class Random(Listed):
    """Knuth's linear congruential generator (MMIX), so that a run can be repeated."""

    name = "random"

    def __init__(self, facts: Facts, eyes: Eyes) -> None:
        super().__init__(facts, eyes)
        self._state = 1

    def stored(self, slot: int, age: int) -> None:
        """Be one of them."""
        self.pages.add(slot, 0)

    def victim(self) -> int:
        """Return any."""
        self._state = (self._state * _FACTOR + _ADDED) & _MASK
        return self.pages.pick(0, self._state >> 32)

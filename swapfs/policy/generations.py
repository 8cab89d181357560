"""Generations: pages age together; the oldest generation goes down first.

Source: the multi-generational LRU of the kernel (mm/vmscan.c, Documentation/mm/multigen_lru.rst),
with the age class of the access log in the place of page table walks: an access of a cluster that
is in use makes a page young, one of a cluster that was quiet for long not quite.
"""

from __future__ import annotations

from typing import Final

from swapfs.policy.base import Eyes, Facts, Listed

GENERATIONS: Final = 4
LOOK_USES: Final = 32
"""Pages that become young between two looks whether a generation is full."""
QUIET_AGE: Final = 9
"""An age class: some 4 s and more since the cluster was touched before."""


class Generations(Listed):
    """Four lists that turn: list ``sequence % 4`` is a generation."""

    name = "generations"
    lists = GENERATIONS

    def __init__(self, facts: Facts, eyes: Eyes) -> None:
        super().__init__(facts, eyes)
        self._youngest = GENERATIONS - 1
        self._oldest = 0
        self._uses = 0

    def stored(self, slot: int, age: int) -> None:
        """Join the youngest generation, or the one before it after a long silence."""
        pages = self.pages
        back = 1 if age >= QUIET_AGE and self._youngest > self._oldest else 0
        pages.add(slot, (self._youngest - back) % GENERATIONS)
        self._uses += 1
        if not self._uses % LOOK_USES:
            self._begin_generation()

    def _begin_generation(self) -> None:
        """Begin another if the youngest has more than its share."""
        length = self.pages.length
        tracked = sum(length(ring) for ring in range(GENERATIONS))
        if length(self._youngest % GENERATIONS) * GENERATIONS <= tracked:
            return
        while self._oldest < self._youngest and not self.pages.length(self._oldest % GENERATIONS):
            self._oldest += 1
        if self._youngest - self._oldest < GENERATIONS - 1:
            self._youngest += 1

    def read(self, slot: int, age: int) -> None:
        """Become young, if it is known."""
        if self.pages.where(slot) >= 0:
            self.stored(slot, age)

    def rejoins(self, slot: int) -> bool:
        """Take nothing back: ``read`` does."""
        return False

    def victim(self) -> int:
        """Return the oldest of the oldest generation."""
        for sequence in range(self._oldest, self._youngest + 1):
            slot = self.pages.oldest(sequence % GENERATIONS)
            if slot >= 0:
                return slot
            if sequence < self._youngest:
                self._oldest = sequence + 1
        return -1

"""Blobs that were released and are not deleted yet, in memory that is reserved: a ring."""

from __future__ import annotations

from array import array


class Released:
    """At most *most* blobs, the first released first; not thread safe."""

    def __init__(self, most: int) -> None:
        self._ring = array("Q", bytes(16 * most))
        self._first = self._count = 0

    @property
    def map_bytes(self) -> int:
        """The memory that it takes."""
        return 8 * len(self._ring)

    def __len__(self) -> int:
        return self._count

    def note(self, slot: int, ref: int) -> bool:
        """Add one; False: there is no room for it."""
        if 2 * self._count == len(self._ring):
            return False
        at = self._at(self._count)
        self._ring[at], self._ring[at + 1] = slot, ref
        self._count += 1
        return True

    def oldest(self, most: int) -> list[tuple[int, int]]:
        """Return slot and reference of the first ones, at most so many."""
        places = map(self._at, range(min(self._count, most)))
        return [(self._ring[at], self._ring[at + 1]) for at in places]

    def forget(self, count: int) -> None:
        """Take the first *count* out."""
        self._first += count
        self._count -= count

    def clear(self) -> None:
        """Take all out."""
        self._first = self._count = 0

    def _at(self, number: int) -> int:
        return (self._first + number) * 2 % len(self._ring)

"""Numbers sorted into a few lists, every operation in constant time and without allocation.

Each list is a ring through two arrays, closed by a sentinel past the numbers (the kernel's
``list_head``). Knows nothing of what the numbers stand for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ListHeads:
    """The numbers below *count*, each in exactly one of *lists* lists; at first all in list 0."""

    def __init__(self, count: int, lists: int) -> None:
        self._count = count
        nodes = count + lists
        self._next = array("I", range(1, nodes + 1))
        self._previous = array("I", [0]) + array("I", range(nodes - 1))
        self._where = bytearray(count)
        self._lengths = array("I", [count]) + array("I", bytes(4 * (lists - 1)))
        for sentinel in range(count, nodes):
            self._link(sentinel, sentinel)
        self._link(count, 0)
        self._link(count - 1, count)

    def _link(self, left: int, right: int) -> None:
        self._next[left] = right
        self._previous[right] = left

    def tables(self) -> dict[str, Buffer]:
        """Return the arrays, for C code that does what ``move`` does.

        ``next`` and ``previous`` of each number and then of each list's sentinel; ``where``, the
        list of each number; ``lengths`` of the lists.
        """
        return {
            "next": self._next,
            "previous": self._previous,
            "where": self._where,
            "lengths": self._lengths,
        }

    def where(self, number: int) -> int:
        """Return the list that *number* is in."""
        return self._where[number]

    def length(self, ring: int) -> int:
        """Return how many numbers are in list *ring*."""
        return self._lengths[ring]

    def first(self, ring: int) -> int:
        """Return the first number in list *ring*; -1 when it is empty."""
        number = self._next[self._count + ring]
        return number if number < self._count else -1

    def move(self, number: int, ring: int, *, last: bool = False) -> None:
        """Put *number* at the front of list *ring*, or at its end."""
        self._link(self._previous[number], self._next[number])
        self._lengths[self._where[number]] -= 1
        sentinel = self._count + ring
        if last:
            self._link(self._previous[sentinel], number)
            self._link(number, sentinel)
        else:
            self._link(number, self._next[sentinel])
            self._link(sentinel, number)
        self._where[number] = ring
        self._lengths[ring] += 1

    def numbers(self, ring: int, limit: int) -> list[int]:
        """Return the first *limit* numbers of list *ring*."""
        return list(islice(self._walk(ring), limit))

    def members(self, ring: int) -> list[int]:
        """Return the numbers in list *ring*, in their own order; other threads may move some."""
        found, where, wanted = [], bytes(self._where), bytes((ring,))
        number = where.find(wanted)
        while number >= 0:
            found.append(number)
            number = where.find(wanted, number + 1)
        return found

    def _walk(self, ring: int) -> Iterator[int]:
        number = self.first(ring)
        while 0 <= number < self._count:
            yield number
            number = self._next[number]

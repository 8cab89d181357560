"""How long a tier took, as a histogram; begins anew with each server."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import Final

BOUNDS_S: Final = tuple(2.0**exponent for exponent in range(-15, 4))
"""Upper bounds of the buckets, 31 us to 8 s; what took longer is in one more."""
_NS: Final = 1e9


class Durations:
    """Counts of durations. Not thread safe: the layer's lock covers it.

    ``words``: the buckets, and the sum in ns; ``core/disks.c`` counts in them too.
    """

    __slots__ = ("words",)

    def __init__(self) -> None:
        self.words = array("Q", bytes(8 * (len(BOUNDS_S) + 2)))

    def note(self, seconds: float) -> None:
        """Count one."""
        self.words[bisect_left(BOUNDS_S, seconds)] += 1
        self.words[-1] += round(seconds * _NS)

    @property
    def counts(self) -> list[int]:
        """How many were in each bucket."""
        return self.words[:-1].tolist()

    @property
    def sum_s(self) -> float:
        """All of them together."""
        return self.words[-1] / _NS

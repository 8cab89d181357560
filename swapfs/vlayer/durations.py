"""How long a tier took, as a histogram; begins anew with each server."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BOUNDS_S: Final = tuple(2.0**exponent for exponent in range(-15, 4))
"""Upper bounds of the buckets, 31 us to 8 s; what took longer is in one more."""


class Durations:
    """Counts of durations. Not thread safe: the layer's lock covers it."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def note(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

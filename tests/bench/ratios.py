"""Medians and spreads, of samples and of ratios that are taken round by round.

A ratio is taken between two samples of the same round, and the median of those ratios is what
counts: a machine that is slow for a while is slow for both. The quotient of two medians would not
have that.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.record import Figure


@dataclass(frozen=True)
class Spread:
    """The median of some values, and the smallest and largest of them."""

    low: float
    median: float
    high: float
    count: int

    def holds(self, value: float) -> bool:
        """Return whether *value* is between the smallest and the largest."""
        return self.low <= value <= self.high


def spread(values: Sequence[float]) -> Spread:
    """Return median and extremes of *values*, of which there is at least one."""
    return Spread(min(values), statistics.median(values), max(values), len(values))


def per_round(top: Figure, bottom: Figure) -> list[float]:
    """Return top / bottom for each round that both have; rounds where bottom is 0 have none."""
    if top.unit != bottom.unit:
        raise ValueError(f"{top.test}, {top.metric}: {top.unit} against {bottom.unit}")
    return [
        above / below
        for above, below in zip(top.samples, bottom.samples, strict=False)
        if below != 0
    ]


def ratio(top: Figure, bottom: Figure) -> Spread | None:
    """Return the spread of `per_round`; None if no round has a ratio."""
    ratios = per_round(top, bottom)
    return spread(ratios) if ratios else None

"""Second chance over the swap table itself: the default.

Recency costs two bits of a word and no list. The hand takes the clusters in the order of their
first use, cools what is hot, and offers what it finds cold. A new blob is hot, so it stays for
one round at least. Source: the clock of Corbato, "A Paging Experiment with the Multics System",
1968; here over slots, which the kernel hands out in the order in which it evicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from swapfs.policy.base import NOTHING_YET, Eyes, Facts, Policy
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS

STEP_SLOTS: Final = 64
"""Slots looked at under one hold of the layer's lock, so that no request waits long."""


class SecondChance(Policy):
    """Walks the table; reads the log not at all."""

    name = "second-chance"
    hears = False
    by_heat = True

    def __init__(self, facts: Facts, eyes: Eyes) -> None:
        super().__init__(facts, eyes)
        self._eyes = eyes
        self._slot = self._end = 0
        self._found: list[int] = []  # cold, and not offered yet; the last one is the next

    def candidates(self, tier: int) -> Iterator[int]:
        """Yield cold slots, for at most two rounds of the table."""
        eyes = self._eyes
        steps = 2 * (eyes.live_clusters() + 1) * (CLUSTER_SLOTS // STEP_SLOTS)
        while True:
            while self._found:
                yield self._found.pop()
            if not steps:
                return
            steps -= 1
            if self._slot >= self._end:
                cluster = eyes.next_cluster()
                if cluster is None:
                    return
                self._slot = cluster << CLUSTER_SHIFT
                self._end = self._slot + CLUSTER_SLOTS
            self._found = eyes.cool(self._slot, STEP_SLOTS)
            self._slot += STEP_SLOTS
            yield NOTHING_YET

    def refused(self, slot: int) -> None:
        """Offer it first, the next time."""
        self._found.append(slot)

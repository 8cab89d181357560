"""The clock hand: which blobs of the pool are cold enough to go down.

Second chance over the swap table itself, so that recency costs two bits of a word and no list:
the hand takes the clusters in the order in which they were first used, cools what is
hot, and offers what it finds cold. A new blob is hot, so it stays for one round at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS
from swapfs.vlayer.entry import BACKING_MASK, HEAT_MASK, HEAT_ONE, IN_POOL, MOVING, is_raw
from swapfs.vlayer.layer import VirtualSlotLayer

STEP_SLOTS: Final = 64
"""Slots looked at under one hold of the layer's lock, so that no request waits long."""
_LOOKED_AT: Final = BACKING_MASK | MOVING


class ClockHand:
    """Walks the table of *layer*; one thread owns it.

    :param raw_first: pages kept raw, which gain no room in memory, get no second chance unless
        they were read (zram: huge): so they go down a round before others
    """

    def __init__(self, layer: VirtualSlotLayer, *, raw_first: bool = False) -> None:
        self._layer = layer
        self._raw_first = raw_first
        self._cluster = -1
        self._next = CLUSTER_SLOTS

    def victims(self) -> Iterator[Iterator[tuple[int, int]]]:
        """Yield iterators of (slot, word) of cold blobs, for at most two rounds of the table.

        Call it with the layer's lock held; it is held whenever a generator runs, and the
        caller may let it go between two iterators.
        """
        table = self._layer.table
        slots = 2 * (table.live_clusters + 1) * CLUSTER_SLOTS
        while slots > 0:
            if self._next >= CLUSTER_SLOTS:
                cluster = table.oldest_cluster()
                if cluster is None:
                    return
                table.rotate(cluster)
                self._cluster, self._next = cluster, 0
            first = self._next
            self._next = (first // STEP_SLOTS + 1) * STEP_SLOTS
            yield self._look(first, self._next - first)
            slots -= max(1, self._next - first)  # fewer after `back`

    def _look(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        table = self._layer.table
        slot = (self._cluster << CLUSTER_SHIFT) + first
        for word in table.run(slot, count):
            if word & _LOOKED_AT == IN_POOL:
                heat = word & HEAT_MASK
                if heat and not (heat == HEAT_ONE and self._raw_first and is_raw(word)):
                    table.mark(slot, HEAT_MASK, on=False)
                else:
                    yield slot, word
            slot += 1

    def back(self, slot: int) -> None:
        """Let the hand start again at *slot*, which it offered last and which was not taken."""
        assert slot >> CLUSTER_SHIFT == self._cluster
        self._next = slot & (CLUSTER_SLOTS - 1)

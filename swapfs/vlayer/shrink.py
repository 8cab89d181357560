"""Making the pool smaller: what lies beyond its new end is moved to places before it.

The places beyond the end are closed first, so that nothing new comes to lie there; then a walk
over the table moves each blob and each page of the table that does, as compaction does it: copy,
publish, free the old place, all under the lock (I3). Where no place is left, cold blobs go down to
the tiers, or are moved together. If neither helps, the end is where it was before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swapfs.region.layout import ZSPAGE_BYTES
from swapfs.tiers.pool import NO_PLACE
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS, PAGE_SIZE
from swapfs.vlayer.entry import (
    BACKING_MASK,
    IN_POOL,
    MOVING,
    POOL_ZSPAGE_SHIFT,
    blob_length,
    move_pool,
)
from swapfs.vlayer.layer import VirtualSlotLayer

_STEP_BLOBS: Final = 32
"""Blobs moved before a look whether others want the lock."""
_ROUNDS_MAX: Final = 8
"""Walks that may gain nothing: blobs may be on their way to another place meanwhile."""
_PAGES_PER_ZSPAGE: Final = ZSPAGE_BYTES // PAGE_SIZE


class Shrink:
    """Moves what lies beyond *limit* zspages of the pool of *layer*; for one thread.

    :param make_room: has cold blobs go down, or moves them together; False: neither gains
    """

    def __init__(
        self, layer: VirtualSlotLayer, limit: int, make_room: Callable[[int], bool]
    ) -> None:
        self._layer = layer
        self._limit = limit
        self._make_room = make_room

    @property
    def left_bytes(self) -> int:
        """How much is still in use beyond the end."""
        return self._layer.pool.zspages.beyond * ZSPAGE_BYTES

    def run(self, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Move all of it; False: there is no other room for it, and the end is where it was.

        :param go_on: False ends it as well
        """
        layer = self._layer
        zspages = layer.pool.zspages
        with layer.lock:
            before = zspages.limit
            zspages.set_limit(self._limit)
            layer.table.update_reserve()
        done = False
        try:
            done = self._empty(go_on)
        finally:
            if not done:
                with layer.lock:
                    zspages.set_limit(before)
                    layer.table.update_reserve()
        return done

    def _empty(self, go_on: Callable[[], bool]) -> bool:
        zspages, idle = self._layer.pool.zspages, 0
        while (left := zspages.beyond) and go_on():
            with self._layer.lock:
                zspages.close_beyond()
            fitted = self._walk()
            if not fitted and not self._make_room(left * _PAGES_PER_ZSPAGE):
                return False
            idle = 0 if zspages.beyond < left or not fitted else idle + 1
            if idle > _ROUNDS_MAX:
                return False
        return not zspages.beyond

    def _walk(self) -> bool:
        """Move what a walk over the table finds; False: it met one that there is no place for."""
        layer = self._layer
        for cluster in layer.live_clusters(0, layer.table.slots):
            with layer.lock:
                if not self._move_page(cluster) or not self._move_blobs(cluster):
                    return False
            layer.lock.relax()
        return True

    def _move_page(self, cluster: int) -> bool:
        table, first = self._layer.table, cluster << CLUSTER_SHIFT
        base = table.base(first)
        if base < 0 or base * 8 // ZSPAGE_BYTES < self._limit:
            return True
        return table.move_page(cluster)

    def _move_blobs(self, cluster: int) -> bool:
        table, first, moved = self._layer.table, cluster << CLUSTER_SHIFT, 0
        for index, word in enumerate(table.run(first, CLUSTER_SLOTS)):
            if not self._is_beyond(word):
                continue
            if moved and moved % _STEP_BLOBS == 0:
                self._layer.lock.resched()
            now = table.get(first + index)  # it may have changed in between
            if self._is_beyond(now) and not now & MOVING:
                if not self._move(first + index, now):
                    return False
                moved += 1
        return True

    def _is_beyond(self, word: int) -> bool:
        return word & BACKING_MASK == IN_POOL and word >> POOL_ZSPAGE_SHIFT >= self._limit

    def _move(self, slot: int, word: int) -> bool:
        layer = self._layer
        place = layer.pool.allocate(blob_length(word))
        if place == NO_PLACE:
            return False
        layer.put(place, layer.blob(word))
        layer.free(slot, layer.table.exchange(slot, move_pool(word, place), "compact"))
        layer.counters.add("compacted_pages")
        return True


def grow(layer: VirtualSlotLayer, limit: int) -> None:
    """Let the pool of *layer* use *limit* zspages, which are in memory."""
    with layer.lock:
        layer.pool.zspages.set_limit(limit)
        layer.table.update_reserve()

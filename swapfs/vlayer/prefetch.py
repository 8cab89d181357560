"""Prefetch: what lies beside a page that is read from below comes up in the same read.

By option, and as far as the policy says. How far it pays is learned, as the kernel does for its own
readahead (swapin_nr_pages, mm/swap_state.c): twice as far where half of what came up was used, half
as far where a quarter was not. A page has been used when it was read before PENDING others came.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Final

from swapfs.core._core import sign
from swapfs.tiers.pool import NO_PLACE
from swapfs.vlayer.entry import (
    FLAGS,
    HEAT_MASK,
    blob_codec,
    encode_pool,
    is_below,
    tier_of,
)
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.single_flight import Flight

PAGES_MAX: Final = 64
"""More than a disk read takes at once (``fetch.WINDOW_BYTES``), if nothing compresses."""
PENDING: Final = 256
JUDGED_AT_ONCE: Final = 32
_FIRST_WINDOW: Final = 8

Ask = Callable[[int, int, int], int]
"""(slot, pages that are read from there on, most) -> how many of those after them come along."""


class Prefetcher:
    """Brings up to *pages_max* pages along with one that is read; the layer's lock is held.

    :param ask: the policy
    :param has_room: whether the pool may take more
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        ask: Ask,
        pages_max: int,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        assert 0 < pages_max <= PAGES_MAX
        self._layer = layer
        self._ask = ask
        self._has_room = has_room
        self._pages_max = pages_max
        self.window = min(_FIRST_WINDOW, pages_max)
        self._slots = array("Q", bytes(8 * PENDING))
        self._words = array("Q", bytes(8 * PENDING))
        self._came = 0
        self._judged = self._used = 0

    def wanted(self, slot: int, count: int) -> int:
        """Return how many pages that follow *count* pages from *slot* on are to come along."""
        return self._ask(slot, count, self.window) if self._has_room() else 0

    def take(self, slot: int, flights: Sequence[Flight]) -> None:
        """Put blobs that were read, of *slot* and those after it, into the pool.

        Unless the slot has changed. They are cold there: what is not read soon goes down first.
        """
        layer = self._layer
        for index, flight in enumerate(flights):
            if flight.failure is not None:
                return  # nobody asked for it: whoever does will be told
            if index:
                layer.lock.resched()
            word, payload = flight.word, flight.payload
            if (layer.table.get(slot + index) ^ word) & ~FLAGS:
                continue
            place = layer.pool.allocate(len(payload))
            if place == NO_PLACE:
                return
            layer.put(place, payload)
            new = sign(encode_pool(place, len(payload), blob_codec(word)), payload)
            layer.free(slot + index, layer.table.exchange(slot + index, new, "promote"))
            layer.counters.add("prefetched_pages")
            if (level := layer.stack.get(tier_of(word))) is not None:
                level.figures.add("moved_out_pages")
            self._note(slot + index, new)

    # ---- whether it pays ----

    def _note(self, slot: int, word: int) -> None:
        at = self._came % PENDING
        if self._came >= PENDING:
            self._judge(self._slots[at], self._words[at])
        self._slots[at], self._words[at] = slot, word
        self._came += 1

    def _judge(self, slot: int, word: int) -> None:
        """See what became of a blob; if it was rewritten, discarded or moved, nobody knows."""
        current = self._layer.table.get(slot)
        there = not (current ^ word) & ~FLAGS
        if not there and not is_below(current):
            return
        used = bool(there and current & HEAT_MASK)
        self._layer.counters.add("prefetch_used_pages", used)
        self._judged += 1
        self._used += used
        if self._judged == JUDGED_AT_ONCE:
            self._learn()

    def _learn(self) -> None:
        if 2 * self._used >= self._judged:
            self.window = min(2 * self.window, self._pages_max)
        elif 4 * self._used < self._judged:
            self.window = max(self.window // 2, 1)  # one goes on, to see when it pays again
        self._judged = self._used = 0

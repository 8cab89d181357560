"""The swap table: slot -> word, in clusters of 512 made on first use.

A cluster's 512 words are one page of the pool, so the table's memory is part of what was
reserved at start (I5), and a cluster that empties gives its page back. The directory and the
words are truth (I3); the occupancy counts and the ring of live clusters are derived.
Idea: mm/swap_table.h and the dynamic clusters of the virtual swap space patches.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import compress
from typing import TYPE_CHECKING, Final

from swapfs.core._core import (
    EVENT_DEMOTE,
    EVENT_DISCARD,
    EVENT_MOVE,
    EVENT_PROMOTE,
    EVENT_STORE,
    Log,
    count_states,
)
from swapfs.errors import TierFull
from swapfs.region.layout import ZSPAGE_BYTES, Region
from swapfs.region.lists import ListHeads
from swapfs.tiers.pool import NO_PLACE, Pool
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS, PAGE_SHIFT, PAGE_SIZE, TIERS_MAX
from swapfs.vlayer.entry import HEAT_ONE, STATE_MASK, STATE_OF_WORD, STATES, TIER_STATE, is_legal
from swapfs.vlayer.exports import Exports
from swapfs.vlayer.stack import Stack

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SLOT_MASK: Final = CLUSTER_SLOTS - 1
_PAGES_PER_ZSPAGE: Final = ZSPAGE_BYTES // PAGE_SIZE
_RESERVE_SHARE: Final = 8
"""At most 1/8 of the pool is held back for tables that an overcommitted file may need."""
_COUNTED: Final = TIER_STATE + TIERS_MAX
_EVENTS: Final = {
    "write": EVENT_STORE,
    "write_direct": EVENT_STORE,
    "discard": EVENT_DISCARD,
    "demote": EVENT_DEMOTE,
    "promote": EVENT_PROMOTE,
    "clean": EVENT_MOVE,
    "drain": EVENT_MOVE,
    "sink": EVENT_MOVE,
}
"""What the access log says of a change, by its cause; of others it says nothing."""
_UNUSED, _LIVE = range(2)
"""Lists of clusters: without a table page, and with one in the order of the clock hand; the latter
of the first export, and others follow."""


def table_reserve_bytes(clusters: int, pool_bytes: int) -> int:
    """Return the part of a pool of *pool_bytes* that data must leave to *clusters* clusters."""
    wanted = -(-clusters // _PAGES_PER_ZSPAGE) * ZSPAGE_BYTES
    return min(wanted, pool_bytes // _RESERVE_SHARE // ZSPAGE_BYTES * ZSPAGE_BYTES)


class SwapTable:
    """The words of every slot of one region. Not thread safe: the layer's lock covers it."""

    def __init__(
        self, region: Region, pool: Pool, log: Log | None = None, exports: Exports | None = None
    ) -> None:
        self.exports = Exports(region, Stack()) if exports is None else exports
        self._pool = pool
        self._log = log
        self._words = region.arena_words
        self._arena = region.arena
        self._directory = region.directory
        self._clusters = region.geometry.clusters
        self.slots = region.geometry.slots
        # Slots in use by cluster, and slots by state; ``_core.Writer`` writes them too.
        self.occupied = array("H", bytes(2 * self._clusters))
        self.below = array("H", bytes(2 * self._clusters))
        """Of them, those whose blobs are in a tier below the pool."""
        self.counts = array("l", [0]) * _COUNTED
        self._ring = self._new_ring()
        self.update_reserve()

    def _new_ring(self) -> ListHeads:
        return ListHeads(self._clusters, _LIVE + len(self.exports))

    def _live(self, cluster: int) -> int:
        """Return the list in which *cluster* is while it has a table page."""
        return _LIVE + self.exports.at(cluster << CLUSTER_SHIFT).index

    def tables(self) -> dict[str, Buffer]:
        """Return what ``_core.Writer`` keeps up to date, by its names; anew after a rebuild."""
        own = {"state_counts": self.counts, "occupied": self.occupied}
        return {**own, **self.exports.tables()}

    # ---- words ----

    def base(self, slot: int) -> int:
        """Return the index in ``words`` of the cluster of *slot*; -1: no slot of it is used."""
        page = self._directory[slot >> CLUSTER_SHIFT]
        return ((page - 1) << CLUSTER_SHIFT) if page else -1

    def get(self, slot: int) -> int:
        """Return the word of *slot*."""
        page = self._directory[slot >> CLUSTER_SHIFT]
        if not page:
            return 0
        word: int = self._words[((page - 1) << CLUSTER_SHIFT) + (slot & _SLOT_MASK)]
        return word

    def run(self, slot: int, count: int) -> list[int]:
        """Return the words of *count* slots from *slot* on, all in one cluster."""
        assert (slot & _SLOT_MASK) + count <= CLUSTER_SLOTS
        base = self.base(slot)
        if base < 0:
            return [0] * count
        start = base + (slot & _SLOT_MASK)
        return self._words[start : start + count].tolist()

    def mark(self, slot: int, bits: int, *, on: bool) -> None:
        """Set or clear bits of FLAGS of an occupied *slot*; what it holds stays."""
        index = self.base(slot) + (slot & _SLOT_MASK)
        if on:
            self._words[index] |= bits
        else:
            self._words[index] &= ~bits

    def warm(self, slot: int) -> None:
        """Count a read of *slot*, whose heat is not at its end."""
        self._words[self.base(slot) + (slot & _SLOT_MASK)] += HEAT_ONE

    def exchange(self, slot: int, new: int, cause: str, length: int = 0) -> int:
        """Publish the word *new* for *slot* and return the old one, whose place is then free.

        :param length: of the blob, for the access log, where neither word says it
        :raises TierFull: the cluster has no page yet and the pool has none left
        """
        cluster = slot >> CLUSTER_SHIFT
        page = self._directory[cluster]
        if not page:
            if not new:
                return 0
            page = self._materialise(cluster)
        index = ((page - 1) << CLUSTER_SHIFT) + (slot & _SLOT_MASK)
        old: int = self._words[index]
        assert is_legal(cause, old, new), f"{cause}: {old:#x} -> {new:#x}"
        self._words[index] = new
        if self._log is not None and cause in _EVENTS:
            self._log.add(_EVENTS[cause], slot, old, new, length)
        before, after = STATE_OF_WORD[old & STATE_MASK], STATE_OF_WORD[new & STATE_MASK]
        self.counts[before] -= 1
        self.counts[after] += 1
        self.exports.change(slot, old, new)
        if (before > TIER_STATE) != (after > TIER_STATE):
            self.below[cluster] += 1 if after > TIER_STATE else -1
        if not old:
            if new:
                self.occupied[cluster] += 1
        elif not new:
            left = self.occupied[cluster] - 1
            self.occupied[cluster] = left
            if not left:
                self._give_back(cluster, page)
        return old

    # ---- clusters ----

    def materialise(self, slot: int) -> None:
        """Have a table page for the cluster of *slot*.

        :raises TierFull: the pool has none left
        """
        if not self._directory[slot >> CLUSTER_SHIFT]:
            self._materialise(slot >> CLUSTER_SHIFT)

    def missing_bytes(self, slot: int) -> int:
        """Return what the table page takes that the cluster of *slot* has not yet; else 0."""
        return 0 if self._directory[slot >> CLUSTER_SHIFT] else PAGE_SIZE

    def release_if_empty(self, slot: int) -> None:
        """Give the table page of the cluster of *slot* back if no slot of it is used."""
        cluster = slot >> CLUSTER_SHIFT
        page = self._directory[cluster]
        if page and not self.occupied[cluster]:
            self._give_back(cluster, page)

    def _materialise(self, cluster: int) -> int:
        place = self._pool.allocate_page()
        if place == NO_PLACE:
            raise TierFull("no room for a page of the swap table")
        self._arena[place : place + PAGE_SIZE] = bytes(PAGE_SIZE)
        page = (place >> PAGE_SHIFT) + 1
        self._directory[cluster] = page  # published only when it is zeroed (I3)
        self._ring.move(cluster, self._live(cluster), last=True)
        self.exports.change_table(cluster, 1)
        self.update_reserve()
        return page

    def _give_back(self, cluster: int, page: int) -> None:
        self._directory[cluster] = 0
        self._ring.move(cluster, _UNUSED)
        self.exports.change_table(cluster, -1)
        self._pool.free_page((page - 1) << PAGE_SHIFT)
        self.update_reserve()

    def update_reserve(self) -> None:
        """Have the pool keep room for the tables of clusters that are not in use yet."""
        # What is missing when every cluster is in use: zspages of tables never empty by halves.
        wanted = -(-self._clusters // _PAGES_PER_ZSPAGE) - self._pool.table_zspages
        most = table_reserve_bytes(self._clusters, self._pool.limit_bytes) // ZSPAGE_BYTES
        self._pool.reserve_zspages = max(0, min(wanted, most))

    def move_page(self, cluster: int) -> bool:
        """Give the page of *cluster* another place; False: the pool has none."""
        old = (self._directory[cluster] - 1) << PAGE_SHIFT
        place = self._pool.allocate_page()
        if place == NO_PLACE:
            return False
        self._arena[place : place + PAGE_SIZE] = self._arena[old : old + PAGE_SIZE]
        self._directory[cluster] = (place >> PAGE_SHIFT) + 1  # I3
        self._pool.free_page(old)
        self.update_reserve()
        return True

    def oldest_cluster(self, export: int = 0) -> int | None:
        """Return the live cluster of *export* that its clock hand has not visited for longest."""
        cluster = self._ring.first(_LIVE + export)
        return cluster if cluster >= 0 else None

    def clusters(self) -> list[int]:
        """Return the live clusters, those of one export after the other, in their rings' order."""
        numbers, rings = self._ring.numbers, range(_LIVE, _LIVE + len(self.exports))
        return [cluster for ring in rings for cluster in numbers(ring, self._clusters)]

    def rotate(self, cluster: int) -> None:
        """Let the clock hand pass *cluster*; no harm if it has been given back."""
        if self._ring.where(cluster) != _UNUSED:
            self._ring.move(cluster, self._live(cluster), last=True)

    def live_between(self, first: int, last: int) -> list[int]:
        """Return the clusters from *first* to *last* that are live, in order.

        Costs the smaller of what is in use and the range.
        """
        if last - first >= self.live_clusters:
            return sorted(live for live in self.clusters() if first <= live <= last)
        directory = self._directory
        return [cluster for cluster in range(first, last + 1) if directory[cluster]]

    # ---- what it holds ----

    @property
    def live_clusters(self) -> int:
        """Clusters that have a table page."""
        return sum(map(self.live_clusters_of, range(len(self.exports))))

    def live_clusters_of(self, export: int) -> int:
        """Return how many of *export* have one."""
        return self._ring.length(_LIVE + export)

    def state_counts(self) -> dict[str, int]:
        """Return the number of slots in each state of STATES."""
        counts = dict(zip(STATES, self.counts, strict=False))
        counts["file"] = sum(self.counts[TIER_STATE + 1 :])
        counts["empty"] = self.slots - sum(self.counts[1:])
        return counts

    def slots_in(self, tier: int) -> int:
        """Return the number of slots whose blobs are in *tier*, which is not the pool."""
        return self.counts[TIER_STATE + tier]

    @property
    def table_bytes(self) -> int:
        """Bytes of table pages in the pool."""
        return self.live_clusters * PAGE_SIZE

    def occupied_words(self) -> Iterator[tuple[int, int]]:
        """Yield (slot, word) of every occupied slot, cluster by cluster in the ring's order."""
        for cluster in self.clusters():
            first = cluster << CLUSTER_SHIFT
            for index, word in enumerate(self.run(first, CLUSTER_SLOTS)):
                if word:
                    yield first + index, word

    def rebuild(self) -> None:
        """Derive counts and ring anew from the directory and the words, after a crash.

        Copies that were under way are forgotten; their slots keep the place they had.
        ``update_reserve`` must follow when the pool has been rebuilt too.
        """
        self.exports.begin_rebuild()
        directory, ring = self._directory, self._new_ring()
        occupied, counts = array("H", bytes(2 * self._clusters)), array("l", [0]) * _COUNTED
        for cluster in compress(range(self._clusters), directory):
            index = (directory[cluster] - 1) << CLUSTER_SHIFT
            slots = count_states(self._arena, counts, STATE_OF_WORD, index)
            if slots:
                occupied[cluster] = slots
                ring.move(cluster, self._live(cluster), last=True)
            else:
                directory[cluster] = 0  # the server died between two steps
        self._ring, self.occupied, self.counts = ring, occupied, counts
        self.below = array("H", bytes(2 * self._clusters))  # ``layer.rebuild`` finds them

    def table_places(self) -> Iterator[tuple[int, int]]:
        """Yield each live cluster, and the place in the pool of its table page."""
        for cluster in self.clusters():
            yield cluster, (self._directory[cluster] - 1) << PAGE_SHIFT

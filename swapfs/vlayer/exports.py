"""The exports: which slots are of which swap file, what each has, and what it may.

An export is a range of slots, aligned to clusters. What it has is counted beside each change of a
word: in C where C does it (``_core.Writer``), and in ``SwapTable.exchange``, where all others are
done. The counts are derived, like those of the states: a rebuild makes them anew (I3).

*Virtual* is the slots that hold anything, *compressed* the bytes of their blobs, *physical* what
these take: the object of a size class in the pool, pages of the swap table there, sectors on a
disk. Only physical bytes count against a quota.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, combinations
from typing import TYPE_CHECKING, Final

from swapfs.core._core import (
    USAGE_FIELDS,
    USAGE_PAYLOAD,
    USAGE_SLOTS,
    USAGE_TIERS,
)
from swapfs.errors import OverQuota
from swapfs.region.counters import Counters
from swapfs.region.export_rows import (
    EVERY_TIER,
    ExportFigures,
    ExportRow,
    forget_tier,
    read_exports,
)
from swapfs.region.layout import Region
from swapfs.tiers.pool.size_classes import SIZES
from swapfs.units import CLUSTER_SHIFT, PAGE_SIZE, TIERS_MAX
from swapfs.vlayer.entry import (
    BACKING_MASK,
    IN_POOL,
    POOL_ZSPAGE_SHIFT,
    blob_length,
    is_below,
    ref_of,
    tier_of,
)
from swapfs.vlayer.stack import Level, Stack

if TYPE_CHECKING:
    from typing_extensions import Buffer

ONLY_NAME: Final = "swap"
"""Of the export of a region that has no rows."""
_TIERS: Final = slice(USAGE_TIERS, USAGE_TIERS + TIERS_MAX)
_NO_SIZE: Final = (0,) * (256 - len(SIZES))
_SIZE_OF_CLASS: Final = (*SIZES, *_NO_SIZE)
"""By the byte that says which class a zspage is of; that of one which is free, or damaged, too."""
assert USAGE_TIERS + TIERS_MAX == USAGE_FIELDS


class Export:
    """One export. What it has is read from *usage*, its own row, under the layer's lock."""

    def __init__(
        self, index: int, row: ExportRow, usage: memoryview, figures: ExportFigures
    ) -> None:
        self.index = index
        self.name = row.name
        self.first_slot = row.first_slot
        self.slots = row.slots
        self.priority = row.priority
        self.quota_bytes = row.quota_bytes
        self.tiers = row.tiers
        self.figures = figures
        self._usage = usage

    @property
    def stored(self) -> int:
        """Slots that hold anything."""
        count: int = self._usage[USAGE_SLOTS]
        return count

    @property
    def payload_bytes(self) -> int:
        """Bytes of their blobs."""
        count: int = self._usage[USAGE_PAYLOAD]
        return count

    def bytes_in(self, tier: int) -> int:
        """Return the bytes that they take in *tier*; 0 is the pool."""
        count: int = self._usage[USAGE_TIERS + tier]
        return count

    @property
    def physical_bytes(self) -> int:
        """Return the bytes that they take in all tiers."""
        return sum(self._usage[_TIERS].tolist())

    def may_use(self, number: int) -> bool:
        """Whether its pages may go to tier *number*."""
        return bool(self.tiers & (EVERY_TIER | 1 << number))

    def is_full(self) -> bool:
        """Whether the quota has no room for a page that does not compress."""
        return 0 < self.quota_bytes < self.physical_bytes + PAGE_SIZE


class Exports:
    """Those of *region*, and what each has; the layer's lock covers all of it.

    :param stack: tells what a reference takes
    """

    def __init__(self, region: Region, stack: Stack) -> None:
        rows = read_exports(region.exports) or [ExportRow(ONLY_NAME, 0, region.geometry.slots)]
        self._rows = region.exports
        self._classes = region.classes
        self._stack = stack
        self._usage = array("q", bytes(8 * USAGE_FIELDS * len(rows)))
        self._starts = [row.first_slot for row in rows]
        ends = [*self._starts[1:], region.geometry.clusters << CLUSTER_SHIFT]
        quotas = [row.quota_bytes for row in rows]
        self._limits = array("Q", chain.from_iterable(zip(ends, quotas, strict=True)))
        self._refused = Counters(region.counter_words)
        whole = memoryview(self._usage)
        self._all = tuple(
            Export(
                *(index, row, whole[index * USAGE_FIELDS : (index + 1) * USAGE_FIELDS]),
                ExportFigures.of(region.exports, index),
            )
            for index, row in enumerate(rows)
        )

    def __iter__(self) -> Iterator[Export]:
        """Yield them in the order of their slots."""
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def tables(self) -> dict[str, Buffer]:
        """Return what ``_core.Writer`` keeps up to date and goes by, by its names."""
        return {"usage": self._usage, "exports": self._limits}

    def files(self) -> list[tuple[int, int]]:
        """Return where each begins in the space of all slots and how long it is, in bytes."""
        return [(each.first_slot * PAGE_SIZE, each.slots * PAGE_SIZE) for each in self._all]

    def at(self, slot: int) -> Export:
        """Return the export of *slot*."""
        if len(self._all) == 1:
            return self._all[0]
        return self._all[bisect_right(self._starts, slot) - 1]

    # ---- where their pages may go ----

    @property
    def masked(self) -> bool:
        """Whether there is one that may not use every tier."""
        return any(not export.tiers & EVERY_TIER for export in self._all)

    def levels_at(self, slot: int) -> list[Level]:
        """Return the levels that the page of *slot* may go to: of its export, and of the stack."""
        return self.levels((self.at(slot),))

    def levels(self, exports: Iterable[Export]) -> list[Level]:
        """Return the levels that each of *exports* may use."""
        exports = tuple(exports)
        return [
            level
            for level in self._stack
            if all(export.may_use(level.number) for export in exports)
        ]

    def forget_tier(self, number: int) -> None:
        """Have nobody's pages go to tier *number*, which is gone, whatever gets its number."""
        forget_tier(self._rows, number)
        for export in self._all:
            export.tiers &= ~(1 << number)

    def shortfall(self, needs: Mapping[int, int], room: Mapping[int, int]) -> int:
        """Return how many of the bytes in *needs* find no room, at the least.

        Each set of exports must fit into what the tiers have that any of them may use: that is
        enough, too (Hall's theorem).

        :param needs: bytes by index of the export
        :param room: bytes by number of the tier
        """
        there = [export for export in self._all if needs.get(export.index, 0) > 0]
        worst = 0
        for size in range(1, len(there) + 1):
            for some in combinations(there, size):
                wanted = sum(needs[export.index] for export in some)
                usable = (number for number in room if any(e.may_use(number) for e in some))
                worst = max(worst, wanted - sum(room[number] for number in usable))
        return worst

    # ---- what they have ----

    def change(self, slot: int, old: int, new: int) -> None:
        """Count that the word *new* has taken the place of *old* in *slot*."""
        row = self.at(slot).index * USAGE_FIELDS
        self._usage[row + USAGE_SLOTS] += (new != 0) - (old != 0)
        self._weigh(row, old, -1)
        self._weigh(row, new, 1)

    def change_table(self, cluster: int, pages: int) -> None:
        """Count *pages* more, or less, of the swap table for *cluster*."""
        row = self.at(cluster << CLUSTER_SHIFT).index * USAGE_FIELDS
        self._usage[row + USAGE_TIERS] += pages * PAGE_SIZE

    def _weigh(self, row: int, word: int, sign: int) -> None:
        if word & BACKING_MASK == IN_POOL:
            self._usage[row + USAGE_PAYLOAD] += sign * blob_length(word)
            self._usage[row + USAGE_TIERS] += sign * self._taken(word)
        elif is_below(word) and (level := self._stack.get(tier_of(word))) is not None:
            self._usage[row + USAGE_PAYLOAD] += sign * level.tier.payload_bytes(ref_of(word))
            self._usage[row + USAGE_TIERS + level.number] += sign * self._taken(word)

    def _taken(self, word: int) -> int:
        """Return the bytes that the blob of *word* takes where it is."""
        if word & BACKING_MASK == IN_POOL:
            zspage = word >> POOL_ZSPAGE_SHIFT
            return _SIZE_OF_CLASS[self._classes[zspage]] if zspage < len(self._classes) else 0
        if is_below(word) and (level := self._stack.get(tier_of(word))) is not None:
            return level.tier.taken_bytes(ref_of(word))
        return 0

    def require(self, slot: int, old: int, taken_bytes: int) -> None:
        """Refuse to store what takes the export of *slot* above its quota.

        What takes no more room than before always may; nobody else's page is asked.

        :param taken_bytes: what it takes in the place of the word *old*
        :raises OverQuota: it would, which is counted
        """
        export = self.at(slot)
        if not export.quota_bytes:
            return
        more = taken_bytes - self._taken(old)
        if more > 0 and export.physical_bytes + more > export.quota_bytes:
            export.figures.add("refused_writes")
            self._refused.add("failed_write_over_quota")
            raise OverQuota(f"{export.name} has its quota")

    # ---- a rebuild ----

    def begin_rebuild(self) -> None:
        """Forget what they have; each cluster of the table is then given to ``found``."""
        for index in range(len(self._usage)):
            self._usage[index] = 0

    def found(self, cluster: int, slots: int, payload_bytes: int, taken_bytes: int) -> None:
        """Count *slots* of *cluster* in use, and what its blobs in the pool have."""
        row = self.at(cluster << CLUSTER_SHIFT).index * USAGE_FIELDS
        self._usage[row + USAGE_SLOTS] += slots
        self._usage[row + USAGE_PAYLOAD] += payload_bytes
        self._usage[row + USAGE_TIERS] += taken_bytes + PAGE_SIZE

    def found_below(self, slot: int, word: int) -> None:
        """Count the blob of *word*, which is below the pool."""
        self._weigh(self.at(slot).index * USAGE_FIELDS, word, 1)

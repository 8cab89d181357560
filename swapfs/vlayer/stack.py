"""The stack: the tiers below the pool, by number and by priority, and how each of them fares.

A number is what table words hold, so it is a tier's for as long as a word names it. The pool is
number 0 and not in here: it is in memory, under the layer's lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from swapfs.tiers.base import Tier
from swapfs.units import TIERS_MAX
from swapfs.vlayer.entry import ref_of, tier_of
from swapfs.vlayer.health import Health


class Phase(StrEnum):
    """What a tier is used for. The words are shown in the status."""

    ACTIVE = "active"
    DRAINING = "draining"
    """Nothing new goes there; what is there is being moved away."""


@dataclass(slots=True, eq=False)
class Level:
    """One tier of a stack. ``payload_bytes`` is kept under the layer's lock.

    :param priority: of tiers that have room, pages go to the one where it is highest
    """

    number: int
    name: str
    tier: Tier
    priority: int = 0
    phase: Phase = Phase.ACTIVE
    health: Health = field(default_factory=Health)
    payload_bytes: int = 0
    note: str = ""
    """Why draining it does not get on; empty: it does, or is not wanted."""

    def may_take(self, now_s: float) -> bool:
        """Whether new blobs may go there now."""
        return self.phase is Phase.ACTIVE and self.health.may_write(now_s)


class Stack:
    """The tiers below the pool; empty if there is only the pool."""

    def __init__(self, levels: Sequence[Level] = ()) -> None:
        self._levels: list[Level | None] = [None] * TIERS_MAX
        for level in levels:
            assert level.number
            assert self._levels[level.number] is None
            self._levels[level.number] = level
        self._sort()

    @classmethod
    def of(cls, *tiers: Tier) -> Stack:
        """Return a stack of *tiers*, the first to be filled first."""
        return cls(
            [
                Level(number, tier.kind if number == 1 else f"{tier.kind}{number}", tier, -number)
                for number, tier in enumerate(tiers, 1)
            ]
        )

    def _sort(self) -> None:
        there = (level for level in self._levels if level is not None)
        self._in_order = tuple(sorted(there, key=lambda level: (-level.priority, level.number)))

    def __iter__(self) -> Iterator[Level]:
        """Yield the levels, that where pages go first first."""
        return iter(self._in_order)

    def __len__(self) -> int:
        return len(self._in_order)

    def __getitem__(self, number: int) -> Level:
        """Return the level of tier *number*.

        :raises LookupError: there is none
        """
        level = self._levels[number]
        if level is None:
            raise LookupError(f"there is no tier {number}")
        return level

    def get(self, number: int) -> Level | None:
        """Return the level of tier *number*, if there is one."""
        return self._levels[number]

    def named(self, name: str) -> Level | None:
        """Return the level that is called *name*, if there is one."""
        return next((level for level in self if level.name == name), None)

    def below(self, level: Level) -> tuple[Level, ...]:
        """Return the levels where pages go after *level*."""
        return self._in_order[self._in_order.index(level) + 1 :]

    # ---- what words name; the layer's lock is held ----

    def release(self, slot: int, word: int) -> None:
        """Take the place back that *word* named for *slot*."""
        level, ref = self._levels[tier_of(word)], ref_of(word)
        if level is not None:  # else it was taken away with the page in it
            level.payload_bytes -= level.tier.payload_bytes(ref)
            level.tier.release(slot, ref)

    def begin_rebuild(self) -> None:
        """Forget every blob; each that the table names is then given to ``mark``."""
        for level in self:
            level.tier.begin_rebuild()
            level.payload_bytes = 0

    def mark(self, slot: int, word: int) -> None:
        """Declare in use what *word* names for *slot*."""
        level, ref = self._levels[tier_of(word)], ref_of(word)
        if level is not None:
            level.tier.mark(slot, ref)
            level.payload_bytes += level.tier.payload_bytes(ref)

    def end_rebuild(self) -> None:
        """Forget what was not marked."""
        for level in self:
            level.tier.end_rebuild()

    def prepare(self) -> None:
        """Reserve the memory that the tiers need to serve."""
        for level in self:
            level.tier.prepare()

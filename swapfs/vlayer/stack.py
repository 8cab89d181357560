"""The stack: the tiers below the pool, by number and by priority, and how each of them fares.

A number is what table words hold, so it is a tier's for as long as a word names it. The pool is
number 0 and not in here: it is in memory, under the layer's lock.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from swapfs.region.stack_rows import (
    ACTIVE,
    DRAINING,
    GONE,
    LEAVING,
    ROW_BYTES,
    RowFigures,
    set_priority,
    set_state,
)
from swapfs.tiers.base import Tier
from swapfs.tiers.state import TierState
from swapfs.units import TIERS_MAX
from swapfs.vlayer.budget import Budget
from swapfs.vlayer.durations import Durations
from swapfs.vlayer.entry import ref_of, tier_of
from swapfs.vlayer.health import Health


class Phase(StrEnum):
    """What a tier is used for. The words are shown in the status."""

    ACTIVE = "active"
    DRAINING = "draining"
    """Nothing new goes there; what is there is being moved away."""
    LEAVING = "leaving"
    """Likewise, and when it is empty it is let go."""


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
    figures: RowFigures = field(default_factory=RowFigures)
    budget: Budget = field(init=False)
    reading: Durations = field(default_factory=Durations)
    writing: Durations = field(default_factory=Durations)
    turn: int = 0
    """When it was chosen last, among tiers of its priority."""
    users: int = 0
    """Reads and rooms that are under way, so that it must stay; under the layer's lock."""
    readers: array[int] = field(default_factory=lambda: array("Q", [0]))
    """One word: likewise, reads by C."""
    spent: bool = False
    """Whether it has been said that its budget is spent."""
    presses: bool = False
    """Whether it is so full that what is cold in it should go on to the next."""

    def __post_init__(self) -> None:
        self.use(self.figures)

    def use(self, figures: RowFigures) -> None:
        """Keep count in *figures* from now on."""
        self.figures = figures
        self.budget = Budget(figures)

    @property
    def in_use(self) -> bool:
        """Whether anything is under way that it must stay for."""
        return bool(self.users or self.readers[0])

    def may_take(self, now_s: float, *, urgent: bool = False) -> bool:
        """Whether new blobs may go there now.

        :param urgent: they have no other place, so that a budget may be exceeded
        """
        if self.phase is not Phase.ACTIVE or not self.health.may_write(now_s):
            return False
        return self.budget.allows(now_s) or (urgent and self.budget.exceeds())

    def state(self, now_s: float) -> TierState:
        """Return in one word how it fares."""
        state = self.health.state(now_s)
        spent = state.healthy and not self.budget.allows(now_s)
        return TierState.SPENT if spent else state

    def problem(self, now_s: float) -> str:
        """Say in a few words why it takes no pages; empty: it does."""
        state = self.health.state(now_s)
        return self.budget.problem(now_s) if state.healthy else self.health.problem(now_s)


_STATES: Final = {Phase.ACTIVE: ACTIVE, Phase.DRAINING: DRAINING, Phase.LEAVING: LEAVING}


class Stack:
    """The tiers below the pool; empty if there is only the pool."""

    def __init__(self, levels: Sequence[Level] = ()) -> None:
        self._levels: list[Level | None] = [None] * TIERS_MAX
        self._rows = memoryview(bytearray(TIERS_MAX * ROW_BYTES))
        self._turns = 0
        self._come: Callable[[Level], None] = lambda level: None
        self._go: Callable[[Level], None] = lambda level: None
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

    def keep_in(self, rows: memoryview) -> None:
        """Keep state and figures of each level in its row of *rows*, the region's."""
        self._rows = rows
        for level in self:
            level.use(RowFigures.of(rows, level.number))

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
        """Return the levels where pages go after *level*; its equals are not among them."""
        return tuple(other for other in self if other.priority < level.priority)

    def set_phase(self, level: Level, phase: Phase) -> None:
        """Use *level* in another way from now on, in this server and those that follow."""
        level.phase = phase
        set_state(self._rows, level.number, _STATES[phase])

    def set_priority(self, level: Level, priority: int) -> None:
        """Give *level* another place in the order."""
        level.priority = priority
        set_priority(self._rows, level.number, priority)
        self._sort()

    def in_turn(self, levels: Iterable[Level] | None = None) -> list[Level]:
        """Return *levels* (else, all) in the order to try them: equals are striped, by turns."""
        among = self._in_order if levels is None else levels
        return sorted(among, key=lambda level: (-level.priority, level.turn))

    def took(self, level: Level) -> None:
        """Note that something goes to *level*: its equals have their turn before it has another."""
        self._turns += 1
        level.turn = self._turns

    def free_number(self) -> int | None:
        """Return the lowest number that no tier has; None: there is none."""
        taken = {level.number for level in self} | {
            number for number in range(1, TIERS_MAX) if self._rows[number * ROW_BYTES]
        }
        return next((number for number in range(1, TIERS_MAX) if number not in taken), None)

    # ---- tiers come and go; the layer's lock is held ----

    def watch(self, come: Callable[[Level], None], go: Callable[[Level], None]) -> None:
        """Have *come* called for each level there is or that is added, *go* for one that goes."""
        self._come, self._go = come, go
        for level in self:
            come(level)

    def add(self, level: Level) -> None:
        """Use *level*, whose row is there, from now on."""
        assert self._levels[level.number] is None
        level.use(RowFigures.of(self._rows, level.number))
        self._levels[level.number] = level
        self._sort()
        self._come(level)

    def remove(self, level: Level) -> None:
        """Forget *level*, which no word names and nobody uses, in this server and those after."""
        assert not level.in_use
        self._go(level)
        set_state(self._rows, level.number, GONE)
        self._levels[level.number] = None
        self._sort()

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

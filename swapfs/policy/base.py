"""The contract of a policy: which page goes down next, and where pages go.

A policy decides and does nothing: words, locks and I/O are the layer's. It hears of what happened
from the access log, before it is asked, and is asked for candidates in the order in which they
shall go; whoever asks looks at each word itself, so a policy that is behind does no harm. All it
needs is made in ``__init__`` (I5). If it raises, the default takes its place and swap goes on.

``candidates`` and what it hears come from one thread. ``places``, ``targets``, ``brings_back`` and
``prefetch`` may be called from others at the same time, under the layer's lock, for requests that
wait.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final, Protocol

from swapfs.core._core import (
    EVENT_AGE_SHIFT,
    EVENT_DEMOTE,
    EVENT_KIND_SHIFT,
    EVENT_LOAD,
    EVENT_PROMOTE,
    EVENT_SIZE_SHIFT,
    EVENT_SLOT_BITS,
    EVENT_STORE,
    EVENT_TIER_SHIFT,
    NO_SIZE,
    Tracked,
)

POOL: Final = 0
"""The number of the tier that is in memory."""
NOTHING_YET: Final = -1
"""A candidate that is none: others may have the lock, and the policy looks on."""
_SLOT_MASK: Final = (1 << EVENT_SLOT_BITS) - 1


class Place(Enum):
    """Where pages go that come in."""

    POOL = "pool"
    RAW = "raw"
    """Into the pool as they are."""
    DOWN = "down"
    """Past the pool, to a tier below."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at the start.

    :param slots: in the swap file
    :param pool_pages: raw pages that fit into the pool; compressed ones are 2 to 4 times as many
    :param fixed: it holds just so many, whatever they are, as in a simulation of pages
    """

    slots: int
    pool_pages: int
    fixed: bool = False

    def track(self, times: float) -> int:
        """Return how many slots to track for *times* pools of raw pages."""
        return max(16, min(self.slots, int(self.pool_pages * times)))


@dataclass(frozen=True, slots=True)
class TierFacts:
    """One tier below the pool that may take pages now."""

    number: int
    name: str
    priority: int
    slots: int


class Eyes(Protocol):
    """What the layer shows of heat, for policies that need no log: two bits a slot, by cluster."""

    def live_clusters(self) -> int:
        """Return how many clusters are in use."""

    def next_cluster(self) -> int | None:
        """Return the cluster that was returned longest ago; each is 512 slots from 512 * it on."""

    def cool(self, slot: int, count: int) -> list[int]:
        """Cool hot blobs of *count* slots in a cluster; return those that were cold, last first."""


class Policy:
    """Subclass it, give it ``candidates``, and overwrite what else shall be otherwise."""

    name: ClassVar[str] = ""
    """What it is called; empty: as its class."""
    hears: ClassVar[bool] = True
    """Whether it wants the access log."""
    by_heat: ClassVar[bool] = False
    """Whether what was read since it was offered is to be left alone."""
    tracks: ClassVar[float] = 0
    """For how many pools of raw pages it reserves memory: 28 bytes a slot in a ``Tracked``."""

    def __init__(self, facts: Facts, eyes: Eyes) -> None:
        self.facts = facts

    # ---- decisions ----

    def candidates(self, tier: int) -> Iterator[int]:
        """Yield the slots that shall leave *tier* next; only the pool is asked about today.

        The lock is held while it runs, and may be let go at each ``yield``.
        """
        raise NotImplementedError

    def refused(self, slot: int) -> None:
        """Take back *slot*, offered last and not taken: the batch is full."""

    def places(self, slot: int, count: int) -> Place:
        """Say where *count* pages go that are written from *slot* on."""
        return Place.POOL

    def targets(self, tiers: Sequence[TierFacts]) -> Sequence[int]:
        """Return the numbers of *tiers* in the order in which a batch of victims tries them."""
        return [tier.number for tier in tiers]

    def brings_back(self, slot: int, *, refaulted: bool) -> bool | None:
        """Say whether a page read from below goes back to the pool; None: as configured.

        :param refaulted: it went down no more than a pool full of pages ago
        """
        return None

    def prefetch(self, slot: int, count: int, most: int) -> int:
        """Say how many of the pages after *count* that are read from *slot* on come up with them.

        They do as far as they lie beside them in the same tier. Asked only where the option
        ``prefetch`` is on; *most*, what pays as far as the layer has learned, is never exceeded.
        """
        return most

    def knows(self, slot: int) -> bool:
        """Whether *slot* need not be told of again, after events were missed."""
        return True

    # ---- what it hears ----

    def stored(self, slot: int, age: int) -> None:
        """Hear of a page that came into the pool, new or over an old one.

        :param age: of its cluster, see ``access_log.Event``
        """

    def read(self, slot: int, age: int) -> None:
        """Hear of a page in the pool that was read."""

    def missed(self, slot: int) -> None:
        """Hear of a page that was read from below."""

    def left(self, slot: int) -> None:
        """Hear of a page that is in the pool no more: discarded, or not worth a place."""

    def demoted(self, slot: int) -> None:
        """Hear of a page that went down."""
        self.left(slot)

    def promoted(self, slot: int) -> None:
        """Hear of a page that came back."""
        self.stored(slot, 0)

    def hear(self, words: array[int], count: int) -> None:
        """Hear the first *count* events of *words* (core/log.h), in their order."""
        stored, read, left = self.stored, self.read, self.left
        for index in range(0, 2 * count, 2):
            word = words[index]
            kind = word >> EVENT_KIND_SHIFT & 15
            slot = word & _SLOT_MASK
            if kind == EVENT_LOAD:
                if word >> EVENT_TIER_SHIFT & 7:
                    self.missed(slot)
                elif word >> EVENT_SIZE_SHIFT & NO_SIZE != NO_SIZE:
                    read(slot, word >> EVENT_AGE_SHIFT & 15)
            elif kind == EVENT_STORE:
                if word >> EVENT_TIER_SHIFT & 7 or word >> EVENT_SIZE_SHIFT & NO_SIZE == NO_SIZE:
                    left(slot)
                else:
                    stored(slot, word >> EVENT_AGE_SHIFT & 15)
            elif kind == EVENT_DEMOTE:
                self.demoted(slot)
            elif kind == EVENT_PROMOTE:
                self.promoted(slot)
            elif kind < EVENT_DEMOTE:
                left(slot)


class Listed(Policy):
    """A policy that tracks slots in lists, and says ``victim`` by ``victim`` what goes next.

    What was offered waits in a list of its own until it is heard that it went; what is still
    there when the next batch is made (it was full, or a write failed) is offered first.
    """

    tracks = 4
    lists: ClassVar[int] = 1

    def __init__(self, facts: Facts, eyes: Eyes) -> None:
        super().__init__(facts, eyes)
        self.pages = Tracked(facts.track(self.tracks), self.lists + 1)
        self.offered = self.lists

    def victim(self) -> int:
        """Return the slot that goes next, -1: none. It leaves its list when this returns."""
        raise NotImplementedError

    def candidates(self, tier: int) -> Iterator[int]:
        """Yield one victim after the other."""
        pages, offered = self.pages, self.offered
        slot = pages.oldest(offered)
        while slot >= 0:
            following = pages.newer(slot)
            if not self.rejoins(slot):
                yield slot
            slot = following
        while (slot := self.victim()) >= 0:
            pages.add(slot, offered)
            yield slot

    def rejoins(self, slot: int) -> bool:
        """Take *slot*, offered and not taken, back into a list if it was used since."""
        if not self.pages.marked(slot):
            return False
        self.pages.mark(slot, 0)
        self.pages.add(slot, 0)
        return True

    def knows(self, slot: int) -> bool:
        """Whether it is in a list."""
        return self.pages.where(slot) >= 0

    def left(self, slot: int) -> None:
        """Forget it."""
        self.pages.remove(slot)

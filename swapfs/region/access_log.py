"""What the access log says: its events by field, and a reader of the ring.

The ring is written by C, under the layer's lock (core/log.h has the bits). A reader keeps the
number of the next event it wants; who is late finds the oldest gone, and counts them.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from swapfs.core import _core
from swapfs.core._core import (
    EVENT_AGE_SHIFT,
    EVENT_KIND_SHIFT,
    EVENT_SIZE_SHIFT,
    EVENT_SLOT_BITS,
    EVENT_TIER_SHIFT,
    EVENT_WAS_SHIFT,
    NO_SIZE,
    log_read,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

EVENT_BYTES: Final = 16
EVENT_WORDS: Final = 2
SLOT_MASK: Final = (1 << EVENT_SLOT_BITS) - 1


class EventKind(IntEnum):
    """What happened to a slot."""

    STORE = _core.EVENT_STORE
    LOAD = _core.EVENT_LOAD
    DISCARD = _core.EVENT_DISCARD
    DEMOTE = _core.EVENT_DEMOTE
    PROMOTE = _core.EVENT_PROMOTE
    MOVE = _core.EVENT_MOVE
    REFAULT = _core.EVENT_REFAULT


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    :param size_class: of the blob in the pool (``tiers/pool/size_classes.py``); NO_SIZE: a
        repeated word, or unknown
    :param age: 0: an event met the cluster less than 17 ms before; each class doubles that
    :param tier: where the blob is after it; 0 is the pool, or memory as such
    :param was: where it was before
    :param time_ns: CLOCK_MONOTONIC
    """

    kind: EventKind
    slot: int
    size_class: int
    age: int
    tier: int
    was: int
    time_ns: int


def decode(word: int, time_ns: int) -> Event:
    """Return the event of two words of the ring.

    :raises ValueError: it is of no kind that there is
    """
    return Event(
        kind=EventKind(word >> EVENT_KIND_SHIFT & 15),
        slot=word & SLOT_MASK,
        size_class=word >> EVENT_SIZE_SHIFT & NO_SIZE,
        age=word >> EVENT_AGE_SHIFT & 15,
        tier=word >> EVENT_TIER_SHIFT & 7,
        was=word >> EVENT_WAS_SHIFT & 7,
        time_ns=time_ns,
    )


def encode(event: Event) -> tuple[int, int]:
    """Return the two words of *event*; what ``decode`` reads back."""
    word = (
        event.slot
        | event.kind << EVENT_KIND_SHIFT
        | event.size_class << EVENT_SIZE_SHIFT
        | event.age << EVENT_AGE_SHIFT
        | event.tier << EVENT_TIER_SHIFT
        | event.was << EVENT_WAS_SHIFT
    )
    return word, event.time_ns


class LogReader:
    """Follows a ring from now on. ``dropped`` counts the events that were gone unread.

    :param head: the number of events ever, one u64
    :param events: the ring
    :param batch: the most events that one ``take`` returns; reserved here
    """

    def __init__(self, head: Buffer, events: Buffer, batch: int = 4096) -> None:
        self._head = head
        self._events = events
        self.words = array("Q", bytes(EVENT_BYTES * batch))
        """The events of the last ``take``, two words each."""
        self.next = int.from_bytes(bytes(memoryview(head).cast("B")[:8]), "little")
        self.dropped = 0

    def take(self) -> int:
        """Fetch the next events into ``words``; return how many."""
        first, count = log_read(self._head, self._events, self.words, self.next)
        self.dropped += max(0, first - self.next)
        self.next = first + count
        return count

    def events(self) -> list[Event]:
        """Return the next events, for who needs no speed."""
        words = self.words
        return [decode(words[2 * i], words[2 * i + 1]) for i in range(self.take())]

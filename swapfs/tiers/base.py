"""The contract of a tier below the pool: blobs and references.

A tier keeps blobs and hands out a *reference* for each, 53 bits that only it understands; the
table keeps them. What it keeps them on is its own affair: sectors, segments and cleaning are
those of ``sector_tier``. It knows neither words nor policy. Calls block, may come from several
threads at once, and fail only with the errors named here.

A blob goes down in four steps: ``reserve`` room, fill a ``Staging``, ``store`` it, ``settle``. Room
comes first, so that whoever has pages to write knows for how many before he takes them; and
until it is settled a tier must not take the blobs in it for garbage, since no word names them
yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Protocol

from swapfs.core._core import Sealer
from swapfs.errors import TierError, TierIOError
from swapfs.tiers.stats import TierStats as TierStats
from swapfs.units import PAGE_SIZE

# ---- down ----


class Room(ABC):
    """Room in a tier that belongs to the caller until it is settled. ``size``: in its own units."""

    size: int

    @abstractmethod
    def cost(self, length: int) -> int:
        """Return how much of ``size`` a blob with *length* bytes of payload takes."""


class Staged(NamedTuple):
    """One blob that is to go down.

    ``expected`` is the table word that it was copied from; what it means is the caller's business.
    """

    slot: int
    start: int
    length: int
    codec: int
    sequence: int
    expected: int


class Staging:
    """Blobs side by side in reserved memory, on their way into some room. One thread at a time.

    :param view: writable; as long as the payload that may be under way at once
    """

    __slots__ = ("_left", "_used", "items", "room", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.room: Room | None = None
        self.items: list[Staged] = []
        self._left = self._used = 0

    def reset(self, room: Room) -> None:
        """Empty it; it may then grow as *room* allows."""
        self.room = room
        self.items.clear()
        self._left, self._used = room.size, 0

    def fits(self, length: int) -> bool:
        """Whether a blob with *length* bytes of payload still fits."""
        assert self.room is not None
        return self.room.cost(length) <= self._left and self._used + length <= len(self.view)

    def is_half_full(self) -> bool:
        """Whether as much again as is in it would not fit."""
        assert self.room is not None
        return 2 * self._left < self.room.size or 2 * self._used > len(self.view)

    def add(
        self,
        slot: int,
        payload: bytes | memoryview,
        codec: int,
        sequence: int,
        *,
        expected: int = 0,
    ) -> None:
        """Append a copy of a blob; the caller has asked ``fits``.

        :param sequence: a number that no other blob has, as it may be a nonce
        """
        assert self.room is not None
        start, length = self._used, len(payload)
        self.view[start : start + length] = payload
        self._used = start + length
        self._left -= self.room.cost(length)
        self.items.append(Staged(slot, start, length, codec, sequence, expected))

    def payload(self, item: Staged) -> memoryview:
        """Return the bytes of *item*."""
        return self.view[item.start : item.start + item.length]


class Stored(NamedTuple):
    """What became of a staging: a reference for each blob, in order, and what writing it took."""

    refs: list[int]
    written_bytes: int


# ---- up ----


class Failure(NamedTuple):
    """Why there are no bytes: the class of the error, and what it said.

    A value and no exception: one that its own traceback can reach is a cycle, and in the server
    nothing collects those.
    """

    kind: type[TierError]
    reason: str

    @classmethod
    def of(cls, error: TierError) -> Failure:
        """Return what is left of *error* without its traceback."""
        return cls(type(error), str(error))


NOT_READ: Final = Failure(TierIOError, "nobody has read it")
"""The reader did not come to this blob."""


@dataclass(slots=True)
class Wanted:
    """A blob that is to be read; the tier notes what comes of it.

    ``failure`` is None when there is a verified ``payload``, which may lie in the reader's scratch.
    """

    slot: int
    ref: int
    codec: int
    payload: bytes | memoryview = b""
    sequence: int = 0
    failure: Failure | None = NOT_READ


class Direct(NamedTuple):
    """What it takes to read the blobs of a tier of sectors without asking it (``core/disks.c``)."""

    fd: int
    block_sectors: int
    sealer: Sealer


class Traffic(NamedTuple):
    """What reading took."""

    reads: int
    read_bytes: int


class Swept(NamedTuple):
    """What a look at one place found: verified blobs, as they lie, and where to go on."""

    blobs: list[Wanted]
    after: int
    traffic: Traffic


Named = Callable[[int, int, int], bool]
"""Whether the table has a slot, the first, at a reference with a codec."""

# ---- within ----


class Move(Protocol):
    """Who moves blobs to another place of the same tier, for ``Cleaning``. Called in this order."""

    def begin(self) -> bool:
        """Reserve room to move to; False: there is none."""

    def wants(self, slot: int, ref: int, codec: int) -> bool:
        """Whether the table still has *slot* at *ref*."""

    def add(self, slot: int, ref: int, codec: int, payload: bytes | memoryview) -> bool:
        """Take a copy; False: it does not fit any more."""

    def finish(self) -> int | None:
        """Move what was added; return how many slots took their copy, None if it failed."""

    def abort(self) -> None:
        """Forget what was added."""


class Cleaning(ABC):
    """One step of cleaning, for whose time the tier keeps the sources from being used."""

    unreadable = False
    """After ``run``: a source could not be read, and is left out until ``Tier.retry``."""

    @abstractmethod
    def run(self, move: Move, scratch: memoryview) -> int | None:
        """Move what the sources hold; return slots moved, None if there was no room to."""


class Tier(ABC):
    """A tier below the pool.

    ``kind`` is what configuration and metrics call it.
    """

    kind: ClassVar[str]

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Reserve the memory that storing and loading take; once in each process that serves."""

    @abstractmethod
    def reserve(self, pages: int, *, moving: bool = False) -> Room:
        """Take room for *pages* raw pages or as many as there is room for, at least one.

        :param moving: may use what is kept free for moves within the tier
        :raises TierFull: there is none
        """

    @abstractmethod
    def cancel(self, room: Room) -> None:
        """Give *room* back, in which nothing was stored; ``settle`` must follow."""

    @abstractmethod
    def store(self, room: Room, staging: Staging) -> Stored:
        """Store what is in *staging*, which was filled for *room*; its rest is given back.

        Each blob then belongs to the caller, who releases those that the table does not take.

        :raises TierIOError: nothing was stored, and *room* is given back or given up
        :raises TierNoSpace: likewise, but nothing is broken
        """

    def settle(self, room: Room) -> None:  # noqa: B027 - some take nothing for garbage before
        """End what *room* was taken for: each blob in it is named by the table or released."""

    @abstractmethod
    def load(self, wanted: Sequence[Wanted], scratch: memoryview) -> Traffic:
        """Read blobs; each is verified to be that of its slot and reference (I4).

        Those after the first failure may be left unread.
        """

    def direct(self, written: Callable[[int, int], None]) -> Direct | None:
        """Return what is needed to read its blobs without asking it; None: it must be asked.

        :param written: to be called with (sector, sectors) from now on, after each write and before
            ``store`` returns
        """
        return None

    def span(self, refs: Sequence[int], limit_bytes: int) -> int:
        """Return how many of *refs*, from the first on, are best loaded at once; at least one."""
        return len(refs)

    def sweep(self, place: int, named: Named, scratch: memoryview) -> Swept | None:
        """Read on from *place*, 0 at first, as much as is best read at once, as it lies there.

        For who wants all of it: one long read costs a disk less than one for each blob. What is
        not *named* is left out, and so is what cannot be read or is damaged.
        None: nothing lies there any more; or the tier has no order, and ``load`` is as good.
        """
        return None

    def place_of(self, ref: int) -> int:
        """Return the place where ``sweep`` finds the blob at *ref*."""
        return 0

    @abstractmethod
    def release(self, slot: int, ref: int) -> None:
        """Take the place of a blob back."""

    @abstractmethod
    def begin_rebuild(self) -> None:
        """Forget every blob; each one that the table names is then given to ``mark``."""

    @abstractmethod
    def mark(self, slot: int, ref: int) -> None:
        """Declare a blob in use, after ``begin_rebuild``."""

    def end_rebuild(self) -> None:  # noqa: B027 - most have nothing to do
        """Forget what was not marked: no word names it."""

    def cleaning(self) -> Cleaning | None:
        """Return what should be moved together now; None: no need, or no gain.

        The caller runs it.
        """
        return None

    def retry(self) -> None:  # noqa: B027 - likewise
        """Let cleaning look again at what could not be read."""

    def has_room(self) -> bool:
        """Whether room can be had: by ``reserve``, or by cleaning and then ``reserve``.

        Asked when ``reserve`` has failed and nothing is under way: then False is the last word.
        """
        return self.free_bytes() >= PAGE_SIZE

    @abstractmethod
    def guaranteed_pages(self) -> int:
        """Return how many pages the tier holds for certain, however badly they compress."""

    def free_bytes(self) -> int:
        """Return how many bytes more it takes for certain, as ``TierStats`` counts what is used."""
        stats = self.stats()
        return stats.size_bytes - stats.bad_bytes - stats.used_bytes

    def fill_percent(self) -> int:
        """Return how much of what can be stored in it is stored, in percent."""
        stats = self.stats()
        return 100 * stats.used_bytes // max(1, stats.size_bytes - stats.bad_bytes)

    def payload_bytes(self, ref: int) -> int:
        """Return the bytes of payload at *ref*, as far as it tells; 0 if it does not."""
        return 0

    def taken_bytes(self, ref: int) -> int:
        """Return the bytes that what is at *ref* takes, as far as it tells; else a page."""
        return self.payload_bytes(ref) or PAGE_SIZE

    @abstractmethod
    def stats(self) -> TierStats:
        """Return what the tier holds now."""

    def descriptors(self) -> list[int]:
        """Return the open files that another process needs to go on with the tier."""
        return []

    def leave(self) -> None:  # noqa: B027 - likewise
        """Delete what is left there and nobody's, of servers that died; then ``close`` follows."""

    def close(self) -> None:  # noqa: B027 - likewise
        """Release the medium; no call may follow."""

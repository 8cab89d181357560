"""Any tier, a call of which fails when it is told to; ``faulty`` does so below, by sectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from swapfs.errors import TierFull, TierIOError, TierNoSpace
from swapfs.tiers.base import (
    Cleaning,
    Failure,
    Named,
    Room,
    Staging,
    Stored,
    Swept,
    Tier,
    TierStats,
    Traffic,
    Wanted,
)

CALLS: Final = ("reserve", "store", "store without space", "load")


class FaultyCalls(Tier):
    """*inner*, of which the calls *first* to *last* (from 1) of *call*, of CALLS, fail."""

    kind = "faulty"

    def __init__(self, inner: Tier, call: str, first: int, last: int = 0) -> None:
        assert call in CALLS
        self.inner = inner
        self.failures = 0
        self.damaged_slots: set[int] = set()  # none: what fails here says so
        self._call = call
        self._first = first
        self._last = last or first
        self._calls = 0
        self._full = False

    def heal(self) -> None:
        """Let every later call through."""
        self._last = 0

    def _hit(self, *calls: str) -> bool:
        if self._call not in calls:
            return False
        self._calls += 1
        hit = self._first <= self._calls <= self._last
        self.failures += hit
        return hit

    def reserve(self, pages: int, *, moving: bool = False) -> Room:  # noqa: D102
        self._full = self._hit("reserve")
        if self._full:
            raise TierFull("made to be full")
        return self.inner.reserve(pages, moving=moving)

    def has_room(self) -> bool:  # noqa: D102
        return not self._full and self.inner.has_room()

    def store(self, room: Room, staging: Staging) -> Stored:  # noqa: D102
        if self._hit("store", "store without space"):
            self.inner.cancel(room)
            kind = TierIOError if self._call == "store" else TierNoSpace
            raise kind("made to fail: store")
        return self.inner.store(room, staging)

    def load(self, wanted: Sequence[Wanted], scratch: memoryview) -> Traffic:  # noqa: D102
        if self._hit("load"):
            wanted[0].failure = Failure(TierIOError, "made to fail: load")
            return Traffic(1, 0)
        return self.inner.load(wanted, scratch)

    # ---- what does not fail ----

    def prepare(self) -> None:  # noqa: D102
        self.inner.prepare()

    def cancel(self, room: Room) -> None:  # noqa: D102
        self.inner.cancel(room)

    def settle(self, room: Room) -> None:  # noqa: D102
        self.inner.settle(room)

    def span(self, refs: Sequence[int], limit_bytes: int) -> int:  # noqa: D102
        return self.inner.span(refs, limit_bytes)

    def sweep(self, place: int, named: Named, scratch: memoryview) -> Swept | None:  # noqa: D102
        return self.inner.sweep(place, named, scratch)

    def place_of(self, ref: int) -> int:  # noqa: D102
        return self.inner.place_of(ref)

    def release(self, slot: int, ref: int) -> None:  # noqa: D102
        self.inner.release(slot, ref)

    def begin_rebuild(self) -> None:  # noqa: D102
        self.inner.begin_rebuild()

    def mark(self, slot: int, ref: int) -> None:  # noqa: D102
        self.inner.mark(slot, ref)

    def end_rebuild(self) -> None:  # noqa: D102
        self.inner.end_rebuild()

    def cleaning(self) -> Cleaning | None:  # noqa: D102
        return self.inner.cleaning()

    def retry(self) -> None:  # noqa: D102
        self.inner.retry()

    def guaranteed_pages(self) -> int:  # noqa: D102
        return self.inner.guaranteed_pages()

    def free_bytes(self) -> int:  # noqa: D102
        return self.inner.free_bytes()

    def fill_percent(self) -> int:  # noqa: D102
        return self.inner.fill_percent()

    def payload_bytes(self, ref: int) -> int:  # noqa: D102
        return self.inner.payload_bytes(ref)

    def taken_bytes(self, ref: int) -> int:  # noqa: D102
        return self.inner.taken_bytes(ref)

    def stats(self) -> TierStats:  # noqa: D102
        return self.inner.stats()

    def descriptors(self) -> list[int]:  # noqa: D102
        return self.inner.descriptors()

    def close(self) -> None:  # noqa: D102
        self.inner.close()

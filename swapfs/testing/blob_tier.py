"""A tier that keeps blobs and no sectors: the contract of ``tiers/base.py`` and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from swapfs.errors import BlobCorrupt, TierFull, TierIOError
from swapfs.tiers.base import Failure, Room, Staging, Stored, Tier, TierStats, Traffic, Wanted
from swapfs.units import PAGE_SIZE


class Kept(NamedTuple):
    """One blob, with what it is verified by."""

    slot: int
    codec: int
    sequence: int
    payload: bytes


class Places(Room):
    """Room for so many blobs, whatever their length."""

    def __init__(self, size: int) -> None:
        self.size = size

    def cost(self, length: int) -> int:  # noqa: D102
        return 1


class BlobTier(Tier):
    """At most *pages* blobs in *medium*, by reference, which is a number that is used once."""

    kind = "blobs"

    def __init__(self, pages: int, medium: dict[int, Kept] | None = None) -> None:
        self.medium: dict[int, Kept] = {} if medium is None else medium
        self._pages = pages
        self._taken = 0
        self._newest = max(self.medium, default=0)
        self._lock = threading.Lock()

    def reserve(self, pages: int, *, moving: bool = False) -> Places:  # noqa: D102
        with self._lock:
            size = min(pages, self._pages - self._taken)
            if size <= 0:
                raise TierFull("every place is taken")
            self._taken += size
            return Places(size)

    def cancel(self, room: Room) -> None:  # noqa: D102
        with self._lock:
            self._taken -= room.size

    def settle(self, room: Room) -> None:  # noqa: D102
        pass

    def store(self, room: Room, staging: Staging) -> Stored:  # noqa: D102
        refs = []
        with self._lock:
            for item in staging.items:
                self._newest += 1
                kept = Kept(item.slot, item.codec, item.sequence, bytes(staging.payload(item)))
                self.medium[self._newest] = kept
                refs.append(self._newest)
            self._taken -= room.size - len(refs)
        return Stored(refs, sum(item.length for item in staging.items))

    def load(self, wanted: Sequence[Wanted], scratch: memoryview) -> Traffic:  # noqa: D102
        for each in wanted:
            kept = self.medium.get(each.ref)
            if kept is None:
                each.failure = Failure(TierIOError, f"slot {each.slot}: nothing is at {each.ref}")
            elif (kept.slot, kept.codec) != (each.slot, each.codec):
                each.failure = Failure(BlobCorrupt, f"slot {each.slot}: {each.ref} is another's")
            else:
                each.payload, each.sequence, each.failure = kept.payload, kept.sequence, None
        return Traffic(1, sum(len(each.payload) for each in wanted))

    def release(self, slot: int, ref: int) -> None:  # noqa: D102
        with self._lock:
            del self.medium[ref]
            self._taken -= 1

    def begin_rebuild(self) -> None:  # noqa: D102
        self._taken = 0

    def mark(self, slot: int, ref: int) -> None:  # noqa: D102
        self._taken += 1

    def has_room(self) -> bool:  # noqa: D102
        return self._taken < self._pages

    def guaranteed_pages(self) -> int:  # noqa: D102
        return self._pages

    def stats(self) -> TierStats:  # noqa: D102
        return TierStats(
            name=self.kind,
            path="",
            size_bytes=self._pages * PAGE_SIZE,
            used_bytes=self._taken * PAGE_SIZE,
            bad_bytes=0,
            map_bytes=0,
            direct_io=False,
            encrypted=False,
            free_segments=0,
            segments=0,
        )

    def close(self) -> None:  # noqa: D102
        pass

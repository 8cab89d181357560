"""A tier for replays: it knows how long each blob was and when it was stored, and has no bytes.

All of that is in the reference, so it takes no memory by blob. Room is counted as a file's:
sectors of 512 bytes, with header and tag, and no more than a segment at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from swapfs.errors import TierFull
from swapfs.tiers.base import Room, Staging, Stored, Tier, TierStats, Traffic, Wanted
from swapfs.tiers.segments import SEGMENT_BYTES
from swapfs.units import PAGE_SIZE, SECTOR_SIZE

_LENGTH_BITS: Final = 12
_SEQUENCE_MASK: Final = (1 << 41) - 1
_AROUND_BYTES: Final = 40
"""Header and tag of a blob on sectors."""


def taken_bytes(length: int) -> int:
    """Return what a blob of *length* bytes takes of a file."""
    return -(-(length + _AROUND_BYTES) // SECTOR_SIZE) * SECTOR_SIZE


_PAGE_BYTES: Final = taken_bytes(PAGE_SIZE)


def sequence_of(ref: int) -> int:
    """Return the number of the blob at *ref*."""
    return ref >> _LENGTH_BITS


def length_of(ref: int) -> int:
    """Return the length in bytes of the blob at *ref*."""
    return (ref & ((1 << _LENGTH_BITS) - 1)) + 1


class _Bytes(Room):
    """Room for so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def cost(self, length: int) -> int:
        return taken_bytes(length)


class LengthTier(Tier):
    """Holds blobs of together *size_bytes*. For one thread."""

    kind = "lengths"

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = 0
        self._under_way = 0

    def reserve(self, pages: int, *, moving: bool = False) -> Room:  # noqa: D102
        there = (self.size_bytes - self.used_bytes - self._under_way) // _PAGE_BYTES
        if there <= 0:
            raise TierFull("it is full")
        room = _Bytes(min(min(pages, there) * _PAGE_BYTES, SEGMENT_BYTES))
        self._under_way += room.size
        return room

    def cancel(self, room: Room) -> None:  # noqa: D102
        pass

    def settle(self, room: Room) -> None:  # noqa: D102
        self._under_way -= room.size

    def store(self, room: Room, staging: Staging) -> Stored:  # noqa: D102
        refs = [
            (item.sequence & _SEQUENCE_MASK) << _LENGTH_BITS | item.length - 1
            for item in staging.items
        ]
        written = sum(taken_bytes(item.length) for item in staging.items)
        self.used_bytes += written
        return Stored(refs, written)

    def load(self, wanted: Sequence[Wanted], scratch: memoryview) -> Traffic:
        """Load nothing: what was read is gone, as all bytes here are.

        :raises NotImplementedError: always
        """
        raise NotImplementedError("a replay has no pages")

    def span(self, refs: Sequence[int], limit_bytes: int) -> int:
        """Count those that were stored one after the other, as in a file, where they lie so."""
        count, left = 1, limit_bytes - taken_bytes(length_of(refs[0]))
        for before, ref in pairwise(refs):
            left -= taken_bytes(length_of(ref))
            if sequence_of(ref) != sequence_of(before) + 1 or left < 0:
                break
            count += 1
        return count

    def payload_bytes(self, ref: int) -> int:  # noqa: D102
        return length_of(ref)

    def release(self, slot: int, ref: int) -> None:  # noqa: D102
        self.used_bytes -= taken_bytes(length_of(ref))

    def begin_rebuild(self) -> None:  # noqa: D102
        self.used_bytes = 0

    def mark(self, slot: int, ref: int) -> None:  # noqa: D102
        self.used_bytes += taken_bytes(length_of(ref))

    def has_room(self) -> bool:  # noqa: D102
        return self.size_bytes - self.used_bytes - self._under_way >= _PAGE_BYTES

    def guaranteed_pages(self) -> int:  # noqa: D102
        return self.size_bytes // _PAGE_BYTES

    def stats(self) -> TierStats:  # noqa: D102
        return TierStats(
            name=self.kind,
            path="",
            size_bytes=self.size_bytes,
            used_bytes=self.used_bytes,
            bad_bytes=0,
            map_bytes=0,
            direct_io=False,
            encrypted=False,
            free_segments=0,
            segments=0,
        )

    def close(self) -> None:  # noqa: D102
        pass

"""The tiers below the pool, by name: what the conformance checks and the property tests run over.

A medium is a folder's: a tier that is opened again on it finds what was written there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from swapfs.testing.blob_tier import BlobTier, Kept
from swapfs.testing.faulty import FaultyTier
from swapfs.testing.memory import MemoryTier
from swapfs.testing.slow import SlowTier
from swapfs.testing.wrapper import TierWrapper
from swapfs.tiers.aead import KEY_BYTES, AeadSeal
from swapfs.tiers.base import Tier
from swapfs.tiers.file import FileTier
from swapfs.tiers.sector_tier import SectorTier
from swapfs.tiers.sectors import SectorStore
from swapfs.tiers.segments import SEGMENT_BYTES

PAGES_PER_SEGMENT: Final = 100
"""A tier without sectors holds so many blobs for each segment that is asked for."""
Opener = Callable[[int], SectorStore]
"""Opens a tier of so many segments on one medium: again on what lies there, after ``close``."""


def _memory(_: Path) -> Opener:
    medium = bytearray()

    def open_tier(segments: int) -> SectorStore:
        medium.extend(bytes(segments * SEGMENT_BYTES - len(medium)))
        return MemoryTier(segments, medium)

    return open_tier


def _file(direct_io: str, *, encrypted: bool) -> Callable[[Path], Opener]:
    def on(folder: Path) -> Opener:
        def open_tier(segments: int) -> SectorStore:
            seal = AeadSeal(bytes(range(KEY_BYTES))) if encrypted else None
            size_bytes = segments * SEGMENT_BYTES
            return FileTier(folder / "backing", size_bytes, direct_io, seal=seal)

        return open_tier

    return on


def _wrapped(wrap: Callable[[SectorStore], SectorStore]) -> Callable[[Path], Opener]:
    def on(folder: Path) -> Opener:
        inner = _memory(folder)
        return lambda segments: wrap(inner(segments))

    return on


def open_stack(names: str, folder: Path) -> Callable[[int], list[Tier]]:
    """Return what opens the tiers "A + B + C", each on a medium in *folder*; "" is none.

    "blobs" is a ``BlobTier``, and the others are sector tiers of TIERS.
    """
    openers = [
        _open_one(name, folder / str(number))
        for number, name in enumerate(filter(None, names.split(" + ")))
    ]
    return lambda segments: [open_one(segments) for open_one in openers]


def _open_one(name: str, folder: Path) -> Callable[[int], Tier]:
    folder.mkdir()
    if name == "blobs":
        kept: dict[int, Kept] = {}
        return lambda segments: BlobTier(segments * PAGES_PER_SEGMENT, kept)
    opener = TIERS[name](folder)
    return lambda segments: SectorTier(opener(segments))


TIERS: Final[dict[str, Callable[[Path], Opener]]] = {
    "memory": _memory,
    "file": _file("auto", encrypted=True),
    "buffered plain file": _file("off", encrypted=False),
}
"""Every tier: its name, and what makes a medium for it in a folder of its own."""
WRAPPERS: Final[dict[str, Callable[[Path], Opener]]] = {
    "wrapper": _wrapped(TierWrapper),
    "slow": _wrapped(SlowTier),
    "faulty": _wrapped(lambda inner: FaultyTier(inner, "full", first=1 << 30)),
}
"""Likewise what stands around a tier and must not be noticed."""

"""The tiers below the pool, by name: what the conformance checks and the property tests run over.

A medium is a folder's: a tier that is opened again on it finds what was written there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from swapfs.testing.faulty import FaultyTier
from swapfs.testing.memory import MemoryTier
from swapfs.testing.slow import SlowTier
from swapfs.testing.wrapper import TierWrapper
from swapfs.tiers.aead import KEY_BYTES, AeadSeal
from swapfs.tiers.base import LowerTier
from swapfs.tiers.file import FileTier
from swapfs.tiers.segments import SEGMENT_BYTES

Opener = Callable[[int], LowerTier]
"""Opens a tier of so many segments on one medium: again on what lies there, after ``close``."""


def _memory(_: Path) -> Opener:
    medium = bytearray()

    def open_tier(segments: int) -> LowerTier:
        medium.extend(bytes(segments * SEGMENT_BYTES - len(medium)))
        return MemoryTier(segments, medium)

    return open_tier


def _file(direct_io: str, *, encrypted: bool) -> Callable[[Path], Opener]:
    def on(folder: Path) -> Opener:
        def open_tier(segments: int) -> LowerTier:
            seal = AeadSeal(bytes(range(KEY_BYTES))) if encrypted else None
            size_bytes = segments * SEGMENT_BYTES
            return FileTier(folder / "backing", size_bytes, direct_io, seal=seal)

        return open_tier

    return on


def _wrapped(wrap: Callable[[LowerTier], LowerTier]) -> Callable[[Path], Opener]:
    def on(folder: Path) -> Opener:
        inner = _memory(folder)
        return lambda segments: wrap(inner(segments))

    return on


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

"""Cleaning: having each tier move what it holds together, when free space in it is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swapfs.vlayer.blob_writer import BlobWriter
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.mover import Mover, MoveWithin
from swapfs.vlayer.stack import Level

READ_AGAIN_S: Final = 60.0
"""The pause before what could not be read is tried again."""


class Cleaner:
    """Has the tiers cleaned; runs in the thread that owns *mover* and *scratch*."""

    def __init__(
        self,
        layer: VirtualSlotLayer,
        writer: BlobWriter,
        mover: Mover,
        scratch: memoryview,
        clock_s: Callable[[], float],
    ) -> None:
        self._layer = layer
        self._writer = writer
        self._mover = mover
        self._scratch = scratch
        self._clock_s = clock_s
        self._read_again_s: dict[int, float] = {}  # by number of the tier

    def run(self, go_on: Callable[[], bool]) -> int:
        """Clean while free space is short and *go_on* holds; return the slots moved."""
        return sum(self._run(level, go_on) for level in self._layer.stack)

    def _run(self, level: Level, go_on: Callable[[], bool]) -> int:
        moved, again_s = 0, self._read_again_s.get(level.number)
        if again_s is not None and self._clock_s() >= again_s:
            del self._read_again_s[level.number]
            level.tier.retry()
        # Urgent: without it a write that may go beyond a budget would find no room all the same.
        while go_on() and level.may_take(self._clock_s(), urgent=True):
            step = self._step(level)
            if step is None:
                break
            moved += step
        return moved

    def _step(self, level: Level) -> int | None:
        """Do one step; return the slots moved, None if there is nothing to do or no room.

        Under way as a whole: a write must not look for room while the sources are closed.
        """
        progress = self._writer.progress
        progress.begin()
        cleaning = level.tier.cleaning()
        if cleaning is None:
            progress.cancel()
            return None
        try:
            return cleaning.run(MoveWithin(self._layer, self._mover, level), self._scratch)
        finally:
            if cleaning.unreadable:
                self._read_again_s.setdefault(level.number, self._clock_s() + READ_AGAIN_S)
            progress.end()

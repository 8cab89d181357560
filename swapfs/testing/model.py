"""What a swap file must do, as a dict of pages: the oracle that tests compare with."""

from __future__ import annotations

from typing import Final

from swapfs.units import PAGE_SIZE

_ZEROS: Final = bytes(PAGE_SIZE)


class SwapModel:
    """The pages of *slots* slots; a slot that was never written reads as zeros."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.pages: dict[int, bytes] = {}

    def write(self, slot: int, page: bytes) -> None:
        """Store one page."""
        assert 0 <= slot < self.slots
        assert len(page) == PAGE_SIZE
        self.pages[slot] = page

    def patch(self, slot: int, start: int, data: bytes) -> None:
        """Overwrite part of a page."""
        old = self.read(slot)
        self.write(slot, old[:start] + data + old[start + len(data) :])

    def discard(self, slot: int, count: int) -> int:
        """Empty a run of slots; return how many held anything."""
        doomed = [held for held in self.pages if slot <= held < slot + count]
        for held in doomed:
            del self.pages[held]
        return len(doomed)

    def read(self, slot: int) -> bytes:
        """Return the page of *slot*."""
        return self.pages.get(slot, _ZEROS)

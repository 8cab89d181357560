"""A tier that fails when it is told to."""

from __future__ import annotations

import random
from typing import Final

from swapfs.errors import TierFull, TierIOError, TierNoSpace
from swapfs.testing.wrapper import TierWrapper
from swapfs.tiers.blob import Batch, blob_ref
from swapfs.tiers.sectors import Extent, SectorStore
from swapfs.units import SECTOR_SIZE, PSector

READ_FAULTS: Final = ("read_error", "short_read", "flipped_read")
WRITE_FAULTS: Final = ("write_error", "no_space", "lost_write", "flipped_write")
FAULTS: Final = (*READ_FAULTS, *WRITE_FAULTS, "full")


class FaultyTier(TierWrapper):
    """Fails calls *first* to *last* (from 1) of the operation that *fault*, of FAULTS, is about.

    ``read_error`` and ``short_read`` raise, ``flipped_read`` returns damaged bytes,
    ``write_error`` and ``no_space`` raise, ``lost_write`` reports success and writes nothing,
    ``flipped_write`` damages what is written, and ``full`` finds no room. ``damaged_slots``
    are those whose blobs were ever lost or damaged by a write.
    """

    def __init__(self, inner: SectorStore, fault: str, first: int, last: int = 0) -> None:
        super().__init__(inner)
        assert fault in FAULTS
        self._fault = fault
        self._first = first
        self._last = last or first
        self._calls = 0
        self._full = False
        self.failures = 0
        self.damaged_slots: set[int] = set()

    def heal(self) -> None:
        """Let every later call through."""
        self._last = 0

    def _hit(self, *faults: str) -> str:
        if self._fault not in faults:
            return ""
        self._calls += 1
        if not self._first <= self._calls <= self._last:
            return ""
        self.failures += 1
        return self._fault

    def allocate(self, sectors: int, *, cleaning: bool = False) -> Extent:  # noqa: D102
        self._full = bool(self._hit("full"))
        if self._full:
            raise TierFull("made to be full")
        return super().allocate(sectors, cleaning=cleaning)

    def has_room(self) -> bool:  # noqa: D102
        return not self._full and super().has_room()

    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:  # noqa: D102
        match self._hit(*READ_FAULTS):
            case "read_error":
                raise TierIOError("made to fail: read")
            case "short_read":
                raise TierIOError("made to fail: short read")
            case "flipped_read":
                view = super().read(sector, sectors, scratch)
                self._flip(view)
                return view
        return super().read(sector, sectors, scratch)

    def write(self, extent: Extent, batch: Batch) -> None:  # noqa: D102
        fault = self._hit(*WRITE_FAULTS)
        if fault in ("lost_write", "flipped_write"):
            self.damaged_slots |= _slots(batch)
        match fault:
            case "write_error":
                raise TierIOError("made to fail: write")
            case "no_space":
                raise TierNoSpace("made to fail: no space")
            case "lost_write":
                if batch.sectors < extent.sectors:
                    rest = PSector(extent.sector + batch.sectors)
                    self.inner.release(rest, extent.sectors - batch.sectors)
                return
            case "flipped_write":
                self._flip(batch.view[: batch.sectors * SECTOR_SIZE])
        super().write(extent, batch)

    def _flip(self, view: memoryview) -> None:
        """Flip a bit in every sector, so that no blob in *view* is whole."""
        rng = random.Random(self._calls)
        for start in range(0, len(view), SECTOR_SIZE):
            view[start + rng.randrange(32)] ^= 1 << rng.randrange(8)


def _slots(batch: Batch) -> set[int]:
    """Return whose blobs are in *batch*, by their headers."""
    starts = range(0, batch.sectors * SECTOR_SIZE, SECTOR_SIZE)
    found = (blob_ref(batch.view[start:], 0) for start in starts)
    return {blob[0] for blob in found if blob is not None}

"""What a sector tier stands on: extents of 512-byte sectors on some medium, and which are free.

A batch of sealed blobs is written to an *extent*; sectors are read back. Knows nothing of slots,
words or references. Calls block, may come from several threads at once, and fail only with the
errors named here. A wrapper (see ``swapfs.testing.faulty``) takes a store and is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, NamedTuple

from swapfs.tiers.base import Direct, TierStats
from swapfs.tiers.blob import Batch
from swapfs.tiers.seal import Seal
from swapfs.units import PAGE_SIZE, PSector

READ_SLACK_BYTES: Final = 2 * PAGE_SIZE
"""Room in a scratch buffer beyond what is asked for."""


class Extent(NamedTuple):
    """A run of sectors that belongs to the caller, and is under way until it is settled."""

    sector: PSector
    sectors: int


class SectorStore(ABC):
    """Sectors for a ``SectorTier``.

    Attribute ``seal``: what the blobs of its batches are sealed with.
    """

    seal: Seal

    @abstractmethod
    def allocate(self, sectors: int, *, cleaning: bool = False) -> Extent:
        """Take a free extent of at most *sectors*, as long as there is one; at least one blob.

        :param cleaning: may use the space that is kept free for cleaning
        :raises TierFull: no run of free sectors holds a largest blob
        """

    @abstractmethod
    def settle(self, extent: Extent) -> None:
        """End what *extent*, as it was allocated, was taken for.

        Each sector of it is by then named by the table, released, or marked bad.
        """

    @abstractmethod
    def write(self, extent: Extent, batch: Batch) -> None:
        """Write *batch* at the start of *extent* and release the extent's unused rest.

        :raises TierIOError: nothing of the batch may be trusted; the extent stays taken, and
            the caller calls ``mark_bad`` or ``release``
        :raises TierNoSpace: likewise, but the sectors are good: ``release``
        """

    @abstractmethod
    def mark_bad(self, extent: Extent) -> None:
        """Take the sectors of a taken extent out of use for good, or release the last."""

    @abstractmethod
    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:
        """Return ``sectors * 512`` bytes, read into the page aligned *scratch*.

        *scratch* has READ_SLACK_BYTES more room than that, for media with larger blocks.

        :raises TierIOError: error or short read
        """

    def direct(self) -> Direct | None:
        """Return what is needed to read its sectors without asking it; None: it must be asked."""
        return None

    @abstractmethod
    def release(self, sector: PSector, sectors: int) -> None:
        """Take sectors back; they must be allocated."""

    @abstractmethod
    def next_taken(self, sector: int) -> Extent | None:
        """Return what is taken of the first segment that has something from *sector* on.

        From its first such sector to its last, whatever lies between; None: there is none.
        """

    @abstractmethod
    def begin_rebuild(self) -> None:
        """Forget every allocation; each one in use must then be given to ``mark``."""

    @abstractmethod
    def mark(self, sector: PSector, sectors: int) -> None:
        """Declare sectors in use, after ``begin_rebuild``."""

    @abstractmethod
    def segments_to_clean(self) -> list[Extent]:
        """Return segments whose blobs should be moved together; none: no need, or no gain.

        In the order in which to empty them; an extent for cleaning may not hold all of them.
        No extent is allocated in them until ``end_cleaning``, which must follow.
        """

    @abstractmethod
    def end_cleaning(self, segment: Extent, *, skip: bool) -> None:
        """Let *segment*, which ``segments_to_clean`` returned, be used again.

        :param skip: it should be empty and is not: leave it out of cleaning until it changes
        """

    @abstractmethod
    def retry_skipped(self) -> None:
        """Let cleaning look again at the segments that it left out."""

    @abstractmethod
    def has_room(self) -> bool:
        """Whether room can be had: by ``allocate``, or by cleaning and then ``allocate``.

        Asked when ``allocate`` has failed and nothing is under way: then False is the last word.
        """

    @abstractmethod
    def room_pages(self) -> int:
        """Return how many pages the tier holds for certain, however badly they compress."""

    @abstractmethod
    def stats(self) -> TierStats:
        """Return what the tier holds now."""

    def descriptors(self) -> list[int]:
        """Return the open files that another process needs to go on with it."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Release the medium; no call may follow."""

"""A tier around a tier that changes nothing: what the other wrappers start from."""

from __future__ import annotations

from swapfs.tiers.base import TierStats
from swapfs.tiers.blob import Batch
from swapfs.tiers.sectors import Extent, SectorStore
from swapfs.units import PSector


class TierWrapper(SectorStore):
    """Hands every call to *inner*."""

    def __init__(self, inner: SectorStore) -> None:
        self.inner = inner
        self.seal = inner.seal

    def allocate(self, sectors: int, *, cleaning: bool = False) -> Extent:  # noqa: D102
        return self.inner.allocate(sectors, cleaning=cleaning)

    def settle(self, extent: Extent) -> None:  # noqa: D102
        self.inner.settle(extent)

    def write(self, extent: Extent, batch: Batch) -> None:  # noqa: D102
        self.inner.write(extent, batch)

    def mark_bad(self, extent: Extent) -> None:  # noqa: D102
        self.inner.mark_bad(extent)

    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:  # noqa: D102
        return self.inner.read(sector, sectors, scratch)

    def release(self, sector: PSector, sectors: int) -> None:  # noqa: D102
        self.inner.release(sector, sectors)

    def next_taken(self, sector: int) -> Extent | None:  # noqa: D102
        return self.inner.next_taken(sector)

    def begin_rebuild(self) -> None:  # noqa: D102
        self.inner.begin_rebuild()

    def mark(self, sector: PSector, sectors: int) -> None:  # noqa: D102
        self.inner.mark(sector, sectors)

    def segments_to_clean(self) -> list[Extent]:  # noqa: D102
        return self.inner.segments_to_clean()

    def end_cleaning(self, segment: Extent, *, skip: bool) -> None:  # noqa: D102
        self.inner.end_cleaning(segment, skip=skip)

    def retry_skipped(self) -> None:  # noqa: D102
        self.inner.retry_skipped()

    def has_room(self) -> bool:  # noqa: D102
        return self.inner.has_room()

    def room_pages(self) -> int:  # noqa: D102
        return self.inner.room_pages()

    def stats(self) -> TierStats:  # noqa: D102
        return self.inner.stats()

    def close(self) -> None:  # noqa: D102
        self.inner.close()

"""A lower tier in memory, with the space bookkeeping of the file tier."""

from __future__ import annotations

from swapfs.errors import TierIOError
from swapfs.tiers.aead import KEY_BYTES, AeadSeal
from swapfs.tiers.base import TierStats
from swapfs.tiers.blob import Batch
from swapfs.tiers.seal import Seal
from swapfs.tiers.sectors import Extent, SectorStore
from swapfs.tiers.segments import SEGMENT_BYTES, SegmentMap
from swapfs.units import SECTOR_SIZE, PSector


class MemoryTier(SectorStore):
    """Sectors in a bytearray; ``data`` and ``map`` are open to tests.

    :param data: the medium of an earlier tier, to model a server that died
    :param seal: of its blobs; encrypted under a fixed key unless given
    """

    def __init__(
        self, segments: int, data: bytearray | None = None, seal: Seal | None = None
    ) -> None:
        self.seal = seal or AeadSeal(bytes(range(KEY_BYTES)))
        self.data = bytearray(segments * SEGMENT_BYTES) if data is None else data
        self.map = SegmentMap(segments)
        self.reads = 0
        self.writes = 0

    def allocate(self, sectors: int, *, cleaning: bool = False) -> Extent:  # noqa: D102
        return self.map.allocate(sectors, cleaning=cleaning)

    def settle(self, extent: Extent) -> None:  # noqa: D102
        self.map.settle(extent)

    def write(self, extent: Extent, batch: Batch) -> None:  # noqa: D102
        assert batch.sectors <= extent.sectors
        self.writes += 1
        start, size = extent.sector * SECTOR_SIZE, batch.sectors * SECTOR_SIZE
        self.data[start : start + size] = batch.view[:size]
        if batch.sectors < extent.sectors:
            self.map.release(extent.sector + batch.sectors, extent.sectors - batch.sectors)

    def mark_bad(self, extent: Extent) -> None:  # noqa: D102
        self.map.mark_bad(extent.sector, extent.sectors)

    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:  # noqa: D102
        self.reads += 1
        start, size = sector * SECTOR_SIZE, sectors * SECTOR_SIZE
        found = memoryview(self.data)[start : start + size]
        if len(found) < size:
            raise TierIOError(f"read at sector {sector}: {len(found)} of {size} bytes")
        scratch[:size] = found
        return scratch[:size]

    def release(self, sector: PSector, sectors: int) -> None:  # noqa: D102
        self.map.release(sector, sectors)

    def next_taken(self, sector: int) -> Extent | None:  # noqa: D102
        return self.map.next_taken(sector)

    def begin_rebuild(self) -> None:  # noqa: D102
        self.map.begin_rebuild()

    def mark(self, sector: PSector, sectors: int) -> None:  # noqa: D102
        self.map.mark(sector, sectors)

    def segments_to_clean(self) -> list[Extent]:  # noqa: D102
        return self.map.segments_to_clean()

    def end_cleaning(self, segment: Extent, *, skip: bool) -> None:  # noqa: D102
        self.map.end_cleaning(segment, skip=skip)

    def retry_skipped(self) -> None:  # noqa: D102
        self.map.retry_skipped()

    def has_room(self) -> bool:  # noqa: D102
        return self.map.has_room()

    def room_pages(self) -> int:  # noqa: D102
        return self.map.room_pages()

    def stats(self) -> TierStats:  # noqa: D102
        return TierStats(
            name="memory",
            path="",
            size_bytes=len(self.data),
            used_bytes=self.map.taken_bytes,
            bad_bytes=self.map.bad_bytes,
            map_bytes=self.map.map_bytes,
            direct_io=False,
            encrypted=self.seal.encrypted,
            free_segments=self.map.free_segments,
            segments=self.map.segments,
        )

    def close(self) -> None:  # noqa: D102
        pass

"""The file tier: blobs in a preallocated file or on a block device, past the page cache.

Direct I/O where the place allows it, since a page cache below swap is memory that swap wanted
to free. What is written is lost to a later mount: the table that names it lives in memory.
The first sector of the file always starts with a blob's magic once anything was written, which
is how a file of ours is told from somebody's data.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final, NamedTuple

from swapfs.errors import ConfigError, TierIOError, TierNoSpace
from swapfs.tiers.backing_file import block_sectors, cautions, open_backing
from swapfs.tiers.base import Direct, TierStats
from swapfs.tiers.blob import Batch
from swapfs.tiers.seal import ChecksumSeal, Seal
from swapfs.tiers.sectors import Extent, SectorStore
from swapfs.tiers.segments import CLEANING_RESERVE, SEGMENT_BYTES, SegmentMap
from swapfs.units import FILE_BYTES_MAX, PAGE_SIZE, SECTOR_SIZE, PSector

_PAGE_SECTORS: Final = PAGE_SIZE // SECTOR_SIZE
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Of the file system, a quota or a limit; the blocks that were written to are as good as before."""


class Known(NamedTuple):
    """What must be asked of a place: the sectors that reads are aligned to, and its cautions."""

    block_sectors: int
    cautions: tuple[str, ...]


class FileTier(SectorStore):
    """Blobs on a file or block device.

    :param size_bytes: how much of it to use; rounded down to whole segments
    :param seal: of its blobs; a checksum unless given
    :param fd: a descriptor that another FileTier opened for the same place and size
    :param known: what that one found out of the place: then this one asks no disk
    """

    def __init__(
        self,
        path: Path,
        size_bytes: int,
        direct_io: str = "auto",
        *,
        seal: Seal | None = None,
        fd: int | None = None,
        known: Known | None = None,
    ) -> None:
        segments = size_bytes // SEGMENT_BYTES
        if segments <= CLEANING_RESERVE:
            least = (CLEANING_RESERVE + 1) * SEGMENT_BYTES
            raise ConfigError("file", f"{size_bytes} bytes are too few; at least {least}")
        if size_bytes > FILE_BYTES_MAX:
            raise ConfigError("file", f"{size_bytes} bytes are too many; at most {FILE_BYTES_MAX}")
        if fd is None:
            self.fd, self._direct = open_backing(path, size_bytes, direct_io)
        else:
            self.fd, self._direct = fd, bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
        if known is None:
            sectors = block_sectors(self.fd) if self._direct else 1
            known = Known(sectors, cautions(self.fd, path))
        self.known = known
        self.block_sectors = known.block_sectors
        self.seal = seal or ChecksumSeal()
        self._path = path
        self._map = SegmentMap(segments)

    def allocate(self, sectors: int, *, cleaning: bool = False) -> Extent:  # noqa: D102
        return self._map.allocate(sectors, cleaning=cleaning)

    def settle(self, extent: Extent) -> None:  # noqa: D102
        self._map.settle(extent)

    def write(self, extent: Extent, batch: Batch) -> None:  # noqa: D102
        sectors = -(-batch.sectors // _PAGE_SECTORS) * _PAGE_SECTORS
        assert 0 < sectors <= extent.sectors
        size = sectors * SECTOR_SIZE
        batch.view[batch.sectors * SECTOR_SIZE : size] = bytes(size - batch.sectors * SECTOR_SIZE)
        self._write_all(batch.view[:size], extent.sector)
        if batch.sectors < extent.sectors:
            rest = PSector(extent.sector + batch.sectors)
            self._map.release(rest, extent.sectors - batch.sectors)

    def _write_all(self, view: memoryview, sector: PSector) -> None:
        offset, written = sector * SECTOR_SIZE, 0
        while written < len(view):
            try:
                # Cut short, it is called again for the rest: that tells why.
                got = os.pwritev(self.fd, [view[written:]], offset + written)
            except OSError as error:
                kind = TierNoSpace if error.errno in _NO_SPACE else TierIOError
                raise kind(f"write at sector {sector}: {error.strerror}") from error
            if got <= 0 or (got % SECTOR_SIZE and self._direct):
                raise TierIOError(f"write at sector {sector}: {written + got} of {len(view)} bytes")
            written += got

    def mark_bad(self, extent: Extent) -> None:  # noqa: D102
        self._map.mark_bad(extent.sector, extent.sectors)

    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:  # noqa: D102
        lead = sector % self.block_sectors
        block = self.block_sectors
        window = -(-(lead + sectors) // block) * block * SECTOR_SIZE
        try:
            got = os.preadv(self.fd, [scratch[:window]], (sector - lead) * SECTOR_SIZE)
        except OSError as error:
            raise TierIOError(f"read at sector {sector}: {error.strerror}") from error
        if got != window:
            raise TierIOError(f"read at sector {sector}: {got} of {window} bytes")
        return scratch[lead * SECTOR_SIZE : (lead + sectors) * SECTOR_SIZE]

    def direct(self) -> Direct:  # noqa: D102
        return Direct(self.fd, self.block_sectors, self.seal.sealer)

    def release(self, sector: PSector, sectors: int) -> None:  # noqa: D102
        self._map.release(sector, sectors)

    def next_taken(self, sector: int) -> Extent | None:  # noqa: D102
        return self._map.next_taken(sector)

    def begin_rebuild(self) -> None:  # noqa: D102
        self._map.begin_rebuild()

    def mark(self, sector: PSector, sectors: int) -> None:  # noqa: D102
        self._map.mark(sector, sectors)

    def segments_to_clean(self) -> list[Extent]:  # noqa: D102
        return self._map.segments_to_clean()

    def end_cleaning(self, segment: Extent, *, skip: bool) -> None:  # noqa: D102
        self._map.end_cleaning(segment, skip=skip)

    def retry_skipped(self) -> None:  # noqa: D102
        self._map.retry_skipped()

    def has_room(self) -> bool:  # noqa: D102
        return self._map.has_room()

    def room_pages(self) -> int:  # noqa: D102
        return self._map.room_pages()

    def stats(self) -> TierStats:  # noqa: D102
        return TierStats(
            name="file",
            path=str(self._path),
            size_bytes=self._map.segments * SEGMENT_BYTES,
            used_bytes=self._map.taken_bytes,
            bad_bytes=self._map.bad_bytes,
            map_bytes=self._map.map_bytes,
            direct_io=self._direct,
            encrypted=self.seal.encrypted,
            free_segments=self._map.free_segments,
            segments=self._map.segments,
            cautions=self.known.cautions,
        )

    def descriptors(self) -> list[int]:  # noqa: D102
        return [self.fd]

    def close(self) -> None:  # noqa: D102
        os.close(self.fd)

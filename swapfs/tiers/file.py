"""The file tier: blobs in a preallocated file or on a block device, past the page cache.

Direct I/O where the place allows it, since a page cache below swap is memory that swap wanted
to free. What is written is lost to a later mount: the table that names it lives in memory.
The first sector of the file always starts with a blob's magic once anything was written, which
is how a file of ours is told from somebody's data.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path
from typing import Final

from swapfs.errors import ConfigError, OperationError, TierIOError
from swapfs.tiers.base import Extent, LowerTier, TierStats
from swapfs.tiers.blob import MAGIC, Batch
from swapfs.tiers.seal import ChecksumSeal, Seal
from swapfs.tiers.segments import CLEANING_RESERVE, SEGMENT_BYTES, SegmentMap
from swapfs.units import FILE_BYTES_MAX, PAGE_SIZE, SECTOR_SIZE, KiB, PSector

_PAGE_SECTORS: Final = PAGE_SIZE // SECTOR_SIZE
_LOOKED_AT_BYTES: Final = 128 * KiB  # the superblocks of btrfs (64K) and ISO 9660 (32K) are in it


def open_backing(path: Path, size_bytes: int, direct_io: str) -> tuple[int, bool]:
    """Open *path* for a file tier; return (descriptor, whether direct I/O is on).

    A file is made (0600) or grown to *size_bytes* with its space allocated; a block device
    must be that large already. On failure nothing that was not there before is left.

    :param direct_io: ``auto``, ``on`` (fail without it) or ``off``
    :raises ConfigError: holds other data, too small, or not a file or block device
    :raises OperationError: the system refused to open or allocate it
    """
    existed = path.exists()
    flags = os.O_RDWR | os.O_CLOEXEC
    # O_EXCL on a block device: refuse one that is mounted or otherwise in use. Its lasting
    # names (/dev/disk/by-id, LVM) are links; a file's name must not be one.
    flags |= os.O_EXCL if path.is_block_device() else os.O_CREAT | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise OperationError(f"cannot open backing file {path}: {error.strerror}") from error
    try:
        _lock(fd, path)
        _require_ours(fd, path)
        _allocate(fd, path, size_bytes)
        direct = direct_io != "off" and _set_direct(fd)
        if direct_io == "on" and not direct:
            raise OperationError(f"{path}: no direct I/O here; use file-direct-io = 'auto'")
    except BaseException as error:
        os.close(fd)
        if not existed:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OperationError(f"cannot use backing file {path}: {error.strerror}") from error
        raise
    return fd, direct


def _lock(fd: int, path: Path) -> None:
    """Refuse a place that another swapfs uses; the kernel lets go when the last server ends."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OperationError(f"{path} is in use by another swapfs") from error


def _require_ours(fd: int, path: Path) -> None:
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
        raise ConfigError("file", f"{path} is neither a regular file nor a block device")
    start = os.pread(fd, _LOOKED_AT_BYTES, 0)
    if start.strip(b"\0") and not start.startswith(MAGIC):
        raise ConfigError(
            "file", f"{path} holds data that is not swapfs's; remove or wipe it, or name another"
        )


def _allocate(fd: int, path: Path, size_bytes: int) -> None:
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        device_bytes = os.lseek(fd, 0, os.SEEK_END)
        if device_bytes < size_bytes:
            raise ConfigError("file", f"{path} has {device_bytes} bytes, not {size_bytes}")
        return
    os.fchmod(fd, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        os.ftruncate(fd, status.st_size)
        raise OperationError(
            f"cannot allocate {size_bytes} bytes for {path}: {error.strerror}"
        ) from error


def _set_direct(fd: int) -> bool:
    """Turn direct I/O on; False if the place refuses it, then it is off."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    with mmap.mmap(-1, PAGE_SIZE) as scratch:
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            os.preadv(fd, [scratch], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
            return False
    return True


def _block_sectors(fd: int) -> int:
    """Return the sectors that a read must be aligned to: 1, or those of a 4 KiB block."""
    with mmap.mmap(-1, PAGE_SIZE) as scratch:
        try:
            os.preadv(fd, [memoryview(scratch)[:SECTOR_SIZE]], SECTOR_SIZE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return _PAGE_SECTORS
    return 1


class FileTier(LowerTier):
    """Blobs on a file or block device.

    :param size_bytes: how much of it to use; rounded down to whole segments
    :param seal: of its blobs; a checksum unless given
    :param fd: a descriptor that another FileTier opened for the same place and size
    """

    def __init__(
        self,
        path: Path,
        size_bytes: int,
        direct_io: str = "auto",
        *,
        seal: Seal | None = None,
        fd: int | None = None,
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
        self.block_sectors = _block_sectors(self.fd) if self._direct else 1
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
        try:
            written = os.pwritev(self.fd, [batch.view[:size]], extent.sector * SECTOR_SIZE)
        except OSError as error:
            raise TierIOError(f"write at sector {extent.sector}: {error.strerror}") from error
        if written != size:
            raise TierIOError(f"write at sector {extent.sector}: {written} of {size} bytes")
        if batch.sectors < extent.sectors:
            rest = PSector(extent.sector + batch.sectors)
            self._map.release(rest, extent.sectors - batch.sectors)

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

    def release(self, sector: PSector, sectors: int) -> None:  # noqa: D102
        self._map.release(sector, sectors)

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
        )

    def close(self) -> None:  # noqa: D102
        os.close(self.fd)

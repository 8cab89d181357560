"""The region: one shared mapping that holds everything which must survive the server.

Layout, each part starting on a page::

    header     magic, format version, geometry; at byte 64 how much of the arena is used
               (u64, 0: all); from byte 256 on the key of the file
               tier's blobs; from byte 512 on the FUSE_INIT request that
               opened the session (u32 length first); from byte 1024 on the counters;
               from byte 2048 on the rows of the stack (stack_rows.py); from byte 4096
               on those of the exports (export_rows.py)
    directory  one u32 a cluster: page index in the arena + 1 of its table page, 0 = none
    classes    one byte a zspage: its size class, 255 = free
    log        the access log, if there is one: a page with the number of events ever; when each
               cluster was last touched, 4 bytes each; the ring, 16 bytes an event (core/log.h)
    arena      the pool: zspages of 64 KiB, aligned to 64 KiB

The region is a memfd, so that it can be handed to another process; it is never a named file.
Knows the layout, not the meaning of what is in it.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, replace
from typing import Final

from swapfs.core._core import GRAIN_SHIFT, NO_CLASS, PLACE_SHIFT, ZSPAGE_SHIFT
from swapfs.errors import RegionError
from swapfs.region.counters import COUNTERS
from swapfs.region.export_rows import EXPORTS_MAX, ROW_BYTES
from swapfs.region.extent import Extent
from swapfs.units import CLUSTER_BYTES, PAGE_SIZE

FORMAT_VERSION: Final = 5
ZSPAGE_BYTES: Final = 1 << ZSPAGE_SHIFT
"""Bytes in one zspage, the unit in which the arena is divided among size classes."""

POOL_BYTES_MAX: Final = 1 << 64 - PLACE_SHIFT + GRAIN_SHIFT
"""As far as a word can name places in the arena: 1 TiB."""

_MAGIC: Final = b"swapfs\0\0"
_HEADER = struct.Struct("<8sIIQQQ")  # magic, version, counters, size, pool and log in bytes
_POOL_OFFSET: Final = 64
_KEY_OFFSET: Final = 256
_KEY_BYTES: Final = 32
_INIT_OFFSET: Final = 512
_COUNTERS_OFFSET: Final = 1024
_STACK_OFFSET: Final = 2048
_EXPORTS_OFFSET: Final = PAGE_SIZE
_HEADER_BYTES: Final = 2 * PAGE_SIZE


def _page_ceil(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_SIZE) * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the parts of a region lie; derived from two sizes.

    :param size_bytes: of the space of slots in which all swap files lie, a multiple of PAGE_SIZE
    :param pool_bytes: size of the arena, a multiple of ZSPAGE_BYTES
    :param log_bytes: size of the ring of events: 0, or a power of two from PAGE_SIZE on
    """

    size_bytes: int
    pool_bytes: int
    log_bytes: int = 0

    @property
    def slots(self) -> int:
        """Virtual slots."""
        return self.size_bytes // PAGE_SIZE

    @property
    def clusters(self) -> int:
        """Clusters that they span; the last may be short."""
        return -(-self.size_bytes // CLUSTER_BYTES)

    @property
    def zspages(self) -> int:
        """Zspages in the arena."""
        return self.pool_bytes // ZSPAGE_BYTES

    @property
    def directory_offset(self) -> int:
        """Byte offset of the cluster directory."""
        return _HEADER_BYTES

    @property
    def classes_offset(self) -> int:
        """Byte offset of the zspage classes."""
        return self.directory_offset + _page_ceil(4 * self.clusters)

    @property
    def log_offset(self) -> int:
        """Byte offset of the access log: its head, then ``touched_offset`` and the ring."""
        return self.classes_offset + _page_ceil(self.zspages)

    @property
    def touched_offset(self) -> int:
        """Byte offset of the times at which clusters were touched."""
        return self.log_offset + (PAGE_SIZE if self.log_bytes else 0)

    @property
    def events_offset(self) -> int:
        """Byte offset of the ring of events."""
        return self.touched_offset + _page_ceil(4 * self.touched)

    @property
    def touched(self) -> int:
        """Clusters of which the access log notes when they were touched: all, or none."""
        return self.clusters if self.log_bytes else 0

    @property
    def arena_offset(self) -> int:
        """Byte offset of the arena, a multiple of ZSPAGE_BYTES."""
        end = self.events_offset + self.log_bytes
        return -(-end // ZSPAGE_BYTES) * ZSPAGE_BYTES

    @property
    def total_bytes(self) -> int:
        """Length of the mapping."""
        return self.arena_offset + self.pool_bytes


def read_geometry(fd: int) -> Geometry:
    """Return the geometry of the region behind *fd*.

    :raises RegionError: not a region, or of a format that this version cannot use
    """
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise RegionError("this descriptor holds no swapfs region")
    _, version, counters, size_bytes, pool_bytes, log_bytes = _HEADER.unpack(header)
    if version != FORMAT_VERSION or counters > len(COUNTERS):
        raise RegionError(
            f"the region has format {version}.{counters}, this swapfs reads "
            f"{FORMAT_VERSION}.{len(COUNTERS)}: keep the version that made it"
        )
    geometry = Geometry(size_bytes, pool_bytes, log_bytes)
    if os.fstat(fd).st_size != geometry.total_bytes:
        raise RegionError("the region's length does not fit its header")
    return geometry


class Region:
    """A mapped region and typed views of its parts.

    Attributes: ``directory`` (u32), ``classes`` (u8), ``arena`` (bytes), ``arena_words`` (the
    same bytes as u64), ``arena_halves`` (as u16), ``session_init`` (bytes, see ``wire.c``),
    ``counter_words`` (u64), ``stack`` and ``exports`` (bytes), ``pool_words`` (``pool_bytes``, as
    it is stored); of the access log ``log_head`` (one u64), ``log_touched`` (u32) and
    ``log_events`` (u64), all empty if there is none.
    A store to an element of a ``Q`` view is one aligned 8-byte store, which is what publishes a
    word (I3).
    """

    def __init__(self, fd: int, geometry: Geometry) -> None:
        self.fd = fd
        self.geometry = geometry
        self._map = mmap.mmap(fd, geometry.total_bytes, mmap.MAP_SHARED)
        whole = memoryview(self._map)
        g = geometry
        self.directory = whole[g.directory_offset :][: 4 * g.clusters].cast("I")
        self.classes = whole[g.classes_offset :][: g.zspages]
        self.arena = whole[g.arena_offset :][: g.pool_bytes]
        self.arena_words = self.arena.cast("Q")
        self.arena_halves = self.arena.cast("H")
        self.log_head = whole[g.log_offset :][: 8 if g.log_bytes else 0].cast("Q")
        self.log_touched = whole[g.touched_offset :][: 4 * g.touched].cast("I")
        self.log_events = whole[g.events_offset :][: g.log_bytes].cast("Q")
        self.blob_key = whole[_KEY_OFFSET : _KEY_OFFSET + _KEY_BYTES]
        self.session_init = whole[_INIT_OFFSET:_COUNTERS_OFFSET]
        self.counter_words = whole[_COUNTERS_OFFSET:_STACK_OFFSET].cast("Q")
        self.stack = whole[_STACK_OFFSET:PAGE_SIZE]
        self.exports = whole[_EXPORTS_OFFSET:][: EXPORTS_MAX * ROW_BYTES]
        self.pool_words = whole[_POOL_OFFSET : _POOL_OFFSET + 8].cast("Q")
        self._whole = whole
        self._extent = Extent(self._map, fd)
        self._extent.close(g.arena_offset + self.pool_bytes)

    @classmethod
    def create(cls, geometry: Geometry, pool_bytes: int = 0) -> Region:
        """Make a new region, present in memory before this returns.

        :param pool_bytes: how much of the arena is used, and is there; 0: all of it
        :raises RegionError: the kernel has not that much memory
        """
        fd = os.memfd_create("swapfs-region", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, geometry.total_bytes)
            os.pwrite(fd, pool_bytes.to_bytes(8, "little"), _POOL_OFFSET)
            region = cls(fd, geometry)
            region.populate()
        except OSError as error:
            os.close(fd)
            size = geometry.total_bytes - geometry.pool_bytes + (pool_bytes or geometry.pool_bytes)
            raise RegionError(f"cannot reserve {size} bytes of memory: {error.strerror}") from error
        header = _HEADER.pack(
            *(_MAGIC, FORMAT_VERSION, len(COUNTERS)),
            *(geometry.size_bytes, geometry.pool_bytes, geometry.log_bytes),
        )
        region.classes[:] = bytes([NO_CLASS]) * geometry.zspages
        region._whole[: len(header)] = header
        return region

    @classmethod
    def attach(cls, fd: int) -> Region:
        """Map the region behind *fd*, made by this or another process.

        :raises RegionError: not a region, or of a format that this version cannot use
        """
        return cls(fd, read_geometry(fd))

    def populate(self) -> None:
        """Have every page of the region in memory and mapped, so that no later use faults.

        :raises OSError: not enough memory, or a kernel before 5.14
        """
        self._extent.populate(self.geometry.arena_offset + self.pool_bytes)

    # ---- how much of the arena is used ----

    @property
    def pool_bytes(self) -> int:
        """How much of the arena the pool has, from its beginning on; the rest is not there."""
        return self.pool_words[0] or self.geometry.pool_bytes

    @pool_bytes.setter
    def pool_bytes(self, size_bytes: int) -> None:
        self.pool_words[0] = size_bytes

    @property
    def now(self) -> Geometry:
        """The geometry that a region of the pool's size of now would have."""
        return replace(self.geometry, pool_bytes=self.pool_bytes)

    def open_arena(self, start: int, end: int) -> None:
        """Have the arena from byte *start* to *end* in memory, for this process to use.

        :raises OSError: there is not enough
        """
        at = self.geometry.arena_offset
        self._extent.open(at + start, at + end)

    def close_arena(self, start: int) -> None:
        """Have this process not touch the arena from byte *start* on."""
        self._extent.close(self.geometry.arena_offset + start)

    def give_back(self, start: int) -> None:
        """Give the memory of the arena from byte *start* on back to the system."""
        self._extent.give_back(self.geometry.arena_offset + start)

    # ---- the rest ----

    @property
    def address(self) -> int:
        """Where the region is mapped, for mlock(2)."""
        return self._extent.address

    @property
    def fixed_bytes(self) -> int:
        """Bytes that the region holds whether or not anything is stored."""
        return self.geometry.arena_offset

    def close(self) -> None:
        """Close the descriptor; the mapping goes with the last view of it."""
        os.close(self.fd)

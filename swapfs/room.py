"""How many pages a configuration holds for certain, however badly they compress (I6)."""

from __future__ import annotations

from swapfs.config import Config
from swapfs.region import ZSPAGE_BYTES, Geometry
from swapfs.tiers.segments import SEGMENT_BYTES, guaranteed_pages
from swapfs.units import PAGE_SIZE
from swapfs.vlayer.swap_table import table_reserve_bytes


def geometry_of(config: Config) -> Geometry:
    """Return the region that *config* asks for."""
    return Geometry(config.size_bytes, config.pool_bytes // ZSPAGE_BYTES * ZSPAGE_BYTES)


def guaranteed_bytes(config: Config) -> int:
    """Return the bytes of raw pages that pool and file of *config* hold for certain.

    The pool gives up what the swap table needs at full use; the file gives up what its
    headers and its cleaning need.
    """
    geometry = geometry_of(config)
    pool_bytes = geometry.pool_bytes - table_reserve_bytes(geometry.clusters, geometry.pool_bytes)
    pages = 0
    if config.file is not None:
        pages = guaranteed_pages(config.file.size_bytes // SEGMENT_BYTES)
    return pool_bytes + pages * PAGE_SIZE

"""How many pages a configuration holds for certain, however badly they compress (I6)."""

from __future__ import annotations

from swapfs.region.layout import ZSPAGE_BYTES, Geometry
from swapfs.tiers.pool import spare_zspages
from swapfs.tiers.segments import SEGMENT_BYTES, guaranteed_pages
from swapfs.units import CLUSTER_BYTES, PAGE_SIZE
from swapfs.vlayer.swap_table import table_reserve_bytes


def geometry_for(size_bytes: int, pool_bytes: int, log_bytes: int = 0) -> Geometry:
    """Return the region of a swap file of *size_bytes* over a pool of about *pool_bytes*."""
    return Geometry(size_bytes, pool_bytes // ZSPAGE_BYTES * ZSPAGE_BYTES, log_bytes)


def guaranteed_bytes(geometry: Geometry, *tier_bytes: int) -> int:
    """Return the bytes of raw pages that the pool and tiers of *tier_bytes* hold for certain.

    The pool gives up what the swap table needs at full use, the spare zspage of compaction,
    and one page, since a page that is written again needs a place before the old one is free;
    the file gives up what its headers and its cleaning need. No more slots than the tables in
    the pool can name are ever held for certain.

    Each part keeps its promise by itself: a pool that cannot take a page after compaction holds
    16 blobs for each zspage that counts here (``compaction``), a file that cannot after cleaning
    holds 213 for each segment (``segments``), both when nothing is under way in them. That they
    keep it together needs one more thing: that they are full at the same time, since a page may
    move from the one to the other between two looks (``WriteAround.wait_for_room``).
    """
    tables_bytes = table_reserve_bytes(geometry.clusters, geometry.pool_bytes)
    spare_bytes = spare_zspages(geometry.zspages) * ZSPAGE_BYTES
    room_bytes = max(0, geometry.pool_bytes - tables_bytes - spare_bytes - PAGE_SIZE)
    room_bytes += sum(guaranteed_pages(size // SEGMENT_BYTES) for size in tier_bytes) * PAGE_SIZE
    tables = tables_bytes // PAGE_SIZE
    if tables < geometry.clusters:
        return min(room_bytes, tables * CLUSTER_BYTES)
    return room_bytes

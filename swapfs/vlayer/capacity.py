"""How many pages a configuration holds for certain, however badly they compress (I6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import combinations
from typing import Final

from swapfs.config.exports import ExportConfig, names_of
from swapfs.config.model import EXPORT, Config, check_room, risk
from swapfs.config.values import exact_size
from swapfs.errors import ConfigError
from swapfs.region.layout import ZSPAGE_BYTES, Geometry
from swapfs.tiers.pool import spare_zspages
from swapfs.tiers.sector_ref import BLOB_SECTORS_MAX
from swapfs.tiers.segments import SEGMENT_BYTES, guaranteed_pages
from swapfs.units import CLUSTER_BYTES, PAGE_SIZE, SECTOR_SIZE, format_size
from swapfs.vlayer.swap_table import table_reserve_bytes

_RAW_BELOW_BYTES: Final = BLOB_SECTORS_MAX * SECTOR_SIZE
"""What a page that does not compress takes below the pool."""


def geometry_for(size_bytes: int, pool_bytes: int, log_bytes: int = 0) -> Geometry:
    """Return the region of *size_bytes* of slots over a pool of about *pool_bytes*."""
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


def require_room(
    config: Config, geometry: Geometry, tier_bytes: Mapping[str, int] | None = None
) -> None:
    """Check that every page the kernel may write has a place (I6), whatever file it is in.

    :param tier_bytes: what is certain of each tier, by name; None: as in *config*
    :raises ConfigError: a size is larger than the overcommit ratio times the room for it
    """
    if tier_bytes is None:
        tier_bytes = {tier.name: tier.certain_bytes for tier in config.all_tiers}
    ratio = Fraction(str(config.overcommit))
    for some, names in _sets(config, tier_bytes):
        room_bytes = guaranteed_bytes(geometry, *(tier_bytes[name] for name in names))
        size_bytes = sum(export.size_bytes for export in some)
        if size_bytes > ratio * room_bytes:
            raise ConfigError(
                EXPORT,
                f"{exact_size(size_bytes)} of {names_of(some)} is more than the guaranteed room "
                f"of {format_size(room_bytes)} in the pool and the tiers that may be used for "
                f"it: let it use more tiers, or {risk(size_bytes, max(1, room_bytes))}",
            )
    check_room(config, guaranteed_bytes(geometry, *tier_bytes.values()))
    for export in config.exports:
        certain_bytes = _within_quota(export, below=bool(tier_bytes))
        if export.quota_bytes and export.size_bytes > ratio * certain_bytes:
            raise ConfigError(
                EXPORT,
                f"the quota of {export.name} holds {format_size(certain_bytes)} of incompressible "
                f"pages, and its size is {exact_size(export.size_bytes)}: raise the quota, lower "
                f"the size, or {risk(export.size_bytes, max(1, certain_bytes))}",
            )


def _sets(
    config: Config, tier_bytes: Mapping[str, int]
) -> Iterator[tuple[tuple[ExportConfig, ...], set[str]]]:
    """Yield each set of swap files that may not use every tier, and the tiers that it may."""
    for count in range(1, len(config.exports) + 1):
        for some in combinations(config.exports, count):
            names: set[str] = set()
            for export in some:
                names |= tier_bytes.keys() & set(
                    tier_bytes if export.tiers is None else export.tiers
                )
            if len(names) < len(tier_bytes):
                yield some, names


def _within_quota(export: ExportConfig, *, below: bool) -> int:
    """Return the bytes of raw pages for which the quota of *export* is enough."""
    tables_bytes = -(-export.size_bytes // CLUSTER_BYTES) * PAGE_SIZE
    page_bytes = _RAW_BELOW_BYTES if below and export.tiers != () else PAGE_SIZE
    return max(0, export.quota_bytes - tables_bytes) // page_bytes * PAGE_SIZE

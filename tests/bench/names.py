"""Names that parts, targets and plots must agree on; other names a part makes up as it likes.

Names are what the tables show, so they are words and not identifiers.
"""

from __future__ import annotations

import re
from typing import Final

BLOCK: Final = "block"
MEMORY: Final = "memory"
SCALE: Final = "scale"
DEMOTION: Final = "demotion"
INTERFERENCE: Final = "interference"
SWAP: Final = "swap"
PARTS: Final = (BLOCK, SWAP, MEMORY, DEMOTION, INTERFERENCE, SCALE)
"""In the order in which they run and are shown."""

# Subjects.
SWAPFS: Final = "swapfs"
SWAPFS_POOL: Final = "swapfs pool"
SWAPFS_FILE: Final = "swapfs file"
SWAPFS_DISK: Final = "swapfs, pool + disk"
"""With a pool too small for the data, and a disk below it."""
FLOOR: Final = "C no-op FUSE"
ZRAM: Final = "zram"
ZRAM_LZ4: Final = "zram lz4"
ZSWAP: Final = "zswap + swapfile"
SWAPFILE: Final = "swapfile"
IDLE: Final = "swapfs, idle"
SCRAPING: Final = "swapfs, scraped"
DEMOTING: Final = "swapfs, demoting"

# Metrics.
P50: Final = "p50"
P99: Final = "p99"
THROUGHPUT: Final = "throughput"
TIME: Final = "time"
MAJOR_FAULTS: Final = "major faults"
CPU: Final = "CPU time"
CPU_PER_PAGE: Final = "CPU a page"
HELD: Final = "held"
RAM_PER_PAGE: Final = "RAM per stored page"
METADATA_PER_SLOT: Final = "metadata per slot"

# Tests.
SWAP_OUT: Final = "swap-out"
SEQUENTIAL_SWAP_IN: Final = "sequential swap-in"
RANDOM_SWAP_IN: Final = "random swap-in"
SWAPOFF: Final = "swapoff"
BUILD: Final = "build"
REDIS: Final = "redis"
SORT: Final = "sort"
SQLITE: Final = "SQLite"
FIXED_MEMORY: Final = "fixed memory"
FIXED_MEMORY_WITH_FILE: Final = "fixed memory with an encrypted file"
REAL_MEMORY: Final = "real process memory"

_SUFFIXES: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_POINT: Final = re.compile(r"(.+) = ([0-9.]+)(?: (\w+))?")


def random_read(kib: int, depth: int = 1) -> str:
    """Return the name of a test of random reads; *depth* requests at once."""
    return f"{kib} KiB random read, QD{depth}"


def random_write(kib: int, depth: int = 1) -> str:
    """Return the name of a test of random writes; *depth* requests at once."""
    return f"{kib} KiB random write, QD{depth}"


def natively(test: str, *, awake: bool) -> str:
    """Return the name of *test* on the machine itself; *awake*: its CPUs are kept from sleeping."""
    return f"{test}, native" + (", CPUs awake" if awake else "")


def at_count(axis: str, count: int) -> str:
    """Return the name of one point of a curve over a count: ``used slots = 10000``."""
    return f"{axis} = {count}"


def at_bytes(axis: str, size_bytes: int) -> str:
    """Return the name of one point of a curve over a size: ``virtual size = 64 MiB``."""
    size, step = float(size_bytes), 0
    while size >= 1024 and step < len(_SUFFIXES) - 1:
        size, step = size / 1024, step + 1
    return f"{axis} = {size:g} {_SUFFIXES[step]}"


def read_point(test: str) -> tuple[str, float, bool] | None:
    """Return axis, value and whether it is in bytes; None if *test* is not a point of a curve."""
    found = _POINT.fullmatch(test)
    if found is None:
        return None
    if found[3] is None:
        return found[1], float(found[2]), False
    if found[3] not in _SUFFIXES:
        return None
    return found[1], float(found[2]) * 1024 ** _SUFFIXES.index(found[3]), True

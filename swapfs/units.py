"""Sizes, their names and the two kinds of slot number.

Knows nothing of the rest of swapfs. An *offset* counts bytes, a *slot* counts pages, a
*sector* counts 512-byte units of a backing file; the three never mix.
"""

from __future__ import annotations

import re
from typing import Final, NewType

PAGE_SIZE: Final = 4096
"""Bytes in one slot: the kernel's page on the machines that swapfs supports."""
PAGE_SHIFT: Final = 12
SECTOR_SIZE: Final = 512
"""Bytes in one sector, the grain of a backing file."""
FILE_BYTES_MAX: Final = SECTOR_SIZE << 32
"""The largest backing file: a table word has 32 bits for a sector."""
TIERS_MAX: Final = 8
"""Tiers of one instance, the pool among them: a table word has three bits for the tier."""
CLUSTER_SLOTS: Final = 512
"""Slots in one cluster (mm/swap.h SWAPFILE_CLUSTER with THP swap: one 4 KiB table page)."""
CLUSTER_SHIFT: Final = 9
CLUSTER_BYTES: Final = CLUSTER_SLOTS * PAGE_SIZE

KiB: Final = 1 << 10
MiB: Final = 1 << 20
GiB: Final = 1 << 30
TiB: Final = 1 << 40

VSlot = NewType("VSlot", int)
"""A virtual slot: index of a page in the file that the kernel swaps on."""
PSector = NewType("PSector", int)
"""A physical place: index of a sector in a backing file. Never a key, only a location."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?", re.IGNORECASE)
_FACTOR = {"": 1, "K": KiB, "M": MiB, "G": GiB, "T": TiB}


def parse_size(text: str) -> int:
    """Return the bytes that *text* names: ``4096``, ``64K``, ``1.5G``, ``256MiB``.

    K, M, G and T are powers of 1024, as for swapon, zramctl and losetup.

    :raises ValueError: not a size, or not a whole number of bytes
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size (write 512M, 1G, 256MiB)")
    number, unit, suffix = match.groups()
    if suffix and suffix.lower() == "ib" and not unit:
        raise ValueError(f"{text!r} is not a size (write 512M, 1G, 256MiB)")
    value = float(number) * _FACTOR[unit.upper()]
    if value != int(value):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(value)


def format_size(size_bytes: int) -> str:
    """Return *size_bytes* as zramctl prints it: ``4K``, ``1.5G``, ``0B``."""
    value = float(size_bytes)
    for unit in ("B", "K", "M", "G", "T"):
        if value < 1024 or unit == "T":
            break
        value /= 1024
    text = f"{value:.1f}".removesuffix(".0")
    return f"{text}{unit}"

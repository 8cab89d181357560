"""How a table word refers to a blob on a disk: 53 bits, whose meaning only the sector tiers know.

Bits, lowest first::

    0-7 length in grains   8-20 check: low bits of the blob's tag   21-52 sector

A grain is 16 bytes, less the 8 that make the steps fall where one more sector is needed: header
and tag take 40 bytes, so a blob of 472 fills one sector, and 472 is 30 grains. What a blob takes
is therefore exact; its length is known to 16 bytes, and to the byte from its header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from swapfs.units import PAGE_SIZE, SECTOR_SIZE, PSector

HEADER_BYTES: Final = 24
TAG_BYTES: Final = 16
CHECK_BITS: Final = 13
CHECK_MASK: Final = (1 << CHECK_BITS) - 1
_CHECK_SHIFT: Final = 8
_SECTOR_SHIFT: Final = 21
_GRAINS_MASK: Final = (1 << _CHECK_SHIFT) - 1
_GRAIN_BYTES: Final = 16
_OFFSET: Final = 8
_LEAST: Final = 2  # grains; so a page, which has 257, fits too


def blob_sectors(length: int) -> int:
    """Return the sectors that a blob with *length* bytes of payload takes."""
    return (HEADER_BYTES + length + TAG_BYTES + SECTOR_SIZE - 1) // SECTOR_SIZE


BLOB_SECTORS_MAX: Final = blob_sectors(PAGE_SIZE)
"""Sectors of the largest blob, a raw page."""


def _grains(length: int) -> int:
    return max(_LEAST, (length + _OFFSET + _GRAIN_BYTES - 1) // _GRAIN_BYTES) - _LEAST


_LENGTHS: Final = tuple(
    min(PAGE_SIZE, (grains + _LEAST) * _GRAIN_BYTES - _OFFSET) for grains in range(_GRAINS_MASK + 1)
)
_SECTORS: Final = bytes(blob_sectors(length) for length in _LENGTHS)

_GRAINS: Final = bytes(_grains(length) for length in range(PAGE_SIZE + 1))

assert _GRAINS[PAGE_SIZE] == _GRAINS_MASK


def encode(sector: int, length: int, checksum: int) -> int:
    """Return the reference of a blob at *sector*; of *checksum* only the low bits are kept.

    :param length: bytes of payload, 1..4096
    """
    return _GRAINS[length] | (checksum & CHECK_MASK) << _CHECK_SHIFT | sector << _SECTOR_SHIFT


def sector(ref: int) -> PSector:
    """Return the sector where the blob begins."""
    return PSector(ref >> _SECTOR_SHIFT)


def sectors(ref: int) -> int:
    """Return how many sectors the blob takes."""
    return _SECTORS[ref & _GRAINS_MASK]


def check(ref: int) -> int:
    """Return the low bits of the tag that the blob must have."""
    return ref >> _CHECK_SHIFT & CHECK_MASK


def longest(ref: int) -> int:
    """Return the bytes of payload that the blob has at most; it has at most 15 less."""
    return _LENGTHS[ref & _GRAINS_MASK]


def count_adjacent(refs: Sequence[int], sectors_max: int) -> int:
    """Return how many blobs, from the first on, lie side by side in at most *sectors_max*."""
    after, left, count = refs[0] >> _SECTOR_SHIFT, sectors_max, 0
    for ref in refs:
        taken = _SECTORS[ref & _GRAINS_MASK]
        left -= taken
        if count and (ref >> _SECTOR_SHIFT != after or left < 0):
            break
        after += taken
        count += 1
    return count


def may_be(ref: int, length: int) -> bool:
    """Whether the blob may have *length* bytes of payload."""
    return length <= PAGE_SIZE and _GRAINS[length] == ref & _GRAINS_MASK

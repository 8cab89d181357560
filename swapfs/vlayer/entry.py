"""Swap table entries: one 64-bit word says what a slot holds and where.

Everything that may be in a word, and every legal change of one, is in this file; what C must
know too comes from core/word.h. Bits, lowest first (the tags follow the virtual table of the
kernel's "swap table edition" patches, low three bits)::

    all    0-2 tag   3 referenced (read since the clock hand passed)   4 moving (a copy to
           another place is under way; a rewrite clears it)
    SAME   5 doubled   6-63 the repeated word: sign-extended 58 bits, or a doubled 32-bit half
    POOL   5-6 codec   7-18 length-1   20-63 place in the arena / 16
    FILE   5-6 codec   7-18 length-1   19-31 check: low bits of the blob's checksum
           32-63 sector in the backing file

EMPTY is the zero word, so a fresh table page needs nothing but zeros.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from swapfs.core import _core
from swapfs.core._core import (
    CODEC_MASK,
    CODEC_SHIFT,
    GRAIN_SHIFT,
    KIND_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    MOVING,
    PLACE_SHIFT,
    REFERENCED,
    TAG_MASK,
    ZSPAGE_SHIFT,
)
from swapfs.units import PSector

__all__ = [
    "CHECK_BITS",
    "CHECK_MASK",
    "CODEC_MASK",
    "CODEC_SHIFT",
    "FLAGS",
    "KIND_MASK",
    "LENGTH_MASK",
    "LENGTH_SHIFT",
    "MOVES",
    "MOVING",
    "POOL_ZSPAGE_SHIFT",
    "REFERENCED",
    "STATES",
    "STATE_OF_KIND",
    "TAG_MASK",
    "Codec",
    "Tag",
    "blob_codec",
    "blob_length",
    "encode_file",
    "encode_pool",
    "file_check",
    "file_sector",
    "is_legal",
    "move_pool",
    "pool_place",
]


class Tag(IntEnum):
    """What backs a slot."""

    EMPTY = _core.TAG_EMPTY
    SAME = _core.TAG_SAME
    POOL = _core.TAG_POOL
    FILE = _core.TAG_FILE


class Codec(IntEnum):
    """How a blob stands for its page."""

    RAW = _core.CODEC_RAW
    LZ4 = _core.CODEC_LZ4


FLAGS: Final = REFERENCED | MOVING
"""Bits that say nothing about what the slot holds."""
POOL_ZSPAGE_SHIFT: Final = PLACE_SHIFT - GRAIN_SHIFT + ZSPAGE_SHIFT
"""A POOL word, shifted right by it, is the number of the zspage."""
CHECK_BITS: Final = 13
CHECK_MASK: Final = (1 << CHECK_BITS) - 1
_CHECK_SHIFT: Final = 19
_SECTOR_SHIFT: Final = 32

STATES: Final = ("empty", "same", "compressed", "raw", "file")
"""The states of a slot that are counted and published."""


def _state(kind: int) -> int:
    tag = kind & TAG_MASK
    if tag == Tag.POOL:
        return 2 if kind >> CODEC_SHIFT & CODEC_MASK == Codec.LZ4 else 3
    return (0, 1, 0, 4)[tag] if tag <= Tag.FILE else 0


STATE_OF_KIND: Final = bytes(_state(kind) for kind in range(KIND_MASK + 1))
"""Index into STATES, by ``word & KIND_MASK``."""

MOVES: Final[dict[str, frozenset[tuple[Tag, Tag]]]] = {
    "write": frozenset((old, new) for old in Tag for new in (Tag.SAME, Tag.POOL)),
    "write_direct": frozenset((old, Tag.FILE) for old in Tag),
    "discard": frozenset((old, Tag.EMPTY) for old in Tag),
    "demote": frozenset({(Tag.POOL, Tag.FILE)}),
    "promote": frozenset({(Tag.FILE, Tag.POOL)}),
    "clean": frozenset({(Tag.FILE, Tag.FILE)}),
    "compact": frozenset({(Tag.POOL, Tag.POOL)}),
}
"""Every change of what backs a slot, by its cause. Moves between tiers keep the data (I1)."""


_LEGAL: Final = {
    cause: frozenset(old << 3 | new for old, new in moves) for cause, moves in MOVES.items()
}


def is_legal(cause: str, old: int, new: int) -> bool:
    """Whether *cause* may replace the word *old* by *new*."""
    return ((old & TAG_MASK) << 3 | (new & TAG_MASK)) in _LEGAL[cause]


def encode_pool(place: int, length: int, codec: int) -> int:
    """Return the word of a blob of *length* bytes (1..4096) at byte *place* of the arena."""
    return (
        Tag.POOL
        | codec << CODEC_SHIFT
        | (length - 1) << LENGTH_SHIFT
        | place >> GRAIN_SHIFT << PLACE_SHIFT
    )


def pool_place(word: int) -> int:
    """Return the byte offset in the arena that a POOL *word* names."""
    return word >> PLACE_SHIFT << GRAIN_SHIFT


def move_pool(word: int, place: int) -> int:
    """Return the POOL *word* with its blob at byte *place* instead; all else stays."""
    return word & ((1 << PLACE_SHIFT) - 1) | place >> GRAIN_SHIFT << PLACE_SHIFT


def encode_file(sector: int, length: int, codec: int, checksum: int) -> int:
    """Return the word of a blob at *sector*; of *checksum* only the low bits are kept."""
    return (
        Tag.FILE
        | codec << CODEC_SHIFT
        | (length - 1) << LENGTH_SHIFT
        | (checksum & CHECK_MASK) << _CHECK_SHIFT
        | sector << _SECTOR_SHIFT
    )


def file_sector(word: int) -> PSector:
    """Return the sector that a FILE *word* names."""
    return PSector(word >> _SECTOR_SHIFT)


def file_check(word: int) -> int:
    """Return the low bits of the checksum that a FILE *word* expects."""
    return word >> _CHECK_SHIFT & CHECK_MASK


def blob_length(word: int) -> int:
    """Return the length in bytes of the blob of a POOL or FILE *word*."""
    return (word >> LENGTH_SHIFT & LENGTH_MASK) + 1


def blob_codec(word: int) -> int:
    """Return the codec of the blob of a POOL or FILE *word*."""
    return word >> CODEC_SHIFT & CODEC_MASK

"""Swap table entries: one 64-bit word says what a slot holds and where.

Everything that may be in a word, and every legal change of one, is in this file. Bits, lowest
first (the tags follow the virtual table of the kernel's
"swap table edition" patches, low three bits)::

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

from swapfs.core._load import layout
from swapfs.units import PSector


class Tag(IntEnum):
    """What backs a slot."""

    EMPTY = 0
    SAME = 1
    POOL = 2
    FILE = 3


class Codec(IntEnum):
    """How a blob stands for its page."""

    RAW = 0
    LZ4 = 1


TAG_MASK: Final = 0b111
REFERENCED: Final = 1 << 3
MOVING: Final = 1 << 4
FLAGS: Final = REFERENCED | MOVING
"""Bits that say nothing about what the slot holds."""
KIND_MASK: Final = 0x7F
"""Tag, passing bits and codec: all that the accounting of a word depends on."""

LENGTH_SHIFT: Final = 7
LENGTH_MASK: Final = 0xFFF
CODEC_SHIFT: Final = 5
CODEC_MASK: Final = 0b11
PLACE_SHIFT: Final = 20
_GRAIN_SHIFT: Final = 4
ZSPAGE_SHIFT: Final = 32
"""A POOL word, shifted right by it, is the number of the zspage."""
CHECK_BITS: Final = 13
CHECK_MASK: Final = (1 << CHECK_BITS) - 1
_CHECK_SHIFT: Final = 19
_SECTOR_SHIFT: Final = 32

_DOUBLED: Final = 1 << 5
_VALUE_SHIFT: Final = 6
_VALUE_BITS: Final = 58
_WORD_MASK: Final = (1 << 64) - 1

assert layout() == (
    *(Tag.EMPTY, Tag.SAME, Tag.POOL, Tag.FILE, TAG_MASK, REFERENCED, MOVING),
    *(CODEC_SHIFT, CODEC_MASK, Codec.RAW, Codec.LZ4, LENGTH_SHIFT, LENGTH_MASK, PLACE_SHIFT),
    *(_DOUBLED, _VALUE_SHIFT, KIND_MASK),
), "_entry.h has other bits"

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


def encode_same(value: int) -> int | None:
    """Return the word of a page filled with the 64-bit *value*; None when it does not fit."""
    signed = value - (1 << 64) if value >> 63 else value
    if -(1 << (_VALUE_BITS - 1)) <= signed < 1 << (_VALUE_BITS - 1):
        return Tag.SAME | (signed & ((1 << _VALUE_BITS) - 1)) << _VALUE_SHIFT
    if value >> 32 == value & 0xFFFFFFFF:
        return Tag.SAME | _DOUBLED | (value >> 32) << _VALUE_SHIFT
    return None


def decode_same(word: int) -> int:
    """Return the 64-bit value that fills the page of a SAME *word*."""
    value = word >> _VALUE_SHIFT
    if word & _DOUBLED:
        return value << 32 | value
    if value >> (_VALUE_BITS - 1):
        value -= 1 << _VALUE_BITS
    return value & _WORD_MASK


def encode_pool(place: int, length: int, codec: int) -> int:
    """Return the word of a blob of *length* bytes (1..4096) at byte *place* of the arena."""
    return (
        Tag.POOL
        | codec << CODEC_SHIFT
        | (length - 1) << LENGTH_SHIFT
        | place >> _GRAIN_SHIFT << PLACE_SHIFT
    )


def pool_place(word: int) -> int:
    """Return the byte offset in the arena that a POOL *word* names."""
    return word >> PLACE_SHIFT << _GRAIN_SHIFT


def move_pool(word: int, place: int) -> int:
    """Return the POOL *word* with its blob at byte *place* instead; all else stays."""
    return word & ((1 << PLACE_SHIFT) - 1) | place >> _GRAIN_SHIFT << PLACE_SHIFT


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

"""Swap table entries: one 64-bit word says what a slot holds and where.

Everything that may be in a word, and every legal change of one, is in this file; what C must
know too comes from core/word.h. Bits, lowest first::

    all    0-1 kind: EMPTY, SAME, BLOB, LOST   2 moving (a copy to another place is under way; a
           rewrite clears it)   3-4 heat: reads since the clock hand passed, up to 3
    SAME   5 doubled   6-63 the repeated word: sign-extended 58 bits, or a doubled 32-bit half
    BLOB   5-7 tier: 0 is the pool, others are numbers of the stack   8-9 codec   10 kept: another
           codec was tried and gains nothing
           11-63 ref: where the tier has it, in 53 bits that only the tier understands
    BLOB in the pool   11-22 length-1; of a raw page more of the check   23-27 check (core/check.c)
           28-63 place in the arena / 16

EMPTY is the zero word, so a fresh table page needs nothing but zeros. LOST is a slot whose bytes
are known to be gone: it reads as an error until it is written or discarded.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from swapfs.core import _core
from swapfs.core._core import (
    BACKING_MASK,
    CODEC_KEPT,
    CODEC_MASK,
    CODEC_SHIFT,
    GRAIN_SHIFT,
    HEAT_MASK,
    HEAT_ONE,
    IN_POOL,
    KIND_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    MOVING,
    PLACE_SHIFT,
    REF_SHIFT,
    STATE_MASK,
    TIER_MASK,
    TIER_SHIFT,
    ZSPAGE_SHIFT,
)
from swapfs.units import PAGE_SIZE, TIERS_MAX

__all__ = [
    "BACKING_MASK",
    "CODEC_BITS",
    "CODEC_KEPT",
    "CODEC_MASK",
    "CODEC_SHIFT",
    "FLAGS",
    "HEAT_MASK",
    "HEAT_ONE",
    "IN_POOL",
    "KIND_MASK",
    "LENGTH_MASK",
    "LENGTH_SHIFT",
    "MOVES",
    "MOVING",
    "PLACE_SHIFT",
    "POOL_ZSPAGE_SHIFT",
    "REF_BITS",
    "REF_SHIFT",
    "STATES",
    "STATE_MASK",
    "STATE_OF_WORD",
    "TIER_STATE",
    "Backing",
    "Codec",
    "Kind",
    "backing",
    "blob_codec",
    "blob_length",
    "encode_below",
    "encode_pool",
    "is_below",
    "is_legal",
    "is_raw",
    "move_pool",
    "pool_place",
    "ref_of",
    "state_of",
    "tier_of",
]


class Kind(IntEnum):
    """What a word is."""

    EMPTY = _core.KIND_EMPTY
    SAME = _core.KIND_SAME
    BLOB = _core.KIND_BLOB
    LOST = _core.KIND_LOST


class Codec(IntEnum):
    """How a blob stands for its page."""

    RAW = _core.CODEC_RAW
    LZ4 = _core.CODEC_LZ4
    ZSTD = _core.CODEC_ZSTD


class Backing(IntEnum):
    """What backs a slot, for the table of moves; BELOW is any tier but the pool."""

    EMPTY = 0
    SAME = 1
    LOST = 2
    POOL = 3
    BELOW = 4


assert TIER_MASK + 1 == TIERS_MAX, "a word names as many tiers as there may be"
REF_BITS: Final = 64 - REF_SHIFT
FLAGS: Final = HEAT_MASK | MOVING
"""Bits that say nothing about what the slot holds."""
POOL_ZSPAGE_SHIFT: Final = PLACE_SHIFT - GRAIN_SHIFT + ZSPAGE_SHIFT
"""A word whose blob is in the pool, shifted right by it, is the number of the zspage."""
_TIER_BITS: Final = TIER_MASK << TIER_SHIFT

CODEC_BITS: Final[int] = CODEC_MASK & ~CODEC_KEPT
"""A codec without the bit that says that recompression gained nothing."""
STATES: Final = ("empty", "same", "compressed", "raw", "recompressed", "lost", "file")
"""The states of a slot that are published; "file" is any tier below the pool."""
TIER_STATE: Final = 5
"""The state of slots in tier n is counted as number TIER_STATE + n, for n from 1 on."""


def _state(bits: int) -> int:
    match bits & KIND_MASK:
        case Kind.EMPTY:
            return 0
        case Kind.SAME:
            return 1
        case Kind.LOST:
            return 5
    if tier := bits >> TIER_SHIFT & TIER_MASK:
        return TIER_STATE + tier
    codec = bits >> CODEC_SHIFT & CODEC_BITS
    return 3 if codec == Codec.RAW else 2 if codec == Codec.LZ4 else 4


STATE_OF_WORD: Final = bytes(_state(bits) for bits in range(STATE_MASK + 1))
"""The number under which a slot is counted, by ``word & STATE_MASK``."""


def state_of(word: int) -> str:
    """Return the state, of STATES, of a slot with *word*."""
    return STATES[min(STATE_OF_WORD[word & STATE_MASK], len(STATES) - 1)]


# ---- what may become of a word ----

_ANY: Final = tuple(Backing)
MOVES: Final[dict[str, frozenset[tuple[Backing, Backing]]]] = {
    "write": frozenset((old, new) for old in _ANY for new in (Backing.SAME, Backing.POOL)),
    "write_direct": frozenset((old, Backing.BELOW) for old in _ANY),
    "discard": frozenset((old, Backing.EMPTY) for old in _ANY),
    "lose": frozenset({(Backing.POOL, Backing.LOST), (Backing.BELOW, Backing.LOST)}),
    "demote": frozenset({(Backing.POOL, Backing.BELOW)}),
    "promote": frozenset({(Backing.BELOW, Backing.POOL)}),
    "compact": frozenset({(Backing.POOL, Backing.POOL)}),
    "recompress": frozenset({(Backing.POOL, Backing.POOL)}),
    "clean": frozenset({(Backing.BELOW, Backing.BELOW)}),
    "drain": frozenset({(Backing.BELOW, Backing.BELOW)}),
    "sink": frozenset({(Backing.BELOW, Backing.BELOW)}),
}
"""Every change of what backs a slot, by its cause. Moves between tiers keep the data (I1)."""
_WITHIN_A_TIER: Final = frozenset({"clean"})
_BETWEEN_TIERS: Final = frozenset({"drain", "sink"})


def _place(bits: int) -> int:
    """Return the Backing of a word with the low *bits*; that of tier n is POOL + n."""
    kind = bits & KIND_MASK
    if kind == Kind.BLOB:
        return Backing.POOL + (bits >> TIER_SHIFT & TIER_MASK)
    return Backing.LOST if kind == Kind.LOST else kind


_PLACES: Final = bytes(_place(bits) for bits in range(256))
_ALL_PLACES: Final = range(Backing.POOL + TIERS_MAX)


def _allows(cause: str, old: int, new: int) -> bool:
    if cause in (_WITHIN_A_TIER if old != new else _BETWEEN_TIERS):
        return False
    return (Backing(min(old, 4)), Backing(min(new, 4))) in MOVES[cause]


_LEGAL: Final = {
    cause: frozenset(
        old << 4 | new for old in _ALL_PLACES for new in _ALL_PLACES if _allows(cause, old, new)
    )
    for cause in MOVES
}


def is_legal(cause: str, old: int, new: int) -> bool:
    """Whether *cause* may replace the word *old* by *new*."""
    return (_PLACES[old & 0xFF] << 4 | _PLACES[new & 0xFF]) in _LEGAL[cause]


def backing(word: int) -> Backing:
    """Return what backs a slot with *word*."""
    return Backing(min(_PLACES[word & 0xFF], Backing.BELOW))


# ---- blobs ----


def is_below(word: int) -> bool:
    """Whether a tier below the pool has the blob of *word*."""
    return word & KIND_MASK == Kind.BLOB and word & _TIER_BITS != 0


def tier_of(word: int) -> int:
    """Return the number of the tier that has the blob of *word*; 0 is the pool."""
    return word >> TIER_SHIFT & TIER_MASK


def ref_of(word: int) -> int:
    """Return where the tier has the blob of *word*."""
    return word >> REF_SHIFT


def blob_codec(word: int) -> int:
    """Return the codec of the blob of *word*."""
    return word >> CODEC_SHIFT & CODEC_MASK


def is_raw(word: int) -> bool:
    """Whether the blob of *word* is the page itself."""
    return word >> CODEC_SHIFT & CODEC_BITS == Codec.RAW


def encode_below(tier: int, codec: int, ref: int) -> int:
    """Return the word of a blob that *tier* has at *ref*."""
    return Kind.BLOB | tier << TIER_SHIFT | codec << CODEC_SHIFT | ref << REF_SHIFT


# ---- blobs in the pool ----


def encode_pool(place: int, length: int, codec: int) -> int:
    """Return the word of a blob of *length* bytes (1..4096) at byte *place* of the arena.

    Without its check, which ``_core.sign`` puts in.
    """
    return (
        IN_POOL
        | codec << CODEC_SHIFT
        | (length - 1) << LENGTH_SHIFT
        | place >> GRAIN_SHIFT << PLACE_SHIFT
    )


def pool_place(word: int) -> int:
    """Return the byte offset in the arena that *word* names."""
    return word >> PLACE_SHIFT << GRAIN_SHIFT


def move_pool(word: int, place: int) -> int:
    """Return *word* with its blob at byte *place* of the arena instead; all else stays."""
    return word & ((1 << PLACE_SHIFT) - 1) | place >> GRAIN_SHIFT << PLACE_SHIFT


def blob_length(word: int) -> int:
    """Return the length in bytes of the blob in the pool that *word* names."""
    if is_raw(word):
        return PAGE_SIZE
    return (word >> LENGTH_SHIFT & LENGTH_MASK) + 1

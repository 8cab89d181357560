"""Swap table words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapfs.region.layout import POOL_BYTES_MAX
from swapfs.testing.harness import Harness
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, TIERS_MAX, MiB
from swapfs.vlayer.entry import (
    HEAT_MASK,
    HEAT_ONE,
    MOVES,
    MOVING,
    REF_BITS,
    STATE_MASK,
    STATE_OF_WORD,
    TIER_STATE,
    Backing,
    Codec,
    Kind,
    backing,
    blob_codec,
    blob_length,
    encode_below,
    encode_pool,
    is_below,
    is_legal,
    pool_place,
    ref_of,
    state_of,
    tier_of,
)

BOUNDARIES = [0, 1, 255, (1 << 57) - 1, (1 << 64) - (1 << 57), (1 << 64) - 1, 0xFFFFFFFF << 32]
DOUBLED = [0x8000000080000000, 0xDEADBEEFDEADBEEF, 0x0101010101010101, 0x7FFFFFFF7FFFFFFF]
SAMPLE = {
    Backing.EMPTY: 0,
    Backing.SAME: Kind.SAME | 5 << 6,
    Backing.LOST: int(Kind.LOST),
    Backing.POOL: encode_pool(32, 7, Codec.LZ4),
    Backing.BELOW: encode_below(1, Codec.LZ4, 9),
}


def encode_same(value: int) -> int | None:
    """Return the word of a page filled with the 64-bit *value*; None when it does not fit."""
    signed = value - (1 << 64) if value >> 63 else value
    if -(1 << 57) <= signed < 1 << 57:
        return Kind.SAME | (signed & ((1 << 58) - 1)) << 6
    if value >> 32 == value & 0xFFFFFFFF:
        return Kind.SAME | 1 << 5 | (value >> 32) << 6
    return None


HARNESS = Harness(CLUSTER_SLOTS, MiB)


def store(value: int) -> int:
    """Return the word that a page filled with *value* gets; it reads back as it was."""
    filled = value.to_bytes(8, "little") * (PAGE_SIZE // 8)
    assert HARNESS.store(5, filled) == 1
    assert HARNESS.load(5) == filled
    return HARNESS.layer.table.get(5)


@pytest.mark.parametrize("value", [*BOUNDARIES[:6], *DOUBLED])
def test_same_round_trip(value: int) -> None:
    assert store(value) == encode_same(value)


@given(st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1)))
def test_same_fits_exactly_or_not_at_all(value: int) -> None:
    for each in (value, value << 32 & (1 << 64) - 1 | value & 0xFFFFFFFF):
        word, expected = store(each), encode_same(each)
        assert word == expected if expected else backing(word) is Backing.POOL


@pytest.mark.parametrize("value", [1 << 57, (1 << 63) | 1, 0x123456789ABCDEF0])
def test_same_that_does_not_fit(value: int) -> None:
    assert backing(store(value)) is Backing.POOL


@pytest.mark.parametrize("place", [0, 16, 65536, POOL_BYTES_MAX - 16])
@pytest.mark.parametrize("length", [1, 2, 2048, 4095, 4096])
@pytest.mark.parametrize("codec", list(Codec))
def test_pool_round_trip(place: int, length: int, codec: Codec) -> None:
    for flags in (0, HEAT_MASK, MOVING, HEAT_ONE | MOVING):
        word = encode_pool(place, length, codec) | flags
        assert word >> 64 == 0
        assert backing(word) is Backing.POOL
        assert (pool_place(word), blob_codec(word)) == (place, codec)
        assert blob_length(word) == (PAGE_SIZE if codec == Codec.RAW else length)


@pytest.mark.parametrize("ref", [0, 1, (1 << REF_BITS) - 1])
@pytest.mark.parametrize("tier", range(1, TIERS_MAX))
@pytest.mark.parametrize("codec", list(Codec))
def test_below_round_trip(ref: int, tier: int, codec: Codec) -> None:
    for flags in (0, HEAT_MASK, MOVING, HEAT_ONE | MOVING):
        word = encode_below(tier, codec, ref) | flags
        assert word >> 64 == 0
        assert is_below(word)
        assert backing(word) is Backing.BELOW
        assert (tier_of(word), blob_codec(word), ref_of(word)) == (tier, codec, ref)


@pytest.mark.parametrize("backs", list(Backing))
def test_what_backs_a_slot_is_told_apart(backs: Backing) -> None:
    assert backing(SAMPLE[backs]) is backs
    assert is_below(SAMPLE[backs]) == (backs is Backing.BELOW)


def test_a_repeated_word_is_never_taken_for_a_tier() -> None:
    for bits in range(1 << 5):
        word = Kind.SAME | bits << 5
        assert backing(word) is Backing.SAME
        assert not is_below(word)


def test_states_follow_kind_tier_and_codec() -> None:
    state = state_of
    assert state(0) == "empty"
    assert all(state(encode_same(v) or 0) == "same" for v in (*BOUNDARIES[:6], *DOUBLED))
    for flags in (0, HEAT_MASK, MOVING, HEAT_ONE | MOVING):
        assert state(encode_pool(0, 4096, Codec.RAW) | flags) == "raw"
        assert state(encode_pool(1 << 30, 100, Codec.LZ4) | flags) == "compressed"
        for codec in Codec:
            for tier in range(1, TIERS_MAX):
                word = encode_below(tier, codec, 77) | flags
                assert state(word) == "file"
                assert STATE_OF_WORD[word & STATE_MASK] == TIER_STATE + tier
        assert state(Kind.LOST | flags) == "lost"


LEGAL = {
    ("write", "*", "SAME"),
    ("write", "*", "POOL"),
    ("write_direct", "*", "BELOW"),
    ("discard", "*", "EMPTY"),
    ("demote", "POOL", "BELOW"),
    ("promote", "BELOW", "POOL"),
    ("clean", "BELOW", "BELOW"),
    ("lose", "POOL", "LOST"),
    ("lose", "BELOW", "LOST"),
    ("compact", "POOL", "POOL"),
    ("recompress", "POOL", "POOL"),
}


@pytest.mark.parametrize("cause", list(MOVES))
@pytest.mark.parametrize("old", list(Backing))
@pytest.mark.parametrize("new", list(Backing))
def test_legal_moves(cause: str, old: Backing, new: Backing) -> None:
    expected = bool({(cause, "*", new.name), (cause, old.name, new.name)} & LEGAL)
    assert is_legal(cause, SAMPLE[old], SAMPLE[new]) == expected
    assert is_legal(cause, SAMPLE[old] | MOVING * bool(old), SAMPLE[new]) == expected


@pytest.mark.parametrize("cause", list(MOVES))
def test_moves_between_tiers(cause: str) -> None:
    one, other, there = (encode_below(tier, Codec.LZ4, 5) for tier in (1, 2, 2))
    assert is_legal(cause, one, other) == (cause in ("write_direct", "drain", "sink"))
    assert is_legal(cause, other, there | 8 << 11) == (cause in ("write_direct", "clean"))

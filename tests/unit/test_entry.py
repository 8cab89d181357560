"""Swap table words."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapfs.testing.harness import Harness
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.entry import (
    CHECK_MASK,
    KIND_MASK,
    MOVES,
    MOVING,
    REFERENCED,
    STATE_OF_KIND,
    STATES,
    TAG_MASK,
    Codec,
    Tag,
    blob_codec,
    blob_length,
    encode_file,
    encode_pool,
    file_check,
    file_sector,
    is_legal,
    pool_place,
)

BOUNDARIES = [0, 1, 255, (1 << 57) - 1, (1 << 64) - (1 << 57), (1 << 64) - 1, 0xFFFFFFFF << 32]
DOUBLED = [0x8000000080000000, 0xDEADBEEFDEADBEEF, 0x0101010101010101, 0x7FFFFFFF7FFFFFFF]
SAMPLE = {
    Tag.EMPTY: 0,
    Tag.SAME: int(Tag.SAME) | 5 << 6,
    Tag.POOL: encode_pool(32, 7, Codec.LZ4),
    Tag.FILE: encode_file(9, 7, Codec.LZ4, 1),
}


def encode_same(value: int) -> int | None:
    """Return the word of a page filled with the 64-bit *value*; None when it does not fit."""
    signed = value - (1 << 64) if value >> 63 else value
    if -(1 << 57) <= signed < 1 << 57:
        return Tag.SAME | (signed & ((1 << 58) - 1)) << 6
    if value >> 32 == value & 0xFFFFFFFF:
        return Tag.SAME | 1 << 5 | (value >> 32) << 6
    return None


RIG = Harness(CLUSTER_SLOTS, MiB)


def store(value: int) -> int:
    """Return the word that a page filled with *value* gets; it reads back as it was."""
    filled = value.to_bytes(8, "little") * (PAGE_SIZE // 8)
    assert RIG.store(5, filled) == 1
    assert RIG.load(5) == filled
    return RIG.layer.table.get(5)


@pytest.mark.parametrize("value", [*BOUNDARIES[:6], *DOUBLED])
def test_same_round_trip(value: int) -> None:
    assert store(value) == encode_same(value)


@given(st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1)))
def test_same_fits_exactly_or_not_at_all(value: int) -> None:
    for each in (value, value << 32 & (1 << 64) - 1 | value & 0xFFFFFFFF):
        word, expected = store(each), encode_same(each)
        assert word == expected if expected else word & TAG_MASK == Tag.POOL


@pytest.mark.parametrize("value", [1 << 57, (1 << 63) | 1, 0x123456789ABCDEF0])
def test_same_that_does_not_fit(value: int) -> None:
    assert store(value) & TAG_MASK == Tag.POOL


@pytest.mark.parametrize("place", [0, 16, 65536, (1 << 40), ((1 << 44) - 1) << 4])
@pytest.mark.parametrize("length", [1, 2, 2048, 4095, 4096])
@pytest.mark.parametrize("codec", list(Codec))
def test_pool_round_trip(place: int, length: int, codec: Codec) -> None:
    for passing in (0, REFERENCED, MOVING, REFERENCED | MOVING):
        word = encode_pool(place, length, codec) | passing
        assert word >> 64 == 0
        assert word & TAG_MASK == Tag.POOL
        assert (pool_place(word), blob_length(word), blob_codec(word)) == (place, length, codec)


@pytest.mark.parametrize("sector", [0, 1, 2047, (1 << 32) - 1])
@pytest.mark.parametrize("length", [1, 4096])
@pytest.mark.parametrize("checksum", [0, CHECK_MASK, 0xFFFFFFFF, 0xFFFFE000])
def test_file_round_trip(sector: int, length: int, checksum: int) -> None:
    for codec, passing in itertools.product(Codec, (0, MOVING)):
        word = encode_file(sector, length, codec, checksum) | passing
        assert word >> 64 == 0
        assert word & TAG_MASK == Tag.FILE
        assert (file_sector(word), blob_length(word), blob_codec(word)) == (sector, length, codec)
        assert file_check(word) == checksum & CHECK_MASK


def test_states_follow_tag_and_codec() -> None:
    def state(word: int) -> str:
        return STATES[STATE_OF_KIND[word & KIND_MASK]]

    assert state(0) == "empty"
    assert all(state(encode_same(v) or 0) == "same" for v in (*BOUNDARIES[:6], *DOUBLED))
    for passing in (0, REFERENCED, MOVING, REFERENCED | MOVING):
        assert state(encode_pool(0, 4096, Codec.RAW) | passing) == "raw"
        assert state(encode_pool(1 << 30, 100, Codec.LZ4) | passing) == "compressed"
        for codec in Codec:
            assert state(encode_file(77, 100, codec, 0x1FFF) | passing) == "file"


LEGAL = {
    ("write", "*", "SAME"),
    ("write", "*", "POOL"),
    ("write_direct", "*", "FILE"),
    ("discard", "*", "EMPTY"),
    ("demote", "POOL", "FILE"),
    ("promote", "FILE", "POOL"),
    ("clean", "FILE", "FILE"),
    ("compact", "POOL", "POOL"),
}


@pytest.mark.parametrize("cause", list(MOVES))
@pytest.mark.parametrize("old", list(Tag))
@pytest.mark.parametrize("new", list(Tag))
def test_legal_moves(cause: str, old: Tag, new: Tag) -> None:
    expected = bool({(cause, "*", new.name), (cause, old.name, new.name)} & LEGAL)
    assert is_legal(cause, SAMPLE[old], SAMPLE[new]) == expected
    assert is_legal(cause, SAMPLE[old] | MOVING * bool(old), SAMPLE[new]) == expected

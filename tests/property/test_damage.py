"""Bits of pages in memory flip: such a page is an error, whoever comes to it (I4)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapfs.core._core import check_plainly, is_intact, sign
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.entry import Codec, Kind, blob_length, encode_pool, pool_place
from swapfs.vlayer.layer import SlotDamaged

KINDS = ("random", "heap", "text", "numbers")
PAGES = [page(KINDS[seed % 4], seed) for seed in range(40)]
flips_st = st.lists(st.integers(0, (1 << 15) - 1), min_size=1, max_size=9, unique=True)


@pytest.fixture(autouse=True, params=[False, True], ids=["instruction", "table"])
def _both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    check_plainly(request.param)
    yield
    check_plainly(False)


def _harness(*, zstd: bool, recompress: bool = False) -> Harness:
    harness = Harness(CLUSTER_SLOTS, 2 * MiB, MemoryTier(4), recompress=recompress)
    assert harness.store(0, *PAGES) == len(PAGES)
    if zstd:
        assert harness.recompress() > 20
    return harness


def _flip(harness: Harness, slot: int, bits: list[int]) -> int:
    """Flip *bits* of the blob of *slot*, as far as it has them; return how many were flipped."""
    word = harness.layer.table.get(slot)
    place, length = pool_place(word), blob_length(word)
    flipped = {bit % (8 * length) for bit in bits}
    for bit in flipped:
        harness.region.arena[place + bit // 8] ^= 1 << bit % 8
    return len(flipped)


def _read(harness: Harness, slot: int) -> bytes | None:
    try:
        return harness.load(slot)
    except SlotDamaged:
        return None


def _read_in_c(harness: Harness, slot: int) -> bytes | None:
    out = bytearray(PAGE_SIZE)
    reader = harness.layer.reader(CLUSTER_SLOTS * PAGE_SIZE)
    return bytes(out) if reader.read(slot * PAGE_SIZE, PAGE_SIZE, out) == PAGE_SIZE else None


def _demote(harness: Harness, slot: int) -> bytes | None:
    harness.down.demote(len(PAGES))
    return _read(harness, slot)


def _recompress(harness: Harness, slot: int) -> bytes | None:
    harness.recompress()
    return _read(harness, slot)


def _compact(harness: Harness, slot: int) -> bytes | None:
    assert harness.stalled.compactor.squeeze(1000)
    return _read(harness, slot)


def _rebuild(harness: Harness, slot: int) -> bytes | None:
    return _read(Harness(CLUSTER_SLOTS, 2 * MiB, MemoryTier(4), region=harness.region), slot)


@pytest.mark.parametrize("zstd", [False, True], ids=["lz4", "zstd"])
@pytest.mark.parametrize(
    "use",
    [_read, _read_in_c, _demote, _recompress, _compact, _rebuild],
    ids=lambda use: use.__name__.lstrip("_"),
)
def test_a_page_with_an_odd_number_of_flipped_bits_is_an_error(
    use: Callable[[Harness, int], bytes | None], zstd: bool
) -> None:
    rng = random.Random(7)
    for slot in (0, 1, 2, 3):
        harness = _harness(zstd=zstd, recompress=zstd)
        while _flip(harness, slot, rng.sample(range(1 << 15), rng.choice([1, 1, 3]))) % 2 == 0:
            pass
        assert use(harness, slot) is None
        assert _read(harness, slot) is None, "and stays one"
        assert all(harness.load(at) == PAGES[at] for at in range(len(PAGES)) if at != slot)
        harness.check()
        harness.region.close()


@given(flips=flips_st, slot=st.integers(0, 39), zstd=st.booleans())
@settings(max_examples=60)
def test_flips_are_seen_as_far_as_the_check_goes(flips: list[int], slot: int, zstd: bool) -> None:
    harness = _harness(zstd=zstd)
    flipped = _flip(harness, slot, flips)
    got = _read_in_c(harness, slot)
    if flipped % 2 or slot % 4 == 0:  # an odd number; or a raw page
        assert got is None
    elif got is not None:
        word = harness.layer.table.get(slot)
        assert is_intact(word, harness.layer.blob(word)), "one in 32 of these is not seen"
    harness.region.close()


@given(data=st.binary(min_size=1, max_size=PAGE_SIZE))
def test_the_instruction_and_the_table_agree(data: bytes) -> None:
    draft = encode_pool(0, len(data), Codec.LZ4)
    check_plainly(True)
    plain = sign(draft, data)
    check_plainly(False)
    assert sign(draft, data) == plain
    assert is_intact(plain, data)


def test_few_damaged_raw_pages_pass() -> None:
    """Two flipped bits are the least that may; of 20000 some 0.15 would."""
    data, rng = bytearray(PAGES[0]), random.Random(3)
    word = sign(encode_pool(0, PAGE_SIZE, Codec.RAW), data)
    passed = 0
    for _ in range(20_000):
        bits = rng.sample(range(8 * PAGE_SIZE), 2)
        for bit in bits:
            data[bit // 8] ^= 1 << bit % 8
        passed += is_intact(word, data)
        for bit in bits:
            data[bit // 8] ^= 1 << bit % 8
    assert passed <= 5


def test_a_lost_page_is_counted() -> None:
    harness = _harness(zstd=False)
    _flip(harness, 0, [77])
    harness.down.demote(len(PAGES))
    assert harness.counter("lost_pages") == 1
    assert harness.layer.table.get(0) == Kind.LOST

"""Free space of a backing file."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapfs.errors import TierFull
from swapfs.region.lists import ListHeads
from swapfs.tiers.sectors import Extent
from swapfs.tiers.segments import (
    CLEANING_RESERVE,
    SEGMENT_SECTORS,
    SegmentMap,
    guaranteed_pages,
)
from swapfs.units import PSector


def _drain(space: SegmentMap) -> list[Extent]:
    got = []
    try:
        while True:
            got.append(space.allocate(SEGMENT_SECTORS))
    except TierFull:
        return got


def test_fresh_segments_come_whole_and_in_order() -> None:
    space = SegmentMap(5)
    assert [extent.sector for extent in _drain(space)] == [0, SEGMENT_SECTORS, 2 * SEGMENT_SECTORS]
    assert space.free_segments == CLEANING_RESERVE
    assert space.allocate(SEGMENT_SECTORS, cleaning=True).sectors == SEGMENT_SECTORS
    space.check()


def test_a_hole_serves_when_no_segment_is_free() -> None:
    space = SegmentMap(3)
    (extent,) = _drain(space)
    space.release(extent.sector + 100, 15)
    with pytest.raises(TierFull):
        space.allocate(SEGMENT_SECTORS)  # 15 sectors, but not 16 from a byte of the bitmap on
    space.release(extent.sector + 115, 60)
    hole = space.allocate(SEGMENT_SECTORS)
    assert (hole.sector, hole.sectors) == (104, 64)
    assert hole.sector % 8 == 0, "direct I/O on 4 KiB blocks needs whole pages"
    space.check()


def test_what_was_tried_in_vain_does_not_hide_other_holes() -> None:
    space = SegmentMap(40)
    segments = _drain(space)
    for extent in segments:
        space.settle(extent)
    for extent in segments[:30]:  # many sparse segments without one usable hole
        for start in range(0, SEGMENT_SECTORS, 8):
            space.release(extent.sector + start, 7)
    space.release(segments[35].sector, 64)
    found = None
    for _ in range(10):
        try:
            found = space.allocate(SEGMENT_SECTORS)
            break
        except TierFull:
            for extent in space.segments_to_clean():
                space.end_cleaning(extent, skip=True)
    assert found == Extent(segments[35].sector, 64)


def test_bad_sectors_stay_out_of_use() -> None:
    space = SegmentMap(4)
    extent = space.allocate(SEGMENT_SECTORS)
    assert space.mark_bad(extent.sector, 24) == 24
    assert space.mark_bad(extent.sector, 24) == 0
    space.release(extent.sector, extent.sectors)
    assert space.bad_bytes == 24 * 512
    assert space.taken_bytes == 0
    space.check()
    space.begin_rebuild()
    space.check()
    assert space.bad_bytes == 24 * 512
    seen = set()
    for got in _drain(space):
        seen |= set(range(got.sector, got.sector + got.sectors))
    assert not seen & set(range(24))
    assert space.room_pages() == guaranteed_pages(3)


def test_rebuild_takes_what_is_marked() -> None:
    space = SegmentMap(4)
    _drain(space)
    space.begin_rebuild()
    space.mark(PSector(2048 + 5), 9)
    space.check()
    assert space.taken_bytes == 9 * 512
    assert space.free_segments == 3
    with pytest.raises(AssertionError):
        space.mark(PSector(2048 + 13), 1)


def test_misuse_is_refused() -> None:
    space = SegmentMap(4)
    with pytest.raises(AssertionError, match="were free"):
        space.release(0, 1)
    with pytest.raises(AssertionError):
        SegmentMap(CLEANING_RESERVE)


def _sparse(space: SegmentMap, shares: list[float]) -> list[Extent]:
    extents = _drain(space)
    for extent, share in zip(extents, shares, strict=True):
        space.settle(extent)
        live = int(SEGMENT_SECTORS * share)
        if live < SEGMENT_SECTORS:
            space.release(extent.sector + live, SEGMENT_SECTORS - live)
    return extents


def test_cleaning_takes_the_emptiest_until_one_segment_is_full() -> None:
    space = SegmentMap(8)
    extents = _sparse(space, [0.8, 0.1, 1.0, 0.5, 0.6, 0.8])
    picked = [segment.sector for segment in space.segments_to_clean()]
    assert picked == [extents[1].sector, extents[3].sector, extents[4].sector]


@pytest.mark.parametrize("shares", [[1.0, 1.0, 1.0], [0.5, 1.0, 1.0], [0.97, 0.97, 0.97]])
def test_cleaning_that_gains_nothing_is_not_done(shares: list[float]) -> None:
    space = SegmentMap(5)
    _sparse(space, shares)
    assert space.segments_to_clean() == []


def test_no_cleaning_while_segments_are_free() -> None:
    space = SegmentMap(9)
    _sparse(space, [0.1] * 7)
    picked = space.segments_to_clean()
    assert picked
    for segment in picked:
        space.end_cleaning(segment, skip=False)
    space.release(0, 204)
    assert space.free_segments == 3
    assert space.segments_to_clean() == []


def test_a_segment_full_of_crumbs_is_cleaned_alone_when_space_is_short() -> None:
    space = SegmentMap(3)
    (extent,) = _drain(space)
    space.settle(extent)
    for start in range(0, SEGMENT_SECTORS, 8):
        space.release(extent.sector + start, 4)
    assert [found.sector for found in space.segments_to_clean()] == [extent.sector]


def test_a_segment_that_was_passed_over_returns_when_it_changes() -> None:
    space = SegmentMap(6)
    extents = _sparse(space, [0.1, 0.1, 1.0, 1.0])
    picked = space.segments_to_clean()
    assert {segment.sector for segment in picked} == {extent.sector for extent in extents[:2]}
    for segment in picked:
        space.end_cleaning(segment, skip=True)
    space.check()
    assert space.segments_to_clean() == []
    space.release(extents[0].sector, 1)
    space.release(extents[1].sector, 1)
    space.check()
    picked = space.segments_to_clean()
    assert len(picked) == 2
    for segment in picked:
        space.end_cleaning(segment, skip=True)
    assert space.segments_to_clean() == []
    space.retry_skipped()
    space.check()
    assert sorted(space.segments_to_clean()) == sorted(picked), "asked to look again"


def test_nothing_is_placed_in_a_segment_that_is_being_cleaned() -> None:
    space = SegmentMap(8)
    _sparse(space, [0.1, 0.1, 1.0, 1.0, 1.0, 1.0])
    picked = space.segments_to_clean()
    assert len(picked) == 2
    with pytest.raises(TierFull):
        space.allocate(16)
    assert space.segments_to_clean() == [], "each is cleaned once at a time"
    for segment in picked:
        space.release(segment.sector, 204)  # its blobs have moved
        space.check()
        assert space.free_segments == CLEANING_RESERVE, "not before the end"
    for segment in picked:
        space.end_cleaning(segment, skip=False)
    assert space.free_segments == CLEANING_RESERVE + 2
    space.check()


def test_a_segment_with_an_extent_under_way_is_not_cleaned() -> None:
    space = SegmentMap(6)
    extents = _drain(space)
    for extent in extents[:3]:
        space.release(extent.sector, SEGMENT_SECTORS - 16)
    assert space.segments_to_clean() == [], "none of them is settled"
    for extent in extents[1:]:
        space.settle(extent)
    assert [found.sector for found in space.segments_to_clean()] == [
        extent.sector for extent in extents[2:0:-1]
    ]


def test_a_failed_write_never_costs_the_last_free_segment() -> None:
    space = SegmentMap(4)
    for extent in _drain(space):
        space.settle(extent)
    for bad_segments in (1, 1, 1):
        extent = space.allocate(SEGMENT_SECTORS, cleaning=True)
        space.mark_bad(extent.sector, extent.sectors)
        space.settle(extent)
        space.check()
        assert space.bad_bytes == bad_segments * SEGMENT_SECTORS * 512
        assert space.room_pages() == guaranteed_pages(4 - bad_segments)
    assert space.free_segments == 1


def test_without_a_free_segment_one_is_emptied_into_the_holes_of_others() -> None:
    space = SegmentMap(5)
    extents = _sparse(space, [0.5, 0.25, 0.75])
    held = [space.allocate(SEGMENT_SECTORS, cleaning=True) for _ in range(CLEANING_RESERVE)]
    (source,) = space.segments_to_clean()
    assert source.sector == extents[1].sector
    target = space.allocate(SEGMENT_SECTORS, cleaning=True)
    assert (target.sector, target.sectors) == (extents[0].sector + 1024, 1024)
    for extent in held:
        space.settle(extent)
    space.check()


def test_small_extents_share_a_fresh_segment() -> None:
    space = SegmentMap(8)
    first = space.allocate(40)
    assert first == Extent(PSector(0), 40)
    space.release(first.sector + 36, 4)
    assert space.allocate(16) == Extent(PSector(40), 16), "after it, from a whole page on"
    assert space.allocate(SEGMENT_SECTORS) == Extent(PSector(SEGMENT_SECTORS), SEGMENT_SECTORS)
    assert space.allocate(1992) == Extent(PSector(56), 1992), "as long as it has room"
    assert space.allocate(16).sector == 2 * SEGMENT_SECTORS
    space.check()


def test_has_room_is_the_last_word() -> None:
    space = SegmentMap(4)
    assert space.has_room()
    extents = _drain(space)
    for extent in extents:
        space.settle(extent)
    assert not space.has_room(), "all is taken"
    for start in range(0, 1024, 8):
        space.release(extents[0].sector + start, 4)
    with pytest.raises(TierFull):
        space.allocate(16)
    assert space.has_room(), "in crumbs, which cleaning moves together"
    (source,) = space.segments_to_clean()
    space.end_cleaning(source, skip=True)
    assert not space.has_room(), "it could not"


def test_guaranteed_room_is_213_pages_a_segment_beyond_the_reserve() -> None:
    assert guaranteed_pages(3) == 213
    assert guaranteed_pages(50) == 48 * 213
    assert guaranteed_pages(10, bad_segments=1) == guaranteed_pages(9)
    assert guaranteed_pages(2) == 0


def test_a_full_terabyte_file_answers_at_once() -> None:
    space = SegmentMap(1 << 18)  # 256 GiB, almost all taken
    for segment in range(space.segments - 4):
        space.mark(PSector(segment * SEGMENT_SECTORS), SEGMENT_SECTORS)
    space.release(500 * SEGMENT_SECTORS, 64)
    start = time.process_time()
    for _ in range(100):
        extent = space.allocate(64)
        space.segments_to_clean()
        space.release(extent.sector, extent.sectors)
    # Looking at each segment took 5 ms a call or more.
    assert time.process_time() - start < 0.25


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2048), st.integers(0, 99)), max_size=60)
)
def test_bookkeeping_agrees_with_itself(actions: list[tuple[int, int, int]]) -> None:
    space = SegmentMap(4)
    held: list[Extent] = []
    for action, sectors, seed in actions:
        rng = random.Random(seed)
        if action <= 1:
            try:
                got = space.allocate(sectors, cleaning=bool(seed % 7 == 0))
            except TierFull:
                continue
            assert 0 < got.sectors <= sectors
            assert all(
                got.sector + got.sectors <= other.sector
                or other.sector + other.sectors <= got.sector
                for other in held
            ), "handed out twice"
            held.append(got)
        elif held and action == 2:
            got = held.pop(rng.randrange(len(held)))
            keep = rng.randrange(got.sectors)
            if keep:
                held.append(Extent(got.sector, keep))
            space.release(got.sector + keep, got.sectors - keep)
        elif held:
            got = held.pop(rng.randrange(len(held)))
            space.mark_bad(got.sector, got.sectors)
        space.check()
    assert space.taken_bytes == sum(extent.sectors for extent in held) * 512


def test_rings() -> None:
    rings = ListHeads(5, 3)
    assert rings.numbers(0, 9) == [0, 1, 2, 3, 4]
    rings.move(3, 1)
    rings.move(1, 1)
    rings.move(4, 1, last=True)
    rings.move(0, 0, last=True)
    assert rings.numbers(0, 9) == [2, 0]
    assert rings.numbers(1, 2) == [1, 3]
    assert [rings.length(ring) for ring in range(3)] == [2, 3, 0]
    assert (rings.first(1), rings.first(2)) == (1, -1)
    assert [rings.where(number) for number in range(5)] == [0, 1, 0, 1, 1]

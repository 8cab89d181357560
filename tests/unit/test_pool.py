"""The size-class allocator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapfs.region.layout import ZSPAGE_BYTES, Geometry, Region
from swapfs.testing.pages import mixed_pages
from swapfs.tiers.pool import NO_PLACE, Pool, PoolRebuild
from swapfs.units import PAGE_SIZE, MiB
from swapfs.vlayer.codec import compress

ZSPAGES = 6


@pytest.fixture
def region() -> Iterator[Region]:
    region = Region.create(Geometry(MiB, ZSPAGES * ZSPAGE_BYTES))
    yield region
    region.close()


def test_reserve_is_for_table_pages_alone(region: Region) -> None:
    pool = Pool(region)
    pool.reserve_zspages = 1
    data = []
    while (place := pool.allocate(PAGE_SIZE)) != NO_PLACE:
        data.append(place)
    assert len(data) == (ZSPAGES - 1) * 16
    assert pool.allocate(64) == NO_PLACE
    # The first table page claims the reserve; data must not take the other 15 places of it.
    tables = [pool.allocate_page()]
    pool.reserve_zspages = 0
    assert pool.allocate(PAGE_SIZE) == NO_PLACE
    tables += [pool.allocate_page() for _ in range(15)]
    assert NO_PLACE not in tables
    assert pool.allocate_page() == NO_PLACE
    assert all(place % PAGE_SIZE == 0 for place in tables)
    pool.free(data.pop(), PAGE_SIZE)
    assert pool.allocate_page() != NO_PLACE, "a table page may take a raw page's place"
    pool.zspages.check()


def test_a_full_pool_gives_places_of_larger_classes(region: Region) -> None:
    pool = Pool(region)
    places = [pool.allocate(2000) for _ in range(ZSPAGES * (ZSPAGE_BYTES // 2048))]
    assert NO_PLACE not in places
    for place in places[:3]:
        pool.free(place, 2000)
    small = [pool.allocate(50) for _ in range(4)]
    assert sorted(small[:3]) == sorted(places[:3])
    assert small[3] == NO_PLACE
    for place in small[:3]:
        pool.free(place, 50)
    pool.zspages.check()


def test_freed_space_serves_every_class(region: Region) -> None:
    pool = Pool(region)
    for size in (40, 4096, 700, 2500, 32, 3840):
        places = []
        while (place := pool.allocate(size)) != NO_PLACE:
            places.append(place)
        assert len(places) == ZSPAGES * (ZSPAGE_BYTES // size) or size not in (32, 4096)
        random.Random(size).shuffle(places)
        for place in places:
            pool.free(place, size)
        assert pool.used_bytes == 0
        pool.zspages.check()
    assert pool.stats().peak_bytes == ZSPAGES * ZSPAGE_BYTES


def test_overhead_on_real_looking_pages_is_small() -> None:
    region = Region.create(Geometry(MiB, 32 * MiB))
    pool = Pool(region)
    for page in mixed_pages(seed=3, n=500) * 20:
        blob, _ = compress(memoryview(page))
        assert pool.allocate(len(blob)) != NO_PLACE
    stats = pool.stats()
    # zram's zsmalloc, 1.05 to 1.1 on such pages; zspages in part use come on top here.
    assert stats.object_bytes < 1.05 * stats.payload_bytes
    assert stats.used_bytes < 1.2 * stats.payload_bytes
    region.close()


SIZES = st.one_of(st.integers(1, PAGE_SIZE), st.sampled_from([1, 16, 17, 32, 33, 3840, 3841, 4096]))
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("fill"), SIZES, st.integers(1, 60)),
        st.tuples(st.just("free"), st.integers(0, 1 << 30), st.integers(1, 60)),
        st.tuples(st.just("table"), st.just(0), st.integers(1, 5)),
        st.tuples(st.just("rebuild"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


class Handed:
    """A pool, and what it has handed out; every byte of a place is filled with its mark."""

    def __init__(self) -> None:
        self.region = Region.create(Geometry(MiB, ZSPAGES * ZSPAGE_BYTES))
        self.pool = Pool(self.region)
        self.held: dict[int, tuple[int, bool]] = {}
        self.used = bytearray(ZSPAGES * ZSPAGE_BYTES)

    def take(self, size: int, count: int, *, table: bool) -> None:
        for _ in range(count):
            place = self.pool.allocate_page() if table else self.pool.allocate(size)
            if place == NO_PLACE:
                return
            assert not any(self.used[place : place + size]), "handed out twice"
            self.used[place : place + size] = b"\1" * size
            self.region.arena[place : place + size] = bytes([place >> 4 & 0xFF]) * size
            self.held[place] = (size, table)

    def free(self, seed: int, count: int) -> None:
        order = sorted(self.held)
        random.Random(seed).shuffle(order)
        for place in order[:count]:
            size, table = self.held.pop(place)
            mark = bytes([place >> 4 & 0xFF])
            assert self.region.arena[place : place + size] == mark * size, "overwritten"
            self.used[place : place + size] = bytes(size)
            if table:
                self.pool.free_page(place)
            else:
                self.pool.free(place, size)

    def rebuild(self) -> None:
        before = self.pool.stats()
        self.pool = Pool(self.region)
        rebuild = PoolRebuild(self.region, self.pool)
        for place, (size, table) in self.held.items():
            if table:
                rebuild.mark_page(place)
            else:
                rebuild.mark(place, size)
        rebuild.finish()
        assert replace(self.pool.stats(), peak_bytes=before.peak_bytes) == before


@given(actions=ACTIONS)
def test_places_never_overlap_and_all_come_back(actions: list[tuple[str, int, int]]) -> None:
    handed = Handed()
    for action, value, count in actions:
        if action == "rebuild":
            handed.rebuild()
        elif action == "free":
            handed.free(value, count)
        else:
            size = PAGE_SIZE if action == "table" else value
            handed.take(size, count, table=action == "table")
        handed.pool.zspages.check()
        payload = sum(size for size, table in handed.held.values() if not table)
        assert handed.pool.stats().payload_bytes == payload
    handed.free(1, len(handed.held))
    handed.pool.zspages.check()
    assert handed.pool.used_bytes == 0
    assert handed.pool.stats().zspages_free == ZSPAGES
    handed.region.close()


@pytest.mark.parametrize("damage", ["twice", "inside", "free zspage"])
def test_rebuild_refuses_a_table_that_contradicts_itself(region: Region, damage: str) -> None:
    pool = Pool(region)
    place = pool.allocate(100)
    other = pool.allocate(2000)
    pool.free(other, 2000)
    rebuild = PoolRebuild(region, pool)
    rebuild.mark(place, 100)
    with pytest.raises(AssertionError):
        rebuild.mark({"twice": place, "inside": place + 16, "free zspage": other}[damage], 100)

"""The table of words, in clusters."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from swapfs.errors import TierFull
from swapfs.region.layout import ZSPAGE_BYTES, Geometry, Region
from swapfs.tiers.pool import NO_PLACE, Pool
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB, TiB
from swapfs.vlayer.entry import HEAT_MASK, MOVING, Kind, encode_pool
from swapfs.vlayer.swap_table import SwapTable, table_reserve_bytes

WORD = Kind.SAME | 7 << 6


@pytest.fixture
def huge() -> Iterator[tuple[Region, Pool, SwapTable]]:
    region = Region.create(Geometry(TiB, 4 * MiB))
    pool = Pool(region)
    yield region, pool, SwapTable(region, pool)
    region.close()


def test_cost_follows_use_not_size(huge: tuple[Region, Pool, SwapTable]) -> None:
    _, pool, table = huge
    assert table.slots == TiB // PAGE_SIZE
    assert pool.used_bytes == 0
    spread = [cluster * 9973 * CLUSTER_SLOTS + 3 for cluster in range(20)]
    for slot in spread:
        assert table.exchange(slot, WORD, "write") == 0
    assert table.table_bytes == 20 * PAGE_SIZE
    assert pool.used_bytes <= 2 * ZSPAGE_BYTES
    assert table.state_counts()["same"] == 20
    assert table.state_counts()["empty"] == table.slots - 20
    assert sorted(table.occupied_words()) == [(slot, WORD) for slot in spread]
    last = table.slots - 1
    assert table.live_between(0, last >> 9) == [slot >> 9 for slot in spread]
    assert table.live_between(1, spread[2] >> 9) == [slot >> 9 for slot in spread[1:3]]
    assert table.live_between(spread[3] >> 9, spread[3] >> 9) == [spread[3] >> 9]
    for slot in spread:
        assert table.exchange(slot, 0, "discard") == WORD
    assert table.live_clusters == 0
    assert pool.used_bytes == 0


def test_a_cluster_in_use_costs_no_memory_but_its_page(
    huge: tuple[Region, Pool, SwapTable],
) -> None:
    _, _, table = huge
    tracemalloc.start()
    try:
        table.materialise(0)
        before, _ = tracemalloc.get_traced_memory()
        for cluster in range(1, 1000):
            table.materialise(cluster * CLUSTER_SLOTS)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < PAGE_SIZE, "I5"
    assert table.live_clusters == 1000


def test_a_cluster_goes_when_its_last_slot_does(huge: tuple[Region, Pool, SwapTable]) -> None:
    region, _, table = huge
    for slot in range(CLUSTER_SLOTS):
        table.exchange(slot, WORD, "write")
    for slot in range(CLUSTER_SLOTS - 1):
        table.exchange(slot, 0, "discard")
    assert table.live_clusters == 1
    table.exchange(CLUSTER_SLOTS - 1, 0, "discard")
    assert table.live_clusters == 0
    assert region.directory[0] == 0
    table.exchange(5, WORD, "write")
    assert [table.get(slot) for slot in (4, 5, 6)] == [0, WORD, 0], "a reused page is zeroed"


def test_nothing_is_made_for_an_empty_word(huge: tuple[Region, Pool, SwapTable]) -> None:
    _, _, table = huge
    assert table.exchange(77, 0, "discard") == 0
    assert table.get(77) == 0
    assert table.run(64, 64) == [0] * 64
    assert table.live_clusters == 0


def test_an_illegal_move_is_refused(huge: tuple[Region, Pool, SwapTable]) -> None:
    _, _, table = huge
    table.exchange(1, WORD, "write")
    with pytest.raises(AssertionError, match="demote"):
        table.exchange(1, encode_pool(16, 5, 1), "demote")
    assert table.get(1) == WORD


def test_flags_change_nothing_else(huge: tuple[Region, Pool, SwapTable]) -> None:
    _, _, table = huge
    word = encode_pool(4096, 77, 1)
    table.exchange(3, word, "write")
    before = table.state_counts()
    table.mark(3, MOVING | HEAT_MASK, on=True)
    assert table.get(3) == word | MOVING | HEAT_MASK
    table.mark(3, MOVING, on=False)
    assert table.get(3) == word | HEAT_MASK
    assert table.state_counts() == before


def test_every_cluster_of_an_honest_file_has_room_for_its_table() -> None:
    region = Region.create(Geometry(60 * CLUSTER_SLOTS * PAGE_SIZE, 4 * MiB))
    pool = Pool(region)
    table = SwapTable(region, pool)
    assert table_reserve_bytes(60, 4 * MiB) == 4 * ZSPAGE_BYTES
    while pool.allocate(PAGE_SIZE) != NO_PLACE:
        pass
    for cluster in range(60):
        table.exchange(cluster * CLUSTER_SLOTS, WORD, "write")
        assert pool.allocate(PAGE_SIZE) == NO_PLACE, "data took the table's room"
    assert pool.reserve_zspages == 0
    region.close()


def test_the_reserve_is_never_most_of_a_small_pool() -> None:
    assert table_reserve_bytes(TiB >> 21, 4 * MiB) == 4 * MiB // 8
    assert table_reserve_bytes(1, 4 * MiB) == ZSPAGE_BYTES


def test_no_room_for_a_table_page_changes_nothing(huge: tuple[Region, Pool, SwapTable]) -> None:
    _, pool, table = huge
    while pool.allocate_page() != NO_PLACE:
        pass
    with pytest.raises(TierFull):
        table.exchange(1, WORD, "write")
    assert table.get(1) == 0
    assert table.live_clusters == 0
    assert table.state_counts()["same"] == 0


def test_rebuild_finds_what_was_there(huge: tuple[Region, Pool, SwapTable]) -> None:
    region, pool, table = huge
    slots = [0, 1, 513, 100_000_007]
    for slot in slots:
        table.exchange(slot, WORD, "write")
    place = pool.allocate_page()
    region.arena[place : place + PAGE_SIZE] = bytes(PAGE_SIZE)
    region.directory[9] = (place >> 12) + 1  # the server died before it used the new cluster
    again = SwapTable(region, Pool(region))
    again.rebuild()
    assert sorted(again.occupied_words()) == [(slot, WORD) for slot in slots]
    assert again.state_counts() == table.state_counts()
    assert again.live_clusters == 3
    assert region.directory[9] == 0


def test_the_ring_turns(huge: tuple[Region, Pool, SwapTable]) -> None:
    _, _, table = huge
    for cluster in (5, 2, 9):
        table.exchange(cluster * CLUSTER_SLOTS, WORD, "write")
    seen = []
    for _ in range(4):
        oldest = table.oldest_cluster()
        assert oldest is not None
        seen.append(oldest)
        table.rotate(oldest)
    assert seen == [5, 2, 9, 5]
    table.rotate(1234)
    assert table.live_clusters == 3

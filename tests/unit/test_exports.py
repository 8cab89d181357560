"""Several exports over one pool: what each has, what it may, and who gives up pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import ENOSPC

import pytest

from swapfs.errors import OverQuota
from swapfs.region.export_rows import (
    EVERY_TIER,
    ExportRow,
    forget_tier,
    read_exports,
    write_exports,
)
from swapfs.region.layout import Geometry, Region
from swapfs.testing.blob_tier import BlobTier
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.tiers.base import Tier
from swapfs.tiers.sector_tier import SectorTier
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.exports import Export
from swapfs.vlayer.stack import Phase

SLOTS = 12 * CLUSTER_SLOTS
SECOND = 4 * CLUSTER_SLOTS
"""Where the second export begins."""
THIRD = 8 * CLUSTER_SLOTS
POOL_BYTES = 2 * MiB


def rows(*, quota: int = 0, first: int = EVERY_TIER, second: int = EVERY_TIER) -> list[ExportRow]:
    return [
        ExportRow("swap", 0, SECOND - 100, 10, 0, first),
        ExportRow("batch", SECOND, 4 * CLUSTER_SLOTS, 5, quota, second),
        ExportRow("rest", THIRD, 4 * CLUSTER_SLOTS),
    ]


def make(exports: list[ExportRow], *tiers: Tier) -> Harness:
    return Harness(SLOTS, POOL_BYTES, list(tiers) or None, exports=exports)


def export(harness: Harness, name: str) -> Export:
    return next(each for each in harness.layer.exports if each.name == name)


def fill(harness: Harness, first: int, count: int, kind: str = "random") -> int:
    """Write *count* pages; return how many were taken."""
    results = [harness.write(first + i, page(kind, first + i)) for i in range(count)]
    assert set(results) <= {PAGE_SIZE, -ENOSPC}
    return results.count(PAGE_SIZE)


# ---- the rows ----


def test_rows_survive_and_lie_beside_all_else() -> None:
    region = Region.create(Geometry(SLOTS * PAGE_SIZE, MiB))
    assert read_exports(region.exports) == []
    wanted = [ExportRow("x" * 48, 0, 512, -7, 1 << 50, 0b1010), *rows()[1:]]
    write_exports(region.exports, wanted)
    again = Region.attach(os.dup(region.fd))
    assert read_exports(again.exports) == wanted
    assert not any(again.directory)
    forget_tier(again.exports, 3)
    assert [row.tiers for row in read_exports(region.exports)] == [0b0010, EVERY_TIER, EVERY_TIER]
    again.close()
    region.close()


# ---- what each has ----


def test_what_each_has_is_counted_apart() -> None:
    harness = make(rows(), SectorTier(MemoryTier(8)))
    fill(harness, 0, 40, "text")
    fill(harness, SECOND, 30)
    fill(harness, THIRD, 20, "zero")
    harness.check()
    assert [each.stored for each in harness.layer.exports] == [40, 30, 20]
    batch, rest = export(harness, "batch"), export(harness, "rest")
    assert batch.physical_bytes == batch.bytes_in(0) == 30 * PAGE_SIZE + PAGE_SIZE
    assert batch.payload_bytes == 30 * PAGE_SIZE
    assert (rest.physical_bytes, rest.payload_bytes) == (PAGE_SIZE, 0), "a page of the table"
    harness.down.demote(1000)
    harness.down.demote(1000)
    harness.check()
    assert batch.bytes_in(1) == 30 * 9 * 512
    assert batch.bytes_in(0) == PAGE_SIZE
    harness.layer.discard_run(SECOND, 30)
    assert (batch.stored, batch.physical_bytes) == (0, 0)
    harness.check()


def test_recovery_counts_the_same() -> None:
    tiers = [SectorTier(MemoryTier(8)), BlobTier(200)]
    harness = make(rows(first=0b100), *tiers)
    for first in (0, SECOND, THIRD):
        fill(harness, first, 60, "heap")
    harness.down.demote(100)
    fill(harness, 10, 60)
    before = [(e.stored, e.payload_bytes, e.physical_bytes) for e in harness.layer.exports]
    again = Harness(SLOTS, POOL_BYTES, tiers, region=harness.region)
    again.check()
    assert before == [(e.stored, e.payload_bytes, e.physical_bytes) for e in again.layer.exports]


# ---- quota ----

QUOTA = 64 * PAGE_SIZE


def test_a_quota_refuses_its_own_export_and_nobody_else() -> None:
    harness = make(rows(quota=QUOTA), SectorTier(MemoryTier(8)))
    assert fill(harness, SECOND, 100) == 63, "one page is that of the table"
    batch = export(harness, "batch")
    assert batch.physical_bytes == QUOTA
    assert batch.is_full()
    assert batch.figures.counters()["refused_writes"] == 37
    assert harness.counter("failed_write_over_quota") == 37
    assert harness.counter("failed_write_no_room") == 0
    assert fill(harness, 0, 100) == fill(harness, THIRD, 100) == 100
    assert harness.load(SECOND + 5) == page("random", SECOND + 5)
    harness.check()


def test_what_takes_no_more_room_is_within_a_quota() -> None:
    harness = make(rows(quota=QUOTA))
    fill(harness, SECOND, 100)
    assert harness.write(SECOND + 3, page("random", 7)) == PAGE_SIZE, "as large as before"
    assert harness.write(SECOND + 80, page("zero", 0)) == PAGE_SIZE, "a repeated word"
    assert harness.write(SECOND + 81, page("random", 1)) == -ENOSPC
    for slot in (4, 5, 6):
        assert harness.write(SECOND + slot, page("text", 1)) == PAGE_SIZE, "smaller"
    assert harness.write(SECOND + 81, page("text", 2)) == PAGE_SIZE, "and so there is room"
    harness.layer.discard_run(SECOND, 20)
    assert fill(harness, SECOND + 100, 18) == 18
    harness.check()


def test_the_table_counts_against_a_quota_too() -> None:
    harness = make(rows(quota=3 * PAGE_SIZE))
    firsts = [SECOND + cluster * CLUSTER_SLOTS for cluster in range(4)]
    results = [harness.write(first, page("zero", 0)) for first in firsts]
    assert results == [PAGE_SIZE, PAGE_SIZE, PAGE_SIZE, -ENOSPC]
    assert harness.layer.table.live_clusters == 3
    harness.check()


def test_moves_are_refused_to_nobody() -> None:
    """What goes down may take more there, and counts."""
    harness = make(rows(quota=QUOTA), SectorTier(MemoryTier(8)))
    fill(harness, SECOND, 100)
    harness.down.demote(200)
    harness.down.demote(200)
    batch = export(harness, "batch")
    assert batch.physical_bytes == 63 * 9 * 512 + PAGE_SIZE > QUOTA
    assert harness.write(SECOND + 90, page("text", 1)) == -ENOSPC
    assert harness.load(SECOND + 62) == page("random", SECOND + 62)
    harness.check()


def test_a_quota_holds_for_what_goes_around_the_pool() -> None:
    harness = make(rows(quota=QUOTA), SectorTier(MemoryTier(8)))
    pages = [page("random", n) for n in range(80)]
    assert harness.write_direct(SECOND, *pages) == -ENOSPC
    batch = export(harness, "batch")
    assert QUOTA - 9 * 512 < batch.physical_bytes <= QUOTA
    assert harness.load(SECOND, batch.stored) == b"".join(pages[: batch.stored])
    harness.check()


def test_a_part_of_a_page_is_within_the_quota_too() -> None:
    harness = make(rows(quota=2 * PAGE_SIZE))
    assert harness.write(SECOND, page("text", 1)) == PAGE_SIZE
    with pytest.raises(OverQuota):
        harness.layer.patch(SECOND + 1, 0, page("random", 1), bytearray(PAGE_SIZE))
    assert harness.layer.is_empty(SECOND + 1)
    harness.check()


# ---- masks ----


def tiers_of(harness: Harness, first: int, count: int) -> set[int]:
    """Return the tiers that have pages of a range."""
    at = export_at(harness, first)
    return {number for number in range(8) if at.bytes_in(number) > (PAGE_SIZE if not number else 0)}


def export_at(harness: Harness, slot: int) -> Export:
    return harness.layer.exports.at(slot)


@pytest.fixture
def masked() -> Iterator[Harness]:
    """Two tiers: the first export may use the second one, the second none, the third all."""
    harness = make(rows(first=0b100, second=0), SectorTier(MemoryTier(8)), BlobTier(400))
    for first in (0, SECOND, THIRD):
        assert fill(harness, first, 100) == 100
    yield harness
    harness.check()
    for first in (0, SECOND, THIRD):
        for slot in range(first, first + 100):
            assert harness.load(slot) == page("random", slot)


def test_pages_go_down_where_their_export_may(masked: Harness) -> None:
    for _ in range(4):
        masked.down.demote(1000)
    assert tiers_of(masked, 0, 100) == {2}
    assert tiers_of(masked, SECOND, 100) == {0}
    assert tiers_of(masked, THIRD, 100) == {1}


def test_writes_go_around_where_their_export_may(masked: Harness) -> None:
    for first in (0, SECOND, THIRD):
        result = masked.write_direct(first, *(page("random", first + i) for i in range(100)))
        assert result == 100 * PAGE_SIZE, "the second export's find room in the pool"
    assert tiers_of(masked, 0, 100) == {2}
    assert tiers_of(masked, SECOND, 100) == {0}
    assert tiers_of(masked, THIRD, 100) == {1}


def test_a_drain_moves_what_may_go_and_says_what_may_not() -> None:
    tiers = [BlobTier(400), BlobTier(400)]
    harness = make(rows(first=0b010), *tiers)
    for first in (0, THIRD):
        fill(harness, first, 100)
    for _ in range(4):
        harness.down.demote(1000)
    level = harness.stack[1]
    assert harness.down.drains.missing_bytes(level) == 100 * PAGE_SIZE
    end = harness.down.drains.drain(1).run()
    assert (end.moved, end.done, end.problem) == (100, False, "no other tier has room")
    assert tiers_of(harness, 0, 100) == {1}
    assert tiers_of(harness, THIRD, 100) == {2}
    harness.stack.set_phase(level, Phase.ACTIVE)
    harness.check()


def test_what_sinks_goes_where_its_export_may() -> None:
    tiers: list[Tier] = [BlobTier(400), BlobTier(400), BlobTier(400)]
    harness = make(rows(first=0b1010, second=0b0110), *tiers)
    for first in (0, SECOND, THIRD):
        fill(harness, first, 60)
    for _ in range(4):
        harness.down.demote(1000)
    assert harness.down.drains.sink(1, 180).run().moved == 180
    assert [tiers_of(harness, first, 60) for first in (0, SECOND, THIRD)] == [{3}, {2}, {2}]
    harness.check()


def test_the_number_of_a_tier_that_left_is_nobodys() -> None:
    harness = make(rows(first=0b110), BlobTier(40), BlobTier(40))
    harness.layer.exports.forget_tier(2)
    assert [level.number for level in harness.layer.exports.levels_at(0)] == [1]
    assert [level.number for level in harness.layer.exports.levels_at(THIRD)] == [1, 2]
    again = Harness(SLOTS, POOL_BYTES, list(map(_tier, harness.stack)), region=harness.region)
    assert [level.number for level in again.layer.exports.levels_at(0)] == [1]


def _tier(level: object) -> Tier:
    tier = level.tier  # type: ignore[attr-defined]
    assert isinstance(tier, Tier)
    return tier


@pytest.mark.parametrize(
    ("needs", "missing"),
    [
        ({0: 10, 1: 10, 2: 10}, 0),
        ({0: 21}, 1),
        ({0: 15, 1: 16}, 11),
        ({1: 11}, 1),
        ({0: 20, 1: 10, 2: 31}, 31),
        ({2: 60}, 0),
    ],
)
def test_room_is_looked_for_in_what_each_may_use(needs: dict[int, int], missing: int) -> None:
    tiers = [BlobTier(40) for _ in range(3)]
    harness = make(rows(first=0b0110, second=0b0010), *tiers)
    room = {1: 10, 2: 10, 3: 40} if missing != 31 else {1: 10, 2: 10, 3: 10}
    assert harness.layer.exports.shortfall(needs, room) == missing


# ---- fairness ----


def test_who_has_less_than_its_share_keeps_it() -> None:
    harness = make(rows(), SectorTier(MemoryTier(16)))
    fill(harness, THIRD, 40)
    fill(harness, 0, 300)
    harness.down.demote(200)
    assert tiers_of(harness, THIRD, 40) == {0}
    assert export_at(harness, 0).figures.counters()["demoted_pages"] == 200


def test_neither_starves_when_both_press() -> None:
    """Two write as fast as they can, one in larger pieces: each keeps half of the pool."""
    harness = make(rows(), SectorTier(MemoryTier(24)))
    small, large = export_at(harness, THIRD), export_at(harness, 0)
    for step in range(60):
        fill(harness, (step * 24) % (3 * CLUSTER_SLOTS), 24)
        fill(harness, THIRD + (step * 6) % CLUSTER_SLOTS, 6)
        while harness.layer.pool.used_bytes > POOL_BYTES * 3 // 4 and harness.down.demote_batch(8):
            pass
    shares = sorted(
        export.bytes_in(0) / harness.layer.pool.limit_bytes for export in (small, large)
    )
    assert shares[0] > 0.8 * shares[1], shares
    assert sum(shares) > 0.4
    assert export_at(harness, SECOND).stored == 0
    harness.check()

"""Which tier takes a page: by priority, by turns among equals, within a budget; and what sinks."""

from __future__ import annotations

import logging
from errno import ENOSPC

import pytest

from swapfs.region.stack_rows import RowFigures, StackRow, read_rows, write_rows
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.tiers.segments import SEGMENT_BYTES
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.drains import HIGH_PERCENT, LOW_PERCENT
from swapfs.vlayer.entry import tier_of

SLOTS = 8 * CLUSTER_SLOTS
HOUR_S = 3600


def _harness(*segments: int, priorities: tuple[int, ...] = (), pool: int = 8 * MiB) -> Harness:
    harness = Harness(SLOTS, pool, [MemoryTier(count) for count in segments])
    for level, priority in zip(list(harness.stack), priorities, strict=False):
        harness.stack.set_priority(level, priority)
    return harness


def _fill(harness: Harness, count: int, first: int = 0) -> None:
    for slot in range(first, first + count):
        assert harness.store(slot, page("random", slot))


def _verify(harness: Harness, count: int) -> None:
    harness.check()
    for slot in range(count):
        assert harness.load(slot) == page("random", slot)


def _sink(harness: Harness) -> None:
    while harness.down.drains.step(lambda: True):
        pass


def _in_tiers(harness: Harness) -> list[int]:
    return [harness.layer.table.slots_in(level.number) for level in harness.stack]


def test_equals_are_striped_and_a_higher_one_comes_first() -> None:
    harness = _harness(8, 8, 8, 8, priorities=(1, 5, 5, 5))
    _fill(harness, 1300)
    assert harness.down.demote(1300) >= 1200
    per_tier = {level.number: n for level, n in zip(harness.stack, _in_tiers(harness), strict=True)}
    assert per_tier[1] == 0
    assert max(per_tier.values()) - min(per_tier[n] for n in (2, 3, 4)) <= 256
    _verify(harness, 1300)
    harness.region.close()


def test_a_full_equal_leaves_its_turn_to_the_others() -> None:
    harness = _harness(3, 8, priorities=(5, 5))
    _fill(harness, 900)
    assert harness.down.demote(900) >= 850
    assert 0 < harness.layer.table.slots_in(1) < 256
    _verify(harness, 900)
    harness.region.close()


def test_a_tier_that_presses_lets_what_is_cold_sink() -> None:
    harness = _harness(6, 20, priorities=(5, 1))
    _fill(harness, 1000)
    harness.down.demote(900)
    upper, lower = list(harness.stack)
    assert upper.tier.fill_percent() > HIGH_PERCENT
    warm = [s for s in range(1000) if tier_of(harness.layer.table.get(s)) == 1][::9]
    for slot in warm:
        harness.load(slot)
    before = harness.layer.table.slots_in(lower.number)
    _sink(harness)
    assert upper.tier.fill_percent() <= LOW_PERCENT
    assert harness.counter("sunk_pages") == harness.layer.table.slots_in(lower.number) - before > 0
    assert {tier_of(harness.layer.table.get(slot)) for slot in warm} == {1}
    assert lower.figures.get("moved_in_pages") >= harness.counter("sunk_pages")
    assert upper.figures.get("moved_out_pages") == harness.counter("sunk_pages")
    _verify(harness, 1000)
    _sink(harness)
    assert not upper.presses, "it stops at the low watermark"
    harness.region.close()


def test_nothing_sinks_to_an_equal_nor_from_the_last() -> None:
    harness = _harness(4, 20, priorities=(5, 5))
    _fill(harness, 900)
    harness.down.demote(900)
    for level in harness.stack:
        level.presses = level.health.full = True
    _sink(harness)
    assert harness.counter("sunk_pages") == 0
    harness.region.close()


def _budget(harness: Harness, number: int, hour_bytes: int, *, exceeds: bool = False) -> None:
    figures = harness.stack[number].figures
    figures.set("budget_hour_bytes", hour_bytes)
    figures.set("budget_exceeds", exceeds)


def test_demotion_stops_at_a_budget_says_so_and_goes_on_in_the_next_hour(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = _harness(20)
    harness.now_s = 5 * HOUR_S + 60.0
    _budget(harness, 1, 2 * MiB)
    _fill(harness, 1200)
    with caplog.at_level(logging.WARNING):
        moved = harness.down.demote(1200)
        assert harness.down.demote(1200) == 0
    assert moved * PAGE_SIZE <= 2 * MiB
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1, "once is enough"
    assert said[0].startswith("tier file: the write budget of this hour is spent (")
    assert said[0].endswith("of 2M), the next begins in 59 min")
    assert harness.stack[1].state(harness.now_s) == "spent"
    # A new server counts on.
    again = Harness(SLOTS, 8 * MiB, harness.tier, region=harness.region)
    again.now_s = harness.now_s
    assert again.down.demote(1200) == 0
    again.now_s += HOUR_S
    assert again.down.demote(1200) > 0
    _verify(again, 1200)
    again.region.close()


def test_a_spent_tier_is_passed_over_for_the_next() -> None:
    harness = _harness(20, 20, priorities=(5, 1))
    _budget(harness, 1, 2 * MiB)
    _fill(harness, 1200)
    assert harness.down.demote(1200) >= 1100
    assert harness.layer.table.slots_in(1) * PAGE_SIZE <= 2 * MiB
    assert harness.stack[1].figures.get("written_bytes") <= 2 * MiB
    _verify(harness, 1200)
    harness.region.close()


@pytest.mark.parametrize("exceeds", [False, True])
def test_a_write_that_finds_no_other_room_goes_beyond_a_budget_only_if_told_so(
    exceeds: bool,
) -> None:
    harness = _harness(20, pool=16 * 65536)
    _budget(harness, 1, SEGMENT_BYTES, exceeds=exceeds)
    slot = 0
    while harness.store(slot, page("random", slot)):
        slot += 1
    answers = [harness.write_direct(slot + n, page("random", slot + n)) for n in range(600)]
    assert (-ENOSPC in answers) is not exceeds
    good = answers.index(-ENOSPC) if not exceeds else 600
    assert good > 0
    _verify(harness, slot + good)
    harness.region.close()


def test_rows_keep_budgets_and_figures() -> None:
    stack = memoryview(bytearray(2048))
    row = StackRow(
        *(3, "file", "ssd", 7, b"d" * 32), budget_hour_bytes=5, budget_day_bytes=6,
        budget_exceeds=True,
    )  # fmt: skip
    write_rows(stack, [row])
    assert read_rows(stack) == [row]
    figures = RowFigures.of(stack, 3)
    assert figures.get("budget_day_bytes") == 6
    figures.add("reads", 4)
    assert RowFigures.of(stack, 3).counters()["reads"] == 4

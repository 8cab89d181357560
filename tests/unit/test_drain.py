"""Emptying a tier: as it lies there, in long reads; what they do not find is moved too."""

from __future__ import annotations

import random

import pytest

from swapfs.testing.faulty import FaultyTier
from swapfs.testing.harness import Harness
from swapfs.testing.media import TIERS
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.units import CLUSTER_SLOTS, MiB

SLOTS = 8 * CLUSTER_SLOTS
PAGES = 1500


def _scattered(*tiers: object) -> tuple[Harness, dict[int, int]]:
    """Return a layer with PAGES pages in its first tier, whose order is not that of the slots."""
    harness = Harness(SLOTS, 32 * MiB, list(tiers))  # type: ignore[arg-type]
    first, *others = harness.stack
    held: dict[int, int] = {}
    slots = random.Random(1).sample(range(SLOTS), PAGES)
    for seed, slot in enumerate(slots):
        assert harness.store(slot, page("text" if seed % 3 else "random", seed))
        held[slot] = seed
        if seed % 100 == 99:
            harness.down.demote(100)
    while harness.down.demote(PAGES):
        pass
    assert harness.layer.table.slots_in(first.number) == PAGES
    assert not any(harness.layer.table.slots_in(other.number) for other in others)
    return harness, held


def _verify(harness: Harness, held: dict[int, int]) -> None:
    harness.check()
    for slot, seed in held.items():
        assert harness.load(slot) == page("text" if seed % 3 else "random", seed)
    harness.region.close()


def test_a_tier_is_read_in_long_reads_whatever_the_order_of_its_slots() -> None:
    source, target = MemoryTier(16), MemoryTier(16)
    harness, held = _scattered(source, target)
    used = source.map.segments - source.map.free_segments
    source.reads = target.writes = 0
    end = harness.down.drains.drain(1).run()
    assert (end.moved, end.done) == (PAGES, True)
    assert source.reads <= used + 2, "a stretch was read twice"
    assert target.writes <= used + 2
    _verify(harness, held)


def test_sparse_stretches_are_gathered_into_one_write() -> None:
    source, target = MemoryTier(16), MemoryTier(16)
    harness, held = _scattered(source, target)
    for slot in list(held)[::2] + list(held)[1::4]:
        harness.layer.discard_run(slot, 1)
        del held[slot]
    used = source.map.segments - source.map.free_segments
    source.reads = target.writes = 0
    assert harness.down.drains.drain(1).run().done
    assert source.reads <= 2 * used
    assert target.writes <= used // 2 + 1
    _verify(harness, held)


def test_what_is_rewritten_meanwhile_stays_as_it_is_then() -> None:
    harness, held = _scattered(MemoryTier(16), MemoryTier(16))
    drain = harness.down.drains.drain(1)
    while drain.step():
        for slot in random.Random(len(held)).sample(list(held), 40):
            held[slot] += PAGES
            kind = "text" if held[slot] % 3 else "random"
            assert harness.store(slot, page(kind, held[slot]))
    assert drain.progress.done
    _verify(harness, held)


@pytest.mark.parametrize("fault", ["read_error", "flipped_read"])
def test_a_read_that_fails_once_costs_nothing(fault: str) -> None:
    source = FaultyTier(MemoryTier(16), fault, 2)
    harness, held = _scattered(source, MemoryTier(16))
    assert harness.down.drains.drain(1).run().done
    assert source.failures == 1
    _verify(harness, held)


def test_a_target_with_holes_only_takes_it_all(tmp_path: object) -> None:
    """The loads are small then, and a stretch is read on from where the last one ended."""
    source, target = MemoryTier(16), MemoryTier(10)
    harness = Harness(SLOTS, 32 * MiB, [source, target])
    first, second = harness.stack
    harness.stack.set_priority(second, 9)
    for slot in range(1700):
        assert harness.store(slot, page("random", slot))
    while harness.down.demote(1700):
        pass
    assert harness.layer.table.slots_in(second.number) > 1500
    harness.stack.set_priority(second, -9)
    for slot in range(0, 1700, 3):
        harness.layer.discard_run(slot, 1)
    for slot in range(2000, 2500):
        assert harness.store(slot, page("random", slot))
    while harness.down.demote(500):
        pass
    there = harness.layer.table.slots_in(first.number)
    assert there > 400
    end = harness.down.drains.drain(first.number)
    while not end.run().done:
        assert harness.down.clean(), end.progress.problem
        end = harness.down.drains.drain(first.number)
    _verify_range(harness)


def _verify_range(harness: Harness) -> None:
    harness.check()
    for slot in (*(s for s in range(1700) if s % 3), *range(2000, 2500)):
        assert harness.load(slot) == page("random", slot)
    harness.region.close()


@pytest.mark.parametrize("name", TIERS)
def test_every_sector_tier_is_swept(name: str, tmp_path: object) -> None:
    """As `test_a_tier_is_read_in_long_reads...`, on each medium; its reads are counted."""
    harness, held = _scattered(TIERS[name](tmp_path)(16), MemoryTier(16))  # type: ignore[arg-type]
    before = harness.counter("file_read_ops")
    assert harness.down.drains.drain(1).run().moved == PAGES
    assert harness.counter("file_read_ops") - before <= 16
    _verify(harness, held)

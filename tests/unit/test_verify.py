"""Verify finds what is damaged, wherever it lies, and changes nothing."""

from __future__ import annotations

import random
import threading

from swapfs.errors import TierIOError
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import KINDS, page
from swapfs.tiers.base import Failure, Wanted
from swapfs.units import CLUSTER_SLOTS, MiB
from swapfs.vlayer import fetch
from swapfs.vlayer.entry import Kind, is_below, pool_place
from swapfs.vlayer.verify import POOL, TOLD_MAX, Findings, Verify

SLOTS = 6 * CLUSTER_SLOTS


def _harness() -> Harness:
    harness = Harness(SLOTS, 4 * MiB, [MemoryTier(8), MemoryTier(8)])
    for slot in range(0, 900, 2):
        harness.store(slot, page(KINDS[slot % len(KINDS)], slot))
    assert harness.down.demote(80) > 40
    harness.down.drains.sink(1, 30).run()
    assert all(harness.layer.table.slots_in(number) > 10 for number in (1, 2))
    return harness


def _verify(harness: Harness, tier: int | None = None) -> Findings:
    work = Verify(harness.layer, tier, memoryview(bytearray(fetch.SCRATCH_BYTES)), rest=_no_rest)
    assert work.run()
    return work.findings


def _no_rest(_: float) -> None:
    pass


def _below(harness: Harness, number: int) -> list[int]:
    return [
        slot
        for slot, word in harness.layer.table.occupied_words()
        if is_below(word) and word >> 5 & 7 == number
    ]


def _flip(harness: Harness, slot: int) -> None:
    level = harness.stack[harness.layer.table.get(slot) >> 5 & 7]
    tier = level.tier.sectors  # type: ignore[attr-defined]
    tier.data[harness.sector(slot) * 512 + 60] ^= 4


def test_all_is_well_and_nothing_has_changed() -> None:
    harness = _harness()
    before = bytes(harness.region.arena), harness.layer.counters.snapshot()
    found = _verify(harness)
    assert found.checked == found.total > 200
    assert (found.damaged, found.unreadable, found.lost, found.told) == (0, 0, 0, [])
    assert (bytes(harness.region.arena), harness.layer.counters.snapshot()) == before
    states = harness.layer.table.state_counts()
    assert _verify(harness, POOL).checked == states["compressed"] + states["raw"]
    assert _verify(harness, 2).checked == harness.layer.table.slots_in(2)
    harness.region.close()


def test_what_is_damaged_is_told_by_slot_and_tier() -> None:
    harness = _harness()
    pool = [
        (slot, word)
        for slot, word in harness.layer.table.occupied_words()
        if word & 3 == Kind.BLOB and not is_below(word)
    ]
    slot, word = pool[7]
    harness.region.arena[pool_place(word) + 9] ^= 1
    one, two = _below(harness, 1)[3], _below(harness, 2)[5]
    _flip(harness, one)
    _flip(harness, two)
    harness.layer.free(900, harness.layer.table.exchange(pool[9][0], Kind.LOST, "lose"))
    found = _verify(harness)
    assert (found.damaged, found.lost, found.unreadable) == (3, 1, 0)
    assert {line.split(":")[0] for line in found.told} == {
        f"slot {slot} in the pool",
        f"slot {one} in tier {harness.stack[1].name}",
        f"slot {two} in tier {harness.stack[2].name}",
        f"slot {pool[9][0]} in no tier",
    }
    assert _verify(harness, 1).damaged == 1
    assert _verify(harness, POOL).damaged == 1
    harness.region.close()


def test_many_are_counted_and_not_all_told() -> None:
    harness = _harness()
    for _, word in harness.layer.table.occupied_words():
        if word & 3 == Kind.BLOB and not is_below(word):
            harness.region.arena[pool_place(word)] ^= 1
    found = _verify(harness)
    assert found.damaged > TOLD_MAX == len(found.told)
    harness.region.close()


def test_a_disk_that_fails_once_is_no_damage() -> None:
    harness = _harness()
    tier = harness.stack[1].tier
    load, fails = tier.load, [1]

    def fail_once(wanted: list[Wanted], scratch: memoryview) -> object:
        if fails:
            fails.pop()
            wanted[0].failure = Failure(TierIOError, "once")
            return None
        return load(wanted, scratch)

    tier.load = fail_once  # type: ignore[method-assign,assignment]
    found = _verify(harness)
    assert (found.damaged, found.unreadable) == (0, 0)
    assert found.checked == found.total
    harness.region.close()


def test_slots_that_change_meanwhile_are_no_damage() -> None:
    harness = _harness()
    stop, rng = threading.Event(), random.Random(3)

    def load() -> None:
        while not stop.is_set():
            slot = rng.randrange(900)
            harness.store(slot, page(rng.choice(KINDS), rng.randrange(99)))
            if rng.random() < 0.05:
                harness.down.demote(20)
            if rng.random() < 0.2:
                harness.layer.discard_run(rng.randrange(900), 2)

    loading = threading.Thread(target=load)
    loading.start()
    try:
        for _ in range(5):
            found = _verify(harness)
            assert (found.damaged, found.unreadable, found.lost) == (0, 0, 0), found.told
    finally:
        stop.set()
        loading.join(30)
    harness.check()
    harness.region.close()


def test_it_ends_when_it_is_told_to() -> None:
    harness = _harness()
    work = Verify(harness.layer, None, memoryview(bytearray(fetch.SCRATCH_BYTES)), rest=_no_rest)
    assert not work.run(lambda: work.findings.checked < 40)
    assert 40 <= work.findings.checked < work.findings.total
    harness.region.close()

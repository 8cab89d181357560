"""The pool is made smaller and larger with pages in it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from swapfs.region.layout import ZSPAGE_BYTES, Geometry, Region
from swapfs.server.pool_size import POOL_BYTES_MIN, PoolSize
from swapfs.server.tiering import Tiering
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import KINDS, page
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.entry import HEAT_MASK, MOVING, move_pool
from swapfs.vlayer.layer import SlotDamaged
from swapfs.vlayer.shrink import Shrink, grow
from swapfs.wire.link import Link

SLOTS = 8 * CLUSTER_SLOTS
ZSPAGES = 64


def _harness(tier: MemoryTier | None = None) -> Harness:
    return Harness(SLOTS, ZSPAGES * ZSPAGE_BYTES, tier)


def _fill(harness: Harness, count: int, seed: int = 3) -> dict[int, bytes]:
    rng, pages = random.Random(seed), {}
    for _ in range(count):
        slot, data = rng.randrange(SLOTS), page(rng.choice(KINDS), rng.randrange(99))
        if harness.store(slot, data):
            pages[slot] = data
    return pages


def _verify(harness: Harness, pages: dict[int, bytes]) -> None:
    harness.check()
    for slot, data in pages.items():
        assert harness.load(slot) == data


def _never(_: int) -> bool:
    return False


def test_what_lies_beyond_the_end_is_moved_and_nothing_comes_to_lie_there() -> None:
    harness = _harness()
    pages = _fill(harness, 600)
    for slot in list(pages)[::2]:
        harness.layer.discard_run(slot, 1)
        del pages[slot]
    # The table pages lie at both ends too.
    limit = harness.layer.pool.zspages.in_use + 6
    assert limit < ZSPAGES
    assert Shrink(harness.layer, limit, _never).run()
    assert harness.layer.pool.limit_bytes == limit * ZSPAGE_BYTES
    _verify(harness, pages)
    pages |= _fill(harness, 900, seed=4)
    _verify(harness, pages)
    assert harness.layer.pool.used_bytes <= limit * ZSPAGE_BYTES
    grow(harness.layer, ZSPAGES)
    pages |= _fill(harness, 900, seed=5)
    _verify(harness, pages)
    harness.region.close()


def test_it_is_undone_when_there_is_no_room() -> None:
    harness = _harness()
    pages = _fill(harness, 3000)
    before = harness.layer.pool.stats()
    assert not Shrink(harness.layer, 8, harness.stalled.compactor.make_room).run()
    assert harness.layer.pool.limit_bytes == before.limit_bytes
    _verify(harness, pages)
    pages |= _fill(harness, 300, seed=7)
    _verify(harness, pages)
    harness.region.close()


def test_what_has_no_place_goes_down() -> None:
    harness = _harness(MemoryTier(20))
    pages = _fill(harness, 3000)
    assert harness.layer.pool.zspages.in_use > 24
    done = Shrink(harness.layer, 16, lambda want: harness.down.demote(want) > 0).run()
    assert done
    assert harness.layer.table.state_counts()["file"] > 0
    _verify(harness, pages)
    harness.region.close()


def test_a_blob_on_its_way_is_waited_for_and_a_stop_undoes() -> None:
    harness = _harness(MemoryTier(20))
    pages = _fill(harness, 2000)
    slot = next(s for s in pages if harness.layer.table.get(s) & 7 == 2)
    harness.layer.table.mark(slot, MOVING, on=True)
    calls = []

    def go_on() -> bool:
        calls.append(1)
        if len(calls) == 3:
            harness.layer.table.mark(slot, MOVING, on=False)
        return len(calls) < 20

    assert not Shrink(harness.layer, 1, _never).run(go_on)
    harness.layer.table.mark(slot, MOVING, on=False)
    assert Shrink(harness.layer, 20, lambda want: harness.down.demote(want) > 0).run(go_on)
    _verify(harness, pages)
    harness.region.close()


def test_pages_are_written_read_and_discarded_meanwhile() -> None:
    harness = _harness(MemoryTier(40))
    pages = _fill(harness, 2500)
    stop = threading.Event()
    rng = random.Random(5)
    wrong: list[int] = []

    def load() -> None:
        while not stop.is_set():
            slot = rng.randrange(SLOTS)
            data = page(rng.choice(KINDS), rng.randrange(99))
            if rng.random() < 0.2:
                harness.layer.discard_run(slot, 1)
                pages.pop(slot, None)
            elif harness.store(slot, data):
                pages[slot] = data
            other = rng.randrange(SLOTS)
            if harness.load(other) != pages.get(other, bytes(PAGE_SIZE)):
                wrong.append(other)

    loading = threading.Thread(target=load)
    loading.start()
    try:
        for limit in (40, 24, 60, 20, 64, 32):
            if limit * ZSPAGE_BYTES > harness.layer.pool.limit_bytes:
                grow(harness.layer, limit)
            else:
                assert Shrink(
                    harness.layer, limit, lambda want: harness.down.demote(want) > 0
                ).run()
    finally:
        stop.set()
        loading.join(30)
    assert wrong == []
    _verify(harness, pages)
    harness.region.close()


def test_the_end_of_the_arena_is_no_memory_until_it_is_opened() -> None:
    geometry = Geometry(64 * MiB, 32 * MiB)
    region = Region.create(geometry, 8 * MiB)

    def held_bytes() -> int:
        return os.fstat(region.fd).st_blocks * 512

    fixed = geometry.arena_offset
    assert held_bytes() == fixed + 8 * MiB
    assert region.pool_bytes == Region.attach(os.dup(region.fd)).pool_bytes == 8 * MiB
    region.open_arena(8 * MiB, 24 * MiB)
    region.arena[20 * MiB] = 7
    region.pool_bytes = 24 * MiB
    assert held_bytes() == fixed + 24 * MiB
    region.close_arena(12 * MiB)
    region.pool_bytes = 12 * MiB
    region.give_back(12 * MiB)
    assert held_bytes() == fixed + 12 * MiB
    region.open_arena(12 * MiB, 32 * MiB)
    assert region.arena[20 * MiB] == 0
    region.close()


@pytest.mark.parametrize("limit", [16, 40])
def test_another_server_has_the_pool_as_large_as_the_region_says(limit: int) -> None:
    harness = _harness(MemoryTier(40))
    pages = _fill(harness, 1500)
    assert Shrink(harness.layer, limit, lambda want: harness.down.demote(want) > 0).run()
    harness.region.pool_bytes = limit * ZSPAGE_BYTES
    again = Harness(SLOTS, ZSPAGES * ZSPAGE_BYTES, harness.tier, region=harness.region)
    assert again.layer.pool.limit_bytes == limit * ZSPAGE_BYTES
    _verify(again, pages)
    again.region.close()


def test_a_damaged_word_that_names_a_place_beyond_the_end_costs_its_slot_only() -> None:
    """What lies there may not be touched: it would be the end of the server, with every page."""
    end = 16 * ZSPAGE_BYTES
    region = Region.create(Geometry(SLOTS * PAGE_SIZE, ZSPAGES * ZSPAGE_BYTES), end)
    harness = Harness(SLOTS, ZSPAGES * ZSPAGE_BYTES, region=region)
    pages = [page("text", seed) for seed in range(5)]
    harness.store(0, *pages)
    index = harness.layer.table.base(0) + 3
    region.arena_words[index] = move_pool(region.arena_words[index], 2 * end) & ~HEAT_MASK
    with pytest.raises(SlotDamaged):
        harness.load(3)
    assert harness.layer.reader(SLOTS * PAGE_SIZE).read(0, 5 * PAGE_SIZE, bytearray(1 << 16)) == -1
    harness.recompress()
    assert harness.load(0, 3) == b"".join(pages[:3])
    cluster = region.directory[0]
    region.directory[0] = (2 * end) // PAGE_SIZE + 1
    assert harness.layer.reader(SLOTS * PAGE_SIZE).read(0, PAGE_SIZE, bytearray(1 << 16)) == -1
    region.directory[0] = cluster
    assert harness.load(4) == pages[4]
    region.close()


class _Monitor(Link):
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def ask(self, operation: str, fd: int | None = None, **arguments: int) -> None:
        self.asked.append((operation, arguments["start"]))


class _Engaged(Tiering):
    """Has something else to end before it lets anybody be alone."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before

    @contextmanager
    def alone(self) -> Iterator[None]:
        self._before()
        yield


def test_a_pool_that_grows_while_trimming_waits_keeps_its_memory() -> None:
    """Else a new server gives back what pages lie in by then."""
    region = Region.create(Geometry(SLOTS * PAGE_SIZE, ZSPAGES * ZSPAGE_BYTES), 16 * ZSPAGE_BYTES)
    harness = Harness(SLOTS, ZSPAGES * ZSPAGE_BYTES, region=region)
    monitor = _Monitor()

    def grow_first() -> None:
        region.open_arena(16 * ZSPAGE_BYTES, 40 * ZSPAGE_BYTES)
        region.pool_bytes = 40 * ZSPAGE_BYTES
        grow(harness.layer, 40)

    size = PoolSize(
        *(region, harness.layer, monitor, _Engaged(grow_first)),
        make_room=_never,
        fit=lambda _: None,
    )
    assert size.trim()
    assert monitor.asked == [("close pool", 40 * ZSPAGE_BYTES)]
    _verify(harness, _fill(harness, 1000))
    region.close()


def test_a_bug_while_the_pool_shrinks_leaves_watermarks_for_all_of_it() -> None:
    harness = Harness(SLOTS, 2 * POOL_BYTES_MIN)
    pages = {slot: page("random", slot) for slot in range(POOL_BYTES_MIN * 3 // 2 // PAGE_SIZE)}
    assert harness.store(0, *pages.values()) == len(pages)
    fitted: list[int] = []
    size = PoolSize(
        *(harness.region, harness.layer, _Monitor(), _Engaged(lambda: None)),
        make_room=lambda _: 1 // 0 == 0,
        fit=fitted.append,
    )
    size.start(POOL_BYTES_MIN, force=True)
    resizing = [each for each in threading.enumerate() if each.name == "resize"]
    for thread in resizing:
        thread.join(60)
    assert "ZeroDivisionError" in size.problem
    assert fitted == [POOL_BYTES_MIN, harness.region.pool_bytes]
    _verify(harness, pages)
    harness.region.close()

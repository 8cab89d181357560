"""Pages in and out of slots, in memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from swapfs.region.layout import ZSPAGE_BYTES
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import KINDS, mixed_pages, page
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB, TiB
from swapfs.vlayer.entry import (
    HEAT_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    MOVING,
    Backing,
    Kind,
    move_pool,
    pool_place,
)
from swapfs.vlayer.layer import SlotDamaged

STATE_OF = {"zero": "same", "text": "compressed", "numbers": "compressed", "random": "raw"}


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(8 * CLUSTER_SLOTS, 4 * MiB)
    yield harness
    harness.region.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_page_round_trips(harness: Harness, kind: str) -> None:
    pages = [page(kind, seed) for seed in range(6)]
    assert harness.store(1000, *pages) == 6
    assert harness.load(1000, 6) == b"".join(pages)
    assert harness.load(999) == bytes(PAGE_SIZE)
    harness.check()
    if kind in STATE_OF:
        assert harness.layer.table.state_counts()[STATE_OF[kind]] == 6


def test_a_repeated_word_that_fits_no_entry_is_compressed(harness: Harness) -> None:
    data = 0x123456789ABCDEF0.to_bytes(8, "little") * 512
    harness.store(0, data)
    assert harness.layer.table.state_counts()["compressed"] == 1
    assert harness.load(0) == data


def test_runs_cross_clusters(harness: Harness) -> None:
    pages = mixed_pages(1, 40)
    first = 2 * CLUSTER_SLOTS - 20
    assert harness.store(first, *pages) == 40
    assert harness.load(first, 40) == b"".join(pages)
    assert harness.load(0, 3 * CLUSTER_SLOTS)[first * PAGE_SIZE :][: 40 * PAGE_SIZE] == b"".join(
        pages
    )
    harness.check()


def test_a_rewrite_frees_what_it_replaces(harness: Harness) -> None:
    for kind in (*KINDS, *reversed(KINDS)):
        harness.store(7, page(kind, 1))
        harness.check()
        assert harness.load(7) == page(kind, 1)
    assert harness.layer.pool.used_bytes <= 2 * ZSPAGE_BYTES


@pytest.mark.parametrize(("start", "size"), [(0, 1), (4095, 1), (0, 4096), (100, 512), (7, 3000)])
@pytest.mark.parametrize("kind", [None, "text", "random", "zero"])
def test_patch(harness: Harness, kind: str | None, start: int, size: int) -> None:
    old = bytes(PAGE_SIZE)
    if kind:
        old = page(kind, 2)
        harness.store(3, old)
    data = page("random", 9)[:size]
    assert harness.layer.patch(3, start, data, bytearray(PAGE_SIZE)) is True
    assert harness.load(3) == old[:start] + data + old[start + size :]
    harness.check()


@pytest.mark.parametrize(
    ("slot", "count"), [(0, 4096), (5, 1), (500, 30), (CLUSTER_SLOTS, CLUSTER_SLOTS), (4090, 6)]
)
def test_discard_empties_exactly_its_range(harness: Harness, slot: int, count: int) -> None:
    pages = mixed_pages(5, 30)
    firsts = [0, 490, CLUSTER_SLOTS, 2 * CLUSTER_SLOTS - 10, 4066]
    held: dict[int, bytes] = {}
    for first in firsts:
        harness.store(first, *pages)
        held |= {first + index: data for index, data in enumerate(pages)}
    expected = sum(slot <= at < slot + count for at in held)
    assert harness.layer.discard_run(slot, count) == expected
    assert harness.layer.discard_run(slot, count) == 0
    harness.check()
    for at, data in held.items():
        inside = slot <= at < slot + count
        assert harness.load(at) == (bytes(PAGE_SIZE) if inside else data)


def test_a_discarded_terabyte_costs_what_was_stored() -> None:
    harness = Harness(TiB // PAGE_SIZE, 4 * MiB)
    slots = [number * 1_000_003 for number in range(250)]
    for slot in slots:
        harness.store(slot, page("same", slot))
    assert harness.layer.table.live_clusters == 250
    assert harness.layer.discard_run(0, TiB // PAGE_SIZE) == 250
    assert harness.layer.pool.used_bytes == 0
    assert harness.layer.discard_run(0, TiB // PAGE_SIZE) == 0
    harness.region.close()


def test_a_full_pool_keeps_everything_readable() -> None:
    harness = Harness(CLUSTER_SLOTS, 4 * ZSPAGE_BYTES)
    stored = 0
    while harness.store(stored, page("random", stored)):
        stored += 1
    assert stored >= 40
    assert harness.store(0, page("random", 999)) == 0
    assert harness.layer.patch(1, 0, b"new", bytearray(PAGE_SIZE)) is False
    assert harness.store(stored, page("zero", 0)) == 1, "a repeated word needs no room"
    harness.check()
    for slot in range(stored):
        assert harness.load(slot) == page("random", slot)
    harness.layer.discard_run(3, 1)
    assert harness.store(0, page("random", 999)) == 1
    harness.region.close()


def test_a_store_that_stops_half_way_says_where() -> None:
    harness = Harness(CLUSTER_SLOTS, 4 * ZSPAGE_BYTES)
    pages = [page("random", seed) for seed in range(100)]
    stored = harness.store(0, *pages)
    assert 40 <= stored < 100
    assert harness.load(0, stored) == b"".join(pages[:stored])
    assert harness.load(stored) == bytes(PAGE_SIZE)
    harness.region.close()


@pytest.mark.parametrize("how", ["store", "patch", "replace"])
def test_a_refused_first_page_of_a_cluster_leaves_no_table_page(how: str) -> None:
    harness = Harness(20 * CLUSTER_SLOTS, 8 * ZSPAGE_BYTES, MemoryTier(4))
    slot = 0
    while harness.store(slot, page("random", slot)):
        slot += 1
    data, far = page("random", 5000), 5 * CLUSTER_SLOTS
    if how == "store":
        assert harness.store(far, data) == 0
    elif how == "patch":
        assert harness.layer.patch(far, 0, data, bytearray(PAGE_SIZE)) is False
    else:
        assert harness.layer.replace_file_page(far, 0, memoryview(data)) is False
    harness.check()
    assert harness.layer.table.live_clusters == 1
    harness.region.close()


def test_damage_in_memory_is_one_slot_only(harness: Harness) -> None:
    pages = [page("text", seed) for seed in range(4)]
    harness.store(0, *pages)
    blob = harness.layer.blob(harness.layer.table.get(2))
    blob[:] = b"\xff" * len(blob)
    assert harness.load(0, 4) == b"".join(pages[:2])
    with pytest.raises(SlotDamaged, match="slot 2"):
        harness.load(2)
    with pytest.raises(SlotDamaged):
        harness.layer.patch(2, 0, b"x", bytearray(PAGE_SIZE))
    assert harness.load(3) == pages[3]
    harness.store(2, pages[0])
    assert harness.load(2) == pages[0]


@pytest.mark.parametrize("word", [0xABC0, MOVING, HEAT_MASK, int(Kind.LOST), 0xABC3])
def test_a_word_that_means_nothing_is_damage_and_not_a_wait(word: int) -> None:
    harness = Harness(CLUSTER_SLOTS, 4 * MiB, MemoryTier(4))
    harness.store(0, page("text", 1), page("text", 2))
    harness.region.arena_words[harness.layer.table.base(0)] = word
    with pytest.raises(SlotDamaged):
        harness.load(0)
    assert harness.load(1) == page("text", 2)


@pytest.mark.parametrize("new", ["text", "same"])
def test_writing_over_a_damaged_slot_damages_no_other(harness: Harness, new: str) -> None:
    pages = [page("text", seed) for seed in range(40)]
    harness.store(0, *pages)
    table, words = harness.layer.table, harness.region.arena_words
    word = table.get(7)
    words[table.base(0) + 7] = move_pool(word, pool_place(word) + 16)
    with pytest.raises((AssertionError, SlotDamaged)):
        harness.store(7, page(new, 99))
    for seed in range(60):
        harness.store(60 + seed, page("text", 100 + seed))
    for slot in (*range(7), *range(8, 40)):
        assert harness.load(slot) == pages[slot], slot


def test_a_slot_in_the_file_ends_a_load_and_a_patch() -> None:
    harness = Harness(CLUSTER_SLOTS, 4 * MiB, MemoryTier(4))
    pages = [page("text", seed) for seed in range(4)]
    harness.store(0, *pages)
    harness.write_direct(2, pages[2])
    assert harness.backing(2) == Backing.BELOW
    out = memoryview(bytearray(4 * PAGE_SIZE))
    assert harness.layer.load_run(0, 4, out, 0) == 2
    assert harness.layer.patch(2, 0, b"x", bytearray(PAGE_SIZE)) is None
    seen = harness.layer.table.get(2)
    assert harness.layer.replace_file_page(2, seen ^ 1 << 40, memoryview(pages[0])) is None
    assert harness.layer.replace_file_page(2, seen, memoryview(pages[0])) is True
    assert harness.load(0, 4) == b"".join([*pages[:2], pages[0], pages[3]])
    assert harness.backing(2) == Backing.POOL
    harness.check()
    harness.region.close()


def test_counters_say_what_happened(harness: Harness) -> None:
    harness.store(0, page("zero", 0), page("text", 0), page("random", 0))
    harness.load(0, 4)
    harness.load(4 * CLUSTER_SLOTS, 3)
    names = ["write_same_pages", "write_compressed_pages", "write_raw_pages"]
    names += ["read_same_pages", "read_pool_pages", "read_empty_pages"]
    assert [harness.counter(name) for name in names] == [1, 1, 1, 1, 2, 4]


def test_metadata_costs_little_per_slot() -> None:
    harness = Harness(64 * CLUSTER_SLOTS, 64 * MiB)
    pages = mixed_pages(2, 64)
    for first in range(0, 16 * CLUSTER_SLOTS, 64):
        assert harness.store(first, *pages) == 64
    table = harness.layer.table
    occupied = table.slots - table.state_counts()["empty"]
    assert table.table_bytes / occupied <= 16
    harness.region.close()


def test_a_new_server_finds_every_page() -> None:
    harness = Harness(8 * CLUSTER_SLOTS, 4 * MiB)
    pages = mixed_pages(8, 300)
    harness.store(400, *pages)
    again = Harness(8 * CLUSTER_SLOTS, 4 * MiB, region=harness.region)
    again.check()
    assert again.load(400, 300) == b"".join(pages)
    before, after = harness.layer.pool.stats(), again.layer.pool.stats()
    assert (before.used_bytes, before.payload_bytes) == (after.used_bytes, after.payload_bytes)
    harness.region.close()


def test_two_threads_that_change_parts_of_a_page_undo_nothing_of_each_other() -> None:
    harness = Harness(CLUSTER_SLOTS, 16 * ZSPAGE_BYTES)
    harness.store(0, page("text", 1))
    wrong: list[tuple[int, int]] = []

    def work(half: int) -> None:
        scratch, out = bytearray(PAGE_SIZE), bytearray(PAGE_SIZE)
        start = half * PAGE_SIZE // 2
        for number in range(2000):
            mine = number.to_bytes(4, "little")
            assert harness.layer.patch(0, start, mine, scratch)
            assert harness.layer.load_run(0, 1, memoryview(out), 0) == 1
            if out[start : start + 4] != mine:
                wrong.append((half, number))
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(half,)) for half in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    harness.check()
    harness.region.close()


def test_a_damaged_free_list_overwrites_no_other_slot() -> None:
    harness = Harness(512, 16 * ZSPAGE_BYTES)
    pages = [page("random", seed) for seed in range(34)]
    harness.store(0, *pages[:32])  # two full zspages
    zspages = [pool_place(harness.layer.table.get(slot)) // ZSPAGE_BYTES for slot in range(32)]
    zspage = zspages[3]
    inside = [slot for slot in range(32) if zspages[slot] == zspage]
    words = {slot: harness.layer.table.get(slot) for slot in inside}
    harness.layer.discard_run(inside[0], 1)
    harness.layer.discard_run(inside[1], 1)
    link = pool_place(words[inside[1]])  # freed last, so it is the first of the list
    harness.region.arena[link : link + 2] = b"\xff\xff"
    with pytest.raises(AssertionError, match="damaged"):
        harness.store(100, *pages[32:])
    for slot in set(range(32)) - set(inside[:2]):
        assert harness.load(slot) == pages[slot]
    harness.region.close()


@pytest.mark.parametrize(
    "damage", ["twice", "inside an object", "a free zspage", "past the end", "too long"]
)
def test_a_new_server_refuses_a_table_that_contradicts_the_pool(damage: str) -> None:
    harness = Harness(CLUSTER_SLOTS, 8 * ZSPAGE_BYTES)
    assert harness.store(0, page("text", 1), page("text", 2)) == 2
    table, words = harness.layer.table, harness.region.arena_words
    word, index = table.get(0), table.base(0) + 1
    place = pool_place(word)
    words[index] = {
        "twice": word,
        "inside an object": move_pool(word, place + 16),
        "a free zspage": move_pool(word, 7 * ZSPAGE_BYTES),
        "past the end": move_pool(word, 8 * ZSPAGE_BYTES),
        "too long": words[index] | LENGTH_MASK << LENGTH_SHIFT,
    }[damage]
    with pytest.raises(AssertionError, match="the table names a place"):
        Harness(CLUSTER_SLOTS, 8 * ZSPAGE_BYTES, region=harness.region)


def test_a_copy_that_was_under_way_is_forgotten_by_a_new_server() -> None:
    harness = Harness(CLUSTER_SLOTS, 4 * MiB, MemoryTier(4))
    harness.store(0, *[page("text", seed) for seed in range(3)])
    harness.layer.table.mark(1, MOVING, on=True)
    again = Harness(CLUSTER_SLOTS, 4 * MiB, MemoryTier(4), region=harness.region)
    again.check()
    assert again.down.demote(3) == 3
    assert again.load(1) == page("text", 1)
    harness.region.close()


def test_a_long_discard_lets_others_in(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(3 * CLUSTER_SLOTS, 2 * MiB)
    for slot in range(3 * CLUSTER_SLOTS):
        assert harness.store(slot, page("same", slot % 7)) == 1
    seen = []

    class Noted:
        """The layer's lock, and how many slots are empty whenever others may have it."""

        lock = harness.layer.lock
        acquire, release, __enter__ = lock.acquire, lock.release, lock.__enter__

        def __exit__(self, *_: object) -> None:
            self.lock.release()

        def resched(self) -> None:
            seen.append(harness.layer.table.state_counts()["empty"])
            self.lock.resched()

    monkeypatch.setattr(harness.layer, "lock", Noted())
    assert harness.layer.discard_run(10, 2 * CLUSTER_SLOTS, background=True) == 2 * CLUSTER_SLOTS
    assert all(0 < after - before <= 64 for before, after in pairwise([0, *seen]))
    assert seen[-1] == 2 * CLUSTER_SLOTS
    harness.check()
    harness.region.close()


def test_a_lost_slot_is_an_error_until_it_is_written_or_discarded() -> None:
    harness = Harness(CLUSTER_SLOTS, 4 * MiB, MemoryTier(4))
    for slot in (5, 6, 7):
        harness.store(slot, page("text", slot))
        with harness.layer.lock:
            harness.layer.free(slot, harness.layer.table.exchange(slot, Kind.LOST, "lose"))
    harness.check()
    harness = Harness(CLUSTER_SLOTS, 4 * MiB, MemoryTier(4), region=harness.region)
    assert harness.layer.table.state_counts()["lost"] == 3
    with pytest.raises(SlotDamaged, match="lost"):
        harness.load(5)
    with pytest.raises(SlotDamaged):
        harness.layer.patch(5, 3, b"x", bytearray(PAGE_SIZE))
    assert harness.layer.discard_run(5, 1) == 1
    assert harness.load(5) == bytes(PAGE_SIZE)
    assert harness.store(6, page("text", 1)) == 1
    assert harness.load(6) == page("text", 1)
    assert harness.write_direct(7, page("text", 2)) == PAGE_SIZE
    assert harness.load(7) == page("text", 2)
    harness.check()
    harness.region.close()

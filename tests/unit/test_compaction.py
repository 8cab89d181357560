"""Moving blobs together in the pool, and what that guarantees (I6)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from errno import EIO, ENOSPC
from pathlib import Path
from typing import Any

import pytest

from swapfs.config.backing import FileTierConfig
from swapfs.config.model import Config
from swapfs.core._core import PLACE_SHIFT
from swapfs.region.layout import ZSPAGE_BYTES
from swapfs.testing.harness import Harness, Ticket
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.tiers.pool import RAW_CLASS
from swapfs.tiers.segments import SEGMENT_BYTES, guaranteed_pages
from swapfs.units import CLUSTER_BYTES, CLUSTER_SLOTS, PAGE_SIZE, GiB, MiB, TiB
from swapfs.vlayer import compaction, stalled
from swapfs.vlayer.capacity import geometry_for, guaranteed_bytes
from swapfs.vlayer.compaction import Compactor
from swapfs.vlayer.entry import HEAT_MASK, MOVING
from swapfs.vlayer.stalled import StalledWrites

SLOTS = 8 * CLUSTER_SLOTS
POOL_BYTES = 2 * MiB
KINDS = ("text", "heap", "random", "zero")


def _config(size_bytes: int, pool_bytes: int, file_bytes: int = 0) -> Config:
    file = FileTierConfig(Path("/x"), file_bytes) if file_bytes else None
    return Config(mountpoint=Path("/m"), size_bytes=size_bytes, pool_bytes=pool_bytes, file=file)


def _guaranteed(config: Config) -> int:
    geometry = geometry_for(config.size_bytes, config.pool_bytes)
    return guaranteed_bytes(geometry, *config.tier_bytes)


def _fit(config: Config) -> Config:
    """Return *config* with the largest size that is guaranteed."""
    size = config.size_bytes
    while size > _guaranteed(replace(config, size_bytes=size)):
        size = _guaranteed(replace(config, size_bytes=size))
    return replace(config, size_bytes=size)


def _fragmented(kept_every: int, kind: str = "text") -> tuple[Harness, dict[int, bytes]]:
    """Return a harness that was full, and what is left of it."""
    harness, model = Harness(SLOTS, POOL_BYTES), {}
    slot = 0
    while harness.store(slot, page(kind, slot)):
        model[slot] = page(kind, slot)
        slot += 1
    for number in list(model):
        if number % kept_every:
            harness.layer.discard_run(number, 1)
            del model[number]
    return harness, model


def _assert_holds(harness: Harness, model: dict[int, bytes]) -> None:
    harness.check()
    for slot, data in model.items():
        assert harness.load(slot) == data, slot


# ---- the guarantee ----


@pytest.mark.parametrize(("segments", "seed"), [*((0, seed) for seed in range(6)), (5, 1), (5, 2)])
def test_the_guaranteed_room_can_be_filled_after_any_history(segments: int, seed: int) -> None:
    """Every write of a swap file as large as the guarantee succeeds."""
    rng = random.Random(seed)
    config = _fit(_config(16 * MiB, 4 * MiB, segments * SEGMENT_BYTES))
    geometry = geometry_for(config.size_bytes, config.pool_bytes)
    room_bytes = 4 * MiB + guaranteed_pages(segments) * PAGE_SIZE
    assert room_bytes - 3 * ZSPAGE_BYTES < config.size_bytes < room_bytes
    tier = MemoryTier(segments) if segments else None
    harness = Harness(geometry.slots, geometry.pool_bytes, tier)
    model: dict[int, bytes] = {}
    kinds = [*rng.choices(KINDS, k=2), "random"]

    def write(slot: int, kind: str) -> None:
        length = rng.choice((PAGE_SIZE, rng.randrange(PAGE_SIZE)))
        data = page(kind, rng.randrange(500))[:length].ljust(PAGE_SIZE, b"\1")
        assert harness.write(slot, data) == PAGE_SIZE, "I6"
        model[slot] = data

    for _ in range(3):
        for _ in range(rng.choice((500, 3000))):
            slot = rng.randrange(geometry.slots)
            if rng.random() < 0.3:
                harness.layer.discard_run(slot, 1)
                model.pop(slot, None)
            else:
                write(slot, rng.choice(kinds))
        slots = list(range(geometry.slots))
        rng.shuffle(slots)
        for slot in slots:
            write(slot, "random" if rng.random() < 0.97 else rng.choice(kinds))
        _assert_holds(harness, model)
        if not segments:
            harness = Harness(geometry.slots, geometry.pool_bytes, region=harness.region)
    for slot in slots:
        data = rng.randbytes(PAGE_SIZE)
        assert harness.write(slot, data) == PAGE_SIZE
        model[slot] = data
    states = harness.layer.table.state_counts()
    assert states["raw"] + states["file"] == geometry.slots, "full of whole pages"
    _assert_holds(harness, model)
    harness.region.close()


def test_one_blob_of_every_size_pins_nothing() -> None:
    harness, model = Harness(SLOTS, POOL_BYTES), {}
    rng = random.Random(1)
    for slot in range(60):
        model[slot] = rng.randbytes(64 * (slot + 1)).ljust(PAGE_SIZE, b"\1")
    for slot, data in model.items():
        assert harness.write(slot, data) == PAGE_SIZE
    raw = 60
    while harness.write(raw, rng.randbytes(PAGE_SIZE)) == PAGE_SIZE:
        raw += 1
    assert raw >= (POOL_BYTES // ZSPAGE_BYTES - 2) * 16 - 1
    _assert_holds(harness, model)
    harness.region.close()


def test_table_zspages_that_emptied_in_part_do_not_eat_the_room() -> None:
    clusters = 64
    harness = Harness(clusters * CLUSTER_SLOTS, POOL_BYTES)
    for cluster in range(clusters):
        assert harness.write(cluster * CLUSTER_SLOTS, page("zero", 1)) == PAGE_SIZE
    for cluster in range(clusters):
        if cluster % 16:
            harness.layer.discard_run(cluster * CLUSTER_SLOTS, 1)
    pool = harness.layer.pool
    assert pool.table_zspages == 4
    assert pool.reserve_zspages == 0, "what is missing has places in those four"
    raw = 0
    while harness.write(raw, page("random", raw)) == PAGE_SIZE:
        raw += 1
    assert raw >= (POOL_BYTES // ZSPAGE_BYTES - 4 - 1) * 16 - 1
    for cluster in range(clusters):
        assert harness.write(cluster * CLUSTER_SLOTS + 500, page("zero", 1)) == PAGE_SIZE
    harness.region.close()


def test_guaranteed_room() -> None:
    pool = 64 * MiB
    assert _guaranteed(_config(32 * MiB, pool)) == pool - 2 * ZSPAGE_BYTES - PAGE_SIZE
    with_file = _guaranteed(_config(32 * MiB, pool, GiB))
    assert pool + GiB // 2 < with_file < pool + GiB
    # The tables of 1 TiB would take 2 GiB; those that fit into 1/8 of the pool name 4 GiB.
    thin = _config(TiB, pool, TiB)
    assert _guaranteed(thin) == pool // 8 // PAGE_SIZE * CLUSTER_BYTES
    assert _fit(thin).size_bytes == _guaranteed(thin)


# ---- packing ----


def test_packing_frees_what_can_be_freed() -> None:
    harness, model = _fragmented(20)
    pool = harness.layer.pool
    before = pool.free_zspages
    gains = sum(pool.zspages.gain(size_class) for size_class in range(RAW_CLASS + 1))
    assert gains > pool.zspages.count // 2
    compactor = Compactor(harness.layer)
    gained = 0
    while step := compactor.pack(8):
        assert step <= 8
        gained += step
        harness.check()
    assert pool.free_zspages == before + gained
    assert gained >= gains
    assert all(pool.zspages.gain(size_class) <= 0 for size_class in range(RAW_CLASS + 1))
    assert 0 < harness.counter("compacted_pages") <= len(model)
    _assert_holds(harness, model)
    harness.region.close()


def test_a_move_keeps_the_bits_and_changes_the_place() -> None:
    harness, model = _fragmented(20)
    table = harness.layer.table
    for number, slot in enumerate(model):
        table.mark(slot, HEAT_MASK, on=bool(number % 2))
    before = {slot: table.get(slot) for slot in model}
    assert Compactor(harness.layer).pack(100)
    moved = [slot for slot in model if table.get(slot) != before[slot]]
    assert len(moved) == harness.counter("compacted_pages") > 0
    low_bits = (1 << PLACE_SHIFT) - 1
    assert all(not (table.get(slot) ^ before[slot]) & low_bits for slot in model)
    assert {bool(before[slot] & HEAT_MASK) for slot in moved} == {False, True}
    harness.region.close()


def test_what_is_being_moved_is_left_alone_unless_a_write_waits() -> None:
    harness, model = _fragmented(20)
    table, compactor = harness.layer.table, Compactor(harness.layer)
    for slot in model:
        table.mark(slot, MOVING, on=True)
    before = {slot: table.get(slot) for slot in model}
    assert compactor.pack(100) == 0
    assert {slot: table.get(slot) for slot in model} == before
    assert compactor.squeeze(10) > 0
    changed = [slot for slot in model if table.get(slot) != before[slot]]
    assert changed
    assert not any(table.get(slot) & MOVING for slot in changed), "who copies them loses"
    for slot in model:
        table.mark(slot, MOVING, on=False)
    assert compactor.pack(100) > 0
    _assert_holds(harness, model)
    harness.region.close()


def test_no_walk_without_a_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    harness, _ = _fragmented(1, kind="random")
    compactor = Compactor(harness.layer)

    def walk(*_: object) -> None:
        raise AssertionError("walks over the table")

    monkeypatch.setattr(harness.layer, "live_clusters", walk)
    assert compactor.is_low()
    assert compactor.compact_if_low() == 0
    assert not compactor.make_room(16)
    harness.region.close()


def test_tidy_waits_until_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    harness, model = _fragmented(20)
    compactor = Compactor(harness.layer)
    compactor.low_zspages = 0
    assert not compactor.is_low()
    assert compactor.compact_if_low() == 0
    compactor.low_zspages = harness.layer.pool.zspages.count
    monkeypatch.setattr(compactor, "worth_zspages", 1000)
    assert compactor.compact_if_low() == 0
    monkeypatch.setattr(compactor, "worth_zspages", 1)
    assert compactor.compact_if_low() > 0
    _assert_holds(harness, model)
    harness.region.close()


def test_the_work_of_a_round_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    harness, model = _fragmented(20)
    monkeypatch.setattr(compaction, "MOVES_MAX", 10)
    assert Compactor(harness.layer).pack(100) > 0
    assert harness.counter("compacted_pages") <= 10
    _assert_holds(harness, model)
    harness.region.close()


@pytest.mark.parametrize("moves", [0, 1, 7])
def test_a_crash_in_mid_round_loses_nothing(moves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    harness, model = _fragmented(20)
    exchange = harness.layer.table.exchange
    left = [moves]

    def dying(slot: int, new: int, cause: str) -> int:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return exchange(slot, new, cause)

    monkeypatch.setattr(harness.layer.table, "exchange", dying)
    with pytest.raises(KeyboardInterrupt):
        Compactor(harness.layer).pack(100)
    harness = Harness(SLOTS, POOL_BYTES, region=harness.region)
    _assert_holds(harness, model)
    assert Compactor(harness.layer).pack(100) > 0
    _assert_holds(harness, model)
    harness.region.close()


def _history(harness: Harness, rng: random.Random) -> dict[int, bytes]:
    model: dict[int, bytes] = {}
    for _ in range(4000):
        slot, choice = rng.randrange(1500), rng.random()
        if choice < 0.5:
            data = page(rng.choice(KINDS), rng.randrange(100))
            if harness.store(slot, data):
                model[slot] = data
        elif choice < 0.7:
            harness.layer.discard_run(slot, 3)
            for gone in range(slot, slot + 3):
                model.pop(gone, None)
        else:
            assert harness.load(slot) == model.get(slot, bytes(PAGE_SIZE))
    return model


def test_rounds_beside_everything_else() -> None:
    """One thread compacts, one demotes, one writes, reads and discards."""
    harness = Harness(SLOTS, POOL_BYTES, MemoryTier(16))
    compactor, done = Compactor(harness.layer), threading.Event()
    errors: list[Exception] = []

    def beside(work: Callable[[], object]) -> threading.Thread:
        def loop() -> None:
            try:
                while not done.is_set():
                    work()
            except Exception as error:  # noqa: BLE001 - the test shows it
                errors.append(error)

        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    threads = [
        beside(lambda: (compactor.pack(20), compactor.squeeze(10))),
        beside(lambda: harness.down.demote(30)),
    ]
    model = _history(harness, random.Random(1))
    done.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert harness.counter("compacted_pages") > 0
    assert harness.counter("demoted_pages") > 0
    _assert_holds(harness, model)
    harness.region.close()


# ---- writes that wait ----


def _second(harness: Harness, buffers: int = 2, wait_s: float = 0.05) -> StalledWrites:
    views = [memoryview(bytearray(32 * PAGE_SIZE)) for _ in range(buffers)]
    return StalledWrites(harness.layer, views, wait_s=wait_s)


def _run(second: StalledWrites) -> None:
    second.stop()
    second.run()


def test_the_rest_of_a_request_is_kept_and_answered_once() -> None:
    harness, model = _fragmented(20)
    slot = SLOTS - 600
    while harness.store(slot, page("random", slot)):
        model[slot] = page("random", slot)
        slot += 1
    second, ticket = _second(harness), Ticket()
    pages = [page("random", number) for number in range(16)]
    request = bytearray(b"".join(pages))
    second.submit(ticket, 99, slot, memoryview(request), 16)
    request[:] = bytes(len(request))
    assert ticket.results == []
    _run(second)
    assert ticket.results == [99]
    model |= {slot + index: data for index, data in enumerate(pages)}
    _assert_holds(harness, model)
    harness.region.close()


def test_a_full_pool_refuses_and_keeps_what_it_has() -> None:
    harness, model = _fragmented(1, kind="random")
    second, tickets = _second(harness), [Ticket(), Ticket(), Ticket()]
    for ticket in tickets:  # the third finds no buffer
        second.submit(ticket, PAGE_SIZE, SLOTS - 1, memoryview(page("random", 1)), 1)
    assert [ticket.results for ticket in tickets] == [[], [], [-ENOSPC]]
    _run(second)
    assert [ticket.results for ticket in tickets] == [[-ENOSPC]] * 3
    assert harness.counter("failed_write_no_room") == 3
    harness.layer.discard_run(0, 1)
    del model[0]
    again = Ticket()
    second.submit(again, PAGE_SIZE, SLOTS - 1, memoryview(page("random", 1)), 1)
    _run(second)
    assert again.results == [PAGE_SIZE], "the buffers came back"
    _assert_holds(harness, model)
    harness.region.close()


def _one_place_left(harness: Harness, *sparse: int) -> int:
    """Leave the pool one place, for a whole page; return the first cluster without a table page.

    :param sparse: sizes of blobs that have a zspage each to themselves
    """
    pool = harness.layer.pool
    assert harness.store(0, *[page("random", number) for number in range(15)]) == 15
    for number, size in enumerate(sparse, 1):
        data = random.Random(number).randbytes(size).ljust(PAGE_SIZE, b"\0")
        used, slot = pool.used_bytes, 100 * number
        while pool.used_bytes == used:  # until it opens a zspage
            slot += harness.store(slot, data)
        harness.layer.discard_run(100 * number, slot - 1 - 100 * number)
    cluster = 1
    while pool.free_zspages or pool.table_zspages * 16 > cluster:
        assert harness.store(cluster * CLUSTER_SLOTS, page("zero", 1))
        cluster += 1
    assert pool.room_for_any() == 1
    return cluster


def _write_counted(
    harness: Harness, slot: int, monkeypatch: pytest.MonkeyPatch, most: int = 20
) -> tuple[int, int]:
    """Write an incompressible page as one that found no room; return the answer and the tries."""
    store, tries = harness.layer.store_run, [0]

    def counted(*args: Any) -> int:
        tries[0] += 1
        assert tries[0] <= most, "it spins"
        return store(*args)

    second, ticket = _second(harness), Ticket()
    with monkeypatch.context() as patch:
        patch.setattr(harness.layer, "store_run", counted)
        second.submit(ticket, PAGE_SIZE, slot, memoryview(page("random", 99)), 1)
        _run(second)
    return ticket.results[0], tries[0]


@pytest.mark.parametrize(
    ("sparse", "expected"),
    [((), (-ENOSPC, 2)), ((1000, 1000, 1000), (PAGE_SIZE, 3)), ((500, 1000), (PAGE_SIZE, 3))],
    ids=["nothing to gain", "by packing", "by squeezing"],
)
def test_a_place_that_the_table_would_take_is_no_room(
    sparse: tuple[int, ...], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last place is for a page of the table or for the blob, and the write needs both."""
    harness = Harness(400 * CLUSTER_SLOTS, 16 * ZSPAGE_BYTES)
    cluster = _one_place_left(harness, *sparse)
    assert _write_counted(harness, cluster * CLUSTER_SLOTS, monkeypatch) == expected
    harness.check()
    assert harness.load(0, 15) == b"".join(page("random", number) for number in range(15))
    harness.region.close()


def test_only_the_first_write_waits_for_a_buffer_in_vain() -> None:
    harness, _ = _fragmented(1)
    second = _second(harness)
    tickets = [Ticket() for _ in range(5)]
    for ticket in tickets:
        second.submit(ticket, PAGE_SIZE, 0, memoryview(page("zero", 1)), 1)
        if ticket.results:
            second.progress.wait_s = 1e9  # the next one must not wait at all
    assert [ticket.results for ticket in tickets] == [[]] * 2 + [[-ENOSPC]] * 3
    _run(second)
    assert [ticket.results for ticket in tickets] == [[PAGE_SIZE]] * 2 + [[-ENOSPC]] * 3
    harness.region.close()


def test_a_bug_is_answered_and_the_thread_lives(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness, _ = _fragmented(1)
    second, ticket, again = _second(harness), Ticket(), Ticket()
    with monkeypatch.context() as patch:
        patch.setattr(harness.layer, "store_run", None)
        patch.setattr(second.compactor, "compact_if_low", None)
        second.submit(ticket, 1, 0, memoryview(page("text", 1)), 1)
        second.kick_if_needed()
        _run(second)
    assert ticket.results == [-EIO]
    assert harness.counter("handler_errors") == 2
    assert "TypeError" in caplog.text
    second.submit(again, PAGE_SIZE, 0, memoryview(page("zero", 1)), 1)
    _run(second)
    assert again.results == [PAGE_SIZE]
    harness.region.close()


def test_a_short_pool_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, looks = [10.0], []
    harness, _ = _fragmented(1)
    second = StalledWrites(harness.layer, [], clock_s=lambda: now_s[0])
    monkeypatch.setattr(second.compactor, "compact_if_low", lambda: looks.append(now_s[0]))
    second.kick_if_needed()
    second.kick_if_needed()
    _run(second)
    second.kick_if_needed()
    _run(second)
    assert looks == [10.0]
    now_s[0] += stalled.LOOK_EVERY_S
    second.kick_if_needed()
    _run(second)
    assert len(looks) == 2
    harness.layer.discard_run(0, SLOTS)
    now_s[0] += stalled.LOOK_EVERY_S
    second.kick_if_needed()
    _run(second)
    assert len(looks) == 2, "nothing is short"
    harness.region.close()


def test_a_full_file_tier_falls_back_on_compaction() -> None:
    harness = Harness(SLOTS, 16 * ZSPAGE_BYTES, MemoryTier(4))
    model: dict[int, bytes] = {}
    for slot in range(120):
        model[slot] = page("text", slot)
        assert harness.store(slot, model[slot])
    slot = 200
    while not harness.counter("compacted_pages"):
        assert harness.write(slot, page("random", slot)) == PAGE_SIZE
        model[slot] = page("random", slot)
        slot += 1
        for small in [small for small in model if small < 120 and small % 7 and slot > 300]:
            harness.layer.discard_run(small, 1)
            del model[small]
    assert harness.counter("failed_write_no_room") == 0
    _assert_holds(harness, model)
    harness.region.close()

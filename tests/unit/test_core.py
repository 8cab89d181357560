"""The layer's lock, and the reader that the session loop calls without the GIL."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from swapfs.core import _core
from swapfs.core._core import Lock, Writer
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import mixed_pages
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.entry import STATE_OF_WORD
from swapfs.vlayer.packing import Packer

SLOTS = 3 * CLUSTER_SLOTS
SIZE_BYTES = SLOTS * PAGE_SIZE
FIRST = CLUSTER_SLOTS - 20
PAGES = mixed_pages(3, 60)


@pytest.fixture
def harness() -> Harness:
    harness = Harness(SLOTS, 2 * MiB, MemoryTier(4))
    assert harness.store(FIRST, *PAGES) == len(PAGES)
    return harness


def _read(harness: Harness, offset: int, size: int, size_bytes: int = SIZE_BYTES) -> bytes | None:
    out = bytearray(b"\xaa" * max(size, 1))
    done = harness.layer.reader(size_bytes).read(offset, size, out)
    assert done in (-1, size)
    return None if done < 0 else bytes(out)


def test_reads_what_the_layer_reads_over_clusters_and_holes(harness: Harness) -> None:
    first, count = FIRST - 30, len(PAGES) + 60
    got = _read(harness, first * PAGE_SIZE, count * PAGE_SIZE)
    assert got == bytes(30 * PAGE_SIZE) + b"".join(PAGES) + bytes(30 * PAGE_SIZE)


def test_a_cluster_that_was_never_written_reads_as_zeros(harness: Harness) -> None:
    offset = (2 * CLUSTER_SLOTS + 100) * PAGE_SIZE
    assert _read(harness, offset, 8 * PAGE_SIZE) == bytes(8 * PAGE_SIZE)
    edge = (2 * CLUSTER_SLOTS - 2) * PAGE_SIZE
    assert _read(harness, edge, 4 * PAGE_SIZE) == bytes(4 * PAGE_SIZE)


def test_counts_pages_by_kind_and_bytes(harness: Harness) -> None:
    before = harness.layer.counters.snapshot()
    _read(harness, (FIRST - 4) * PAGE_SIZE, 64 * PAGE_SIZE)
    after = harness.layer.counters.snapshot()
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown.pop("read_bytes") == 64 * PAGE_SIZE
    assert grown.pop("read_empty_pages") == 4
    assert sum(grown.values()) == 60
    assert grown == {
        "read_same_pages": before["write_same_pages"],
        "read_pool_pages": before["write_compressed_pages"] + before["write_raw_pages"],
    }


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (512, PAGE_SIZE),
        (0, 512),
        (0, 0),
        (SIZE_BYTES, PAGE_SIZE),
        (SIZE_BYTES - PAGE_SIZE, 2 * PAGE_SIZE),
        ((1 << 64) - PAGE_SIZE, 2 * PAGE_SIZE),
        (0, (1 << 64) - PAGE_SIZE),
    ],
)
def test_leaves_the_rest_to_python(harness: Harness, offset: int, size: int) -> None:
    before = harness.layer.counters.snapshot()
    out = bytearray(2 * PAGE_SIZE)
    assert harness.layer.reader(SIZE_BYTES).read(offset, size, out) == -1
    assert harness.layer.counters.snapshot() == before


def test_leaves_what_is_on_disk_to_python_and_counts_nothing(harness: Harness) -> None:
    harness.down.demote(len(PAGES))
    harness.down.demote(len(PAGES))  # the first round only takes the reference away
    assert harness.counter("demoted_pages") > 0
    before = harness.layer.counters.snapshot()
    assert _read(harness, (FIRST - 4) * PAGE_SIZE, 64 * PAGE_SIZE) is None
    assert harness.layer.counters.snapshot() == before
    assert harness.load(FIRST, len(PAGES)) == b"".join(PAGES)


def test_leaves_a_damaged_page_to_python(harness: Harness) -> None:
    harness.region.arena_words[harness.layer.table.base(FIRST) + FIRST % CLUSTER_SLOTS] = (
        0xFFF << 7 | 0x22
    )
    assert _read(harness, FIRST * PAGE_SIZE, PAGE_SIZE) is None


def test_leaves_a_damaged_directory_to_python(harness: Harness) -> None:
    harness.region.directory[0] = 0xFFFFFF
    assert _read(harness, 0, PAGE_SIZE) is None
    assert _read(harness, CLUSTER_SLOTS * PAGE_SIZE, PAGE_SIZE) == PAGES[20]


def test_a_file_larger_than_the_table_is_refused(harness: Harness) -> None:
    with pytest.raises(ValueError, match="not inside"):
        harness.layer.reader(SIZE_BYTES + PAGE_SIZE)


def test_the_reader_waits_for_the_lock(harness: Harness) -> None:
    reader, out = harness.layer.reader(SIZE_BYTES), bytearray(PAGE_SIZE)
    thread = threading.Thread(target=reader.read, args=(0, PAGE_SIZE, out))
    with harness.layer.lock:
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_c_and_python_mean_the_same_sizes() -> None:
    assert (_core.PAGE_BYTES, _core.CLUSTER_SLOTS) == (PAGE_SIZE, CLUSTER_SLOTS)


def _writer(
    harness: Harness, counts: tuple[int, int, int] = (0, 1, 2), **changes: bytes | bytearray
) -> Writer:
    region = harness.region
    tables: dict[str, Any] = {
        "directory": region.directory,
        "arena": region.arena,
        "classes": region.classes,
        "counters": region.counter_words,
        "state_of_word": STATE_OF_WORD,
        **harness.layer.pool.tables(),
        **harness.layer.table.tables(),
        **changes,
    }
    return Writer(counts, None, **tables)


@pytest.mark.parametrize(
    "change", [{"used": bytearray(2)}, {"sizes": b""}, {"classes": bytearray(1)}, {"nothing": b""}]
)
def test_tables_that_do_not_fit_together_are_refused(
    harness: Harness, change: dict[str, Any]
) -> None:
    _writer(harness)
    with pytest.raises((ValueError, TypeError)):
        _writer(harness, **change)


def test_counters_that_there_are_not_are_refused(harness: Harness) -> None:
    with pytest.raises(ValueError, match="fit together"):
        _writer(harness, (0, 1, 1 << 40))


def test_a_run_outside_its_buffers_is_refused(harness: Harness) -> None:
    writer, packer, page = _writer(harness), Packer(2), memoryview(bytearray(PAGE_SIZE))
    for slot, count, first, position in [
        *((SLOTS - 1, 2, 0, 0), (-1, 1, 0, 0), (0, -1, 0, 0), (0, 1, -1, 0), (0, 3, 0, 0)),
        *((0, 1, 2, 0), (0, 1, 0, 1), (0, 1, 0, -1), (0, 1, 1 << 62, 0), (0, 1, 0, 1 << 62)),
    ]:
        with pytest.raises(ValueError, match="not inside"):
            writer.publish(slot, count, packer.drafts, first, page, position, packer.blobs)
    for slot, count, position in [(SLOTS, 1, 0), (-1, 1, 0), (0, 2, 0), (0, 1, 1), (0, 1 << 60, 0)]:
        with pytest.raises(ValueError, match="not inside"):
            harness.layer.load_run(slot, count, page, position)


def test_one_holder_at_a_time() -> None:
    lock, total = Lock(), [0]

    def add() -> None:
        for _ in range(2000):
            with lock:
                seen = total[0]
                if seen % 100 == 0:
                    threading.Event().wait(1e-6)  # lets the GIL go while the lock is held
                total[0] = seen + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == [8000]
    assert not lock.locked()


def test_wrong_use_of_the_lock_is_an_error_and_no_deadlock() -> None:
    lock = Lock()
    with pytest.raises(RuntimeError):
        lock.release()
    with lock:
        assert lock.locked()
        with pytest.raises(RuntimeError):
            lock.acquire()
    lock.acquire()
    lock.release()


def test_resched_lets_the_one_who_waits_go_first() -> None:
    lock, turns = Lock(), []

    def other() -> None:
        with lock:
            turns.append("other")

    thread = threading.Thread(target=other)
    with lock:
        lock.resched()  # nobody waits
        assert lock.locked()
        thread.start()
        while not turns:
            lock.resched()
        turns.append("holder")
        assert lock.locked()
    thread.join()
    assert turns == ["other", "holder"]
    with pytest.raises(RuntimeError):
        lock.release()


def test_relax_lets_the_one_who_waits_go_first() -> None:
    lock, turns = Lock(), []

    def other() -> None:
        with lock:
            turns.append("other")

    thread = threading.Thread(target=other)
    with lock:
        thread.start()
    while not turns:
        with lock:
            pass
        lock.relax()
    thread.join()
    lock.relax()  # nobody waits
    assert not lock.locked()


def test_a_lock_held_for_long_counts_as_contended() -> None:
    lock = Lock()
    with lock:
        lock.resched()
        end_s = time.monotonic() + 10
        while not lock.contended():
            assert time.monotonic() < end_s


def test_it_is_let_go_more_often_while_pages_are_read(harness: Harness) -> None:
    reader, out, lock = harness.layer.reader(SIZE_BYTES), bytearray(PAGE_SIZE), harness.layer.lock

    def held_ns() -> int:
        with lock:
            lock.resched()
            start_ns = time.monotonic_ns()
            while not lock.contended():
                pass
            return time.monotonic_ns() - start_ns

    end_s = time.monotonic() + 10
    while held_ns() <= 55_000:  # whoever is not let run between two lines sees less of it
        assert time.monotonic() < end_s
    while held_ns() > 45_000:
        reader.read(0, PAGE_SIZE, out)
        assert time.monotonic() < end_s

"""Writes past a full pool."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from errno import EIO, ENOSPC
from typing import Any

import pytest

from swapfs.testing.faulty import FaultyTier
from swapfs.testing.harness import Harness, Ticket
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.testing.slow import SlowTier
from swapfs.tiers.base import Staging
from swapfs.tiers.sectors import Extent, SectorStore
from swapfs.tiers.segments import CLEANING_RESERVE
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.entry import Backing

SLOTS = 16 * CLUSTER_SLOTS
TEXT = [page("text", seed) for seed in range(20)]
RANDOM = [page("random", seed) for seed in range(300)]


def _full(tier: SectorStore, *, recompress: bool = False) -> tuple[Harness, int]:
    """Return a harness whose pool is full, and how many slots filled it."""
    harness = Harness(SLOTS, 16 * 64 * 1024, tier, wait_s=0.05, recompress=recompress)
    stored = 0
    while harness.store(stored, RANDOM[stored % 300]):
        stored += 1
    return harness, stored


@pytest.fixture
def slow() -> Iterator[tuple[Harness, SlowTier, int]]:
    tier = SlowTier(MemoryTier(12))
    harness, stored = _full(tier)
    yield harness, tier, stored
    tier.write_gate.open()
    harness.region.close()


def test_pages_go_straight_down_and_the_request_is_answered_once() -> None:
    harness, stored = _full(MemoryTier(8))
    ticket = Ticket()
    pages = bytearray(b"".join(TEXT))
    harness.direct.submit(ticket, 99, 1000, memoryview(pages), 20)
    assert ticket.results == []
    assert harness.load(1000) == bytes(PAGE_SIZE), "the old page, until the new one is down"
    pages[:] = bytes(len(pages))  # the request's buffer is used again
    harness.direct.stop()
    harness.direct.run()
    assert ticket.results == [99]
    assert harness.load(1000, 20) == b"".join(TEXT)
    assert {harness.backing(slot) for slot in range(1000, 1020)} == {Backing.BELOW}
    assert harness.counter("write_direct_pages") == 20
    harness.check()
    assert harness.load(0, stored) == b"".join(RANDOM[slot % 300] for slot in range(stored))
    harness.region.close()


def test_a_request_larger_than_a_batch_is_answered_once() -> None:
    harness, _ = _full(MemoryTier(8))
    assert harness.write_direct(2000, *RANDOM) == 300 * PAGE_SIZE
    assert harness.load(2000, 300) == b"".join(RANDOM)
    assert harness.counter("file_write_ops") == 2
    harness.check()
    harness.region.close()


def test_a_direct_write_replaces_what_a_slot_held() -> None:
    harness, stored = _full(MemoryTier(8))
    for _ in range(3):
        assert harness.write_direct(5, *TEXT) == 20 * PAGE_SIZE
    assert harness.load(5, 20) == b"".join(TEXT)
    assert harness.load(4) == RANDOM[4]
    assert harness.load(25) == RANDOM[25]
    assert stored > 25
    harness.check()
    harness.region.close()


def test_no_room_below_is_refused_and_nothing_is_lost() -> None:
    memory = MemoryTier(3)
    harness, stored = _full(memory)
    slot = 1000
    while (result := harness.write(slot, RANDOM[slot % 300])) > 0:
        slot += 1
    assert result == -ENOSPC
    assert slot - 1000 >= memory.room_pages()
    assert harness.counter("failed_write_no_room") > 0
    assert harness.health.problem(0) == "full"
    harness.check()
    assert harness.load(0, stored) == b"".join(RANDOM[at % 300] for at in range(stored))
    for at in range(1000, slot):
        assert harness.load(at) == RANDOM[at % 300]
    assert harness.load(slot) == bytes(PAGE_SIZE)
    harness.region.close()


def test_room_that_ends_half_way_refuses_the_request() -> None:
    harness, _ = _full(MemoryTier(3))
    assert harness.write_direct(1000, *RANDOM) == -ENOSPC
    for slot in range(1000, 1300):
        assert harness.load(slot) in (RANDOM[slot - 1000], bytes(PAGE_SIZE))
    harness.check()
    harness.region.close()


def test_room_in_crumbs_is_cleaned_and_used() -> None:
    memory = MemoryTier(5)
    harness, _ = _full(memory)
    slot = 1000
    while harness.write_direct(slot, RANDOM[slot % 300]) > 0:
        slot += 1
    kept = [at for at in range(1000, slot) if at % 3]
    for at in range(1000, slot, 1):
        if not at % 3:
            harness.layer.discard_run(at, 1)
    cleaner = threading.Thread(target=harness.down.run, daemon=True)
    cleaner.start()
    harness.down.writer.progress.wait_s = 30.0
    for at in range(3000, 3060):
        assert harness.write_direct(at, RANDOM[at % 300]) == PAGE_SIZE
    harness.down.stop()
    cleaner.join(30)
    harness.check()
    for at in [*kept, *range(3000, 3060)]:
        assert harness.load(at) == RANDOM[at % 300]
    harness.region.close()


def test_a_failed_write_is_an_io_error_then_refused_until_the_pause_is_over() -> None:
    harness, stored = _full(FaultyTier(MemoryTier(8), "write_error", 1))
    assert harness.write_direct(3, TEXT[0]) == -EIO
    assert harness.counter("failed_write_io") == 1
    assert harness.load(3) == RANDOM[3], "the old page stays"
    assert harness.write_direct(3, TEXT[0]) == -ENOSPC
    harness.now_s += 10
    assert harness.write_direct(3, TEXT[0]) == PAGE_SIZE
    assert harness.load(3) == TEXT[0]
    assert harness.load(0, 3) == b"".join(RANDOM[:3])
    assert stored > 3
    harness.check()
    harness.region.close()


def test_one_part_that_fails_fails_the_request() -> None:
    """A request of more pages than a batch holds: its first part is lost, its last one is not."""
    harness, _ = _full(FaultyTier(MemoryTier(8), "write_error", 1))
    assert harness.write_direct(3, *RANDOM[:300]) == -EIO
    assert harness.load(3) == RANDOM[3], "the old page stays"
    harness.check()
    harness.region.close()


def test_a_stuck_disk_refuses_writes_at_once_and_reads_go_on(
    slow: tuple[Harness, SlowTier, int],
) -> None:
    harness, tier, _ = slow
    writer = threading.Thread(target=harness.direct.run, daemon=True)
    writer.start()
    tier.write_gate.shut()
    waiting = [Ticket(), Ticket()]
    for number, ticket in enumerate(waiting):
        harness.direct.submit(ticket, 1, 1000 + number, memoryview(TEXT[number]), 1)
    tier.write_gate.wait_for_arrival()
    refused = Ticket()
    harness.direct.submit(refused, 1, 1002, memoryview(TEXT[2]), 1)
    harness.run_stalled()
    assert refused.results == [-ENOSPC]
    harness.down.writer.progress.wait_s = 1e9  # the next one must not wait at all...
    harness.now_s += 2e9  # ... for a disk that has not answered for as long
    again = Ticket()
    harness.direct.submit(again, 1, 1002, memoryview(TEXT[2]), 1)
    harness.run_stalled()
    assert again.results == [-ENOSPC]
    assert harness.load(0) == RANDOM[0]
    tier.write_gate.open()
    harness.direct.stop()
    writer.join(30)
    assert [ticket.results for ticket in waiting] == [[1], [1]]
    assert harness.write_direct(1002, TEXT[2]) == PAGE_SIZE, "the disk moves again"
    assert harness.load(1000, 3) == b"".join(TEXT[:3])
    harness.check()


def _in_crumbs(tier: SectorStore) -> tuple[Harness, list[int]]:
    """Return a harness whose file, like its pool, is full, with holes too small for a page."""
    harness, slot = _full(tier)
    kept: list[int] = []
    while harness.write_direct(slot, *RANDOM[:227]) > 0:  # each fills a segment
        kept += range(slot + 1, slot + 227, 2)
        slot += 227
    for at in kept:
        harness.layer.discard_run(at - 1, 1)
    return harness, kept


def test_a_write_waits_for_cleaning_as_long_as_it_gets_on_and_then_no_more() -> None:
    tier = SlowTier(MemoryTier(6))
    harness, kept = _in_crumbs(tier)
    harness.down.high_bytes = MiB * MiB  # it cleans, and demotes nothing
    tier.write_gate.shut()
    threads = [
        threading.Thread(target=run, daemon=True)
        for run in (harness.down.run, harness.stalled.run, harness.direct.run)
    ]
    for thread in threads:
        thread.start()
    refused, stored = Ticket(), Ticket()
    harness.direct.submit(refused, 1, 4000, memoryview(TEXT[0]), 1)
    assert refused.wait() == -ENOSPC, "the disk does not answer for as long as writes wait"
    tier.write_gate.wait_for_arrival()
    harness.down.writer.progress.wait_s = 30.0
    harness.direct.submit(stored, PAGE_SIZE, 4000, memoryview(TEXT[0]), 1)
    assert stored.results == []
    tier.write_gate.open()
    assert stored.wait() == PAGE_SIZE, "I6"
    for part in (harness.down, harness.direct, harness.stalled):
        part.stop()
    for thread in threads:
        thread.join(30)
    harness.check()
    for at in kept:
        assert harness.load(at) == RANDOM[(at - kept[0] + 1) % 227]
    harness.region.close()


def test_cleaning_that_begins_during_the_last_look_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It closes what was to be cleaned, so that a look finds nothing there."""
    memory = MemoryTier(4)  # one step takes all that is sparse
    harness, _ = _in_crumbs(memory)
    progress, has_room = harness.down.writer.progress, memory.has_room
    progress.wait_s = 30.0
    cleaner = threading.Thread(target=harness.down.clean)
    gate = threading.Event()
    end_cleaning = memory.end_cleaning

    def held_end(segment: Extent, *, skip: bool) -> None:
        assert gate.wait(30)
        end_cleaning(segment, skip=skip)

    def begins_meanwhile() -> bool:
        cleaner.start()
        while not memory.map.free_segments < CLEANING_RESERVE:
            pass  # until the segment to fill is taken
        found = has_room()
        gate.set()
        return found

    monkeypatch.setattr(memory, "end_cleaning", held_end)
    monkeypatch.setattr(memory, "has_room", begins_meanwhile)
    assert harness.direct.wait_for_room(harness.direct.mark(), 0)
    cleaner.join(30)
    harness.check()
    harness.region.close()


def test_no_page_for_the_table_is_refused_and_frees_the_sectors() -> None:
    memory = MemoryTier(8)
    harness = Harness(SLOTS + CLUSTER_SLOTS, 2 * 64 * 1024, memory)  # nothing is kept for tables
    for cluster in range(16):
        assert harness.store(cluster * CLUSTER_SLOTS, bytes(PAGE_SIZE))
    stored = 1
    while harness.store(stored, RANDOM[stored]):
        stored += 1
    assert harness.write_direct(16 * CLUSTER_SLOTS, *TEXT[:2]) == -ENOSPC
    assert memory.map.taken_bytes == 0
    harness.check()
    harness.region.close()


def _no_table_page(size: int, discard_every: int) -> tuple[Harness, int]:
    """Return a harness without a place for a table page, and the first slot that needs one."""
    harness = Harness(400 * CLUSTER_SLOTS, 16 * 64 * 1024, MemoryTier(8), wait_s=30.0)
    harness.down.high_bytes = MiB * MiB  # nothing is demoted but on request
    pool, stored, cluster = harness.layer.pool, 0, 50
    while harness.store(stored, RANDOM[stored % 300][:size].ljust(PAGE_SIZE, b"\0")):
        stored += 1
    while harness.store(cluster * CLUSTER_SLOTS, page("zero", 1)):
        cluster += 1
    assert not pool.free_zspages
    for slot in range(stored):
        if slot % discard_every:
            harness.layer.discard_run(slot, 1)
    return harness, cluster * CLUSTER_SLOTS


def test_a_table_page_for_a_direct_write_is_made_by_demotion() -> None:
    harness, slot = _no_table_page(PAGE_SIZE, 1)
    thread = threading.Thread(target=harness.down.run, daemon=True)
    thread.start()
    assert harness.write_direct(slot, *TEXT) == 20 * PAGE_SIZE, "I6"
    harness.down.stop()
    thread.join(30)
    assert harness.counter("demoted_pages") > 0
    assert harness.counter("failed_write_no_room") == 0
    assert harness.load(slot, 20) == b"".join(TEXT)
    harness.check()
    harness.region.close()


def test_a_table_page_for_a_direct_write_is_made_by_compaction() -> None:
    harness, slot = _no_table_page(1000, 2)  # and nobody demotes
    assert not harness.layer.pool.free_zspages
    assert harness.write_direct(slot, *TEXT) == 20 * PAGE_SIZE, "I6"
    assert harness.counter("compacted_pages")
    assert harness.load(slot, 20) == b"".join(TEXT)
    harness.check()
    harness.region.close()


def test_a_bug_while_packing_answers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryTier(8)
    harness, _ = _full(memory)
    with monkeypatch.context() as patch:
        patch.setattr(harness.down.writer, "add", lambda *_, **__: 1 // 0)
        assert harness.write_direct(1000, TEXT[0]) == -EIO
    assert memory.map.taken_bytes == 0
    for _ in range(4):  # no batch was lost
        assert harness.write_direct(1000, TEXT[0]) == PAGE_SIZE
    harness.region.close()


def test_a_bug_while_publishing_keeps_no_sectors(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryTier(8)
    harness, _ = _full(memory)
    publish, calls = harness.down.writer.publish, itertools.count()

    def fails_later(*args: Any) -> None:
        if next(calls) == 80:
            raise MemoryError
        publish(*args)

    with monkeypatch.context() as patch:
        patch.setattr(harness.down.writer, "publish", fails_later)
        assert harness.write_direct(1000, *RANDOM[:200]) == -EIO
    assert harness.load(1000, 80) == b"".join(RANDOM[:80])
    assert harness.load(1080, 120) == bytes(120 * PAGE_SIZE)
    harness.check()
    memory.map.check()
    harness.region.close()


@pytest.mark.parametrize("what", ["bug", "damage"])
def test_what_goes_wrong_while_recompressing_fails_the_write(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is not written is never answered as if it were (I4)."""
    memory = MemoryTier(8)
    harness, _ = _full(memory, recompress=True)
    recoder = harness.down.writer.recoder
    assert recoder is not None
    recode = recoder.recode

    def damage(staging: Staging) -> object:
        payload = staging.payload(staging.items[0])
        staging.view[staging.items[0].start :][: len(payload)] = b"\xff" * len(payload)
        return recode(staging)

    with monkeypatch.context() as patch:
        patch.setattr(recoder, "recode", damage if what == "damage" else lambda _: 1 // 0)
        assert harness.write_direct(3, *TEXT[:2]) == -EIO
    assert (memory.map.taken_bytes, memory.map.bad_bytes) == (0, 0)
    assert harness.load(3, 2) == b"".join(RANDOM[3:5]), "the old pages stay"
    assert [level.users for level in harness.stack] == [0]
    assert harness.write_direct(3, *TEXT[:2]) == 2 * PAGE_SIZE
    assert harness.load(3, 2) == b"".join(TEXT[:2])
    harness.check()
    harness.region.close()


def test_a_bug_while_writing_keeps_only_its_sectors_out_of_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = MemoryTier(8)
    harness, _ = _full(memory)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "write", lambda *_: 1 // 0)
        assert harness.write_direct(3, TEXT[0]) == -EIO
    assert memory.map.taken_bytes == 0
    assert 0 < memory.map.bad_bytes < 3 * PAGE_SIZE
    assert harness.load(3) == RANDOM[3], "the old page stays"
    assert harness.write_direct(3, TEXT[0]) == PAGE_SIZE
    harness.check()
    harness.region.close()

"""Demotion and cleaning."""

from __future__ import annotations

import itertools
import queue
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from swapfs.errors import BlobCorrupt
from swapfs.policy.random_choice import Random
from swapfs.testing.faulty import FaultyTier
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import mixed_pages, page
from swapfs.testing.slow import SlowTier
from swapfs.testing.wrapper import TierWrapper
from swapfs.tiers.blob import HEADER, Batch
from swapfs.tiers.sector_ref import blob_sectors
from swapfs.tiers.sectors import Extent, SectorStore
from swapfs.tiers.segments import SEGMENT_SECTORS
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, SECTOR_SIZE, MiB
from swapfs.vlayer.entry import MOVING, Backing
from swapfs.vlayer.health import BACKOFF_MAX_S, NO_SPACE_PAUSE_MAX_S, Health

TEXT = [page("text", seed) for seed in range(60)]
SLOTS = 16 * CLUSTER_SLOTS


def test_watermarks_have_hysteresis() -> None:
    harness = Harness(SLOTS, 6 * MiB, MemoryTier(40))
    pages = mixed_pages(1, 200)
    pool, slot = harness.layer.pool, 0
    while pool.used_bytes <= harness.down.high_bytes:
        assert harness.down.balance() == 0, "below the high watermark nothing moves"
        slot += harness.store(slot, *pages[slot % 200 : slot % 200 + 5])
    assert harness.down.balance() > 0
    assert pool.used_bytes <= harness.down.low_bytes
    before = harness.counter("demoted_pages")
    while pool.used_bytes <= harness.down.low_bytes:
        slot += harness.store(slot, *pages[slot % 200 : slot % 200 + 5])
    assert pool.used_bytes <= harness.down.high_bytes
    assert harness.down.balance() == 0, "between the watermarks nothing moves"
    assert harness.counter("demoted_pages") == before
    assert harness.counter("demoted_batches") == harness.counter("file_write_ops")
    harness.check()
    assert harness.load(0, slot) == b"".join(pages[at % 200] for at in range(slot))
    harness.region.close()


def test_holes_are_packed_and_not_paid_for_with_pages() -> None:
    """What goes down in no order frees hardly a zspage: the pool must not be emptied for some."""
    harness = Harness(SLOTS, 6 * MiB, MemoryTier(40), policy=Random, log_bytes=MiB)
    pages, pool, slot, least = mixed_pages(1, 200), harness.layer.pool, 0, 6 * MiB
    for _ in range(4):
        while pool.used_bytes <= harness.down.high_bytes:
            slot += harness.store(slot, *pages[slot % 200 : slot % 200 + 5])
        assert harness.down.balance() > 0
        assert pool.used_bytes <= harness.down.low_bytes
        least = min(least, pool.object_bytes)
    assert least >= harness.down.low_bytes - harness.down.high_bytes // 4
    assert harness.counter("compacted_pages") > 0
    harness.check()
    assert harness.load(0, slot) == b"".join(pages[at % 200] for at in range(slot))
    harness.region.close()


def test_batches_are_long_and_contiguous() -> None:
    memory = MemoryTier(8)
    harness = Harness(SLOTS, 8 * MiB, memory)
    for slot, data in enumerate(mixed_pages(2, 600)):
        harness.store(slot, data)
    moved = harness.down.demote(600)
    assert moved == 600 - harness.layer.table.state_counts()["same"]
    assert harness.counter("file_written_bytes") / memory.writes >= 256 * 1024
    known = harness.stack[1].payload_bytes  # to 16 bytes a blob
    assert known - 15 * moved <= harness.counter("demoted_payload_bytes") <= known
    harness.check()
    harness.region.close()


def test_pages_that_do_not_compress_go_down_first_if_that_is_wanted() -> None:
    for raw_first in (False, True):
        harness = Harness(SLOTS, 6 * MiB, MemoryTier(8), raw_first=raw_first)
        raw = [page("random", seed) for seed in range(20)]
        harness.store(0, *TEXT[:40])
        harness.store(40, *raw)
        assert len(harness.load(45)) == PAGE_SIZE, "one that was read gets its second chance"
        harness.down.demote(19)
        where = [harness.backing(slot) for slot in range(60)]
        expected = [slot for slot in range(40, 60) if slot != 45] if raw_first else [*range(19)]
        assert [slot for slot in range(60) if where[slot] is Backing.BELOW] == expected
        assert harness.counter("demoted_raw_pages") == (19 if raw_first else 0)
        harness.check()
        harness.region.close()


def _rewrite(harness: Harness) -> tuple[bytes, Backing]:
    harness.store(5, TEXT[40])
    return TEXT[40], Backing.POOL


def _rewrite_alike(harness: Harness) -> tuple[bytes, Backing]:
    harness.store(5, TEXT[5])
    return TEXT[5], Backing.POOL


def _discard(harness: Harness) -> tuple[bytes, Backing]:
    harness.layer.discard_run(5, 1)
    return bytes(PAGE_SIZE), Backing.EMPTY


def _discard_and_rewrite(harness: Harness) -> tuple[bytes, Backing]:
    harness.layer.discard_run(0, SLOTS)
    harness.store(5, TEXT[41])
    return TEXT[41], Backing.POOL


def _read(harness: Harness) -> tuple[bytes, Backing]:
    assert harness.load(5) == TEXT[5]
    return TEXT[5], Backing.POOL  # it is warm again, so it stays


def _write_below(harness: Harness) -> tuple[bytes, Backing]:
    tier = harness.tier
    assert isinstance(tier, SlowTier)
    tier.write_gate.open()
    harness.write_direct(5, TEXT[42])
    return TEXT[42], Backing.BELOW


EVENTS = [_rewrite, _rewrite_alike, _discard, _discard_and_rewrite, _read, _write_below]


@pytest.mark.parametrize("when", ["during", "after"])
@pytest.mark.parametrize("event", EVENTS)
def test_an_event_during_demotion_keeps_the_right_page(
    event: Callable[[Harness], tuple[bytes, Backing]], when: str
) -> None:
    tier = SlowTier(MemoryTier(6))
    harness = Harness(SLOTS, 4 * MiB, tier)
    harness.store(0, *TEXT[:10])
    if when == "during":
        tier.write_gate.shut()
        thread = threading.Thread(target=harness.down.demote_batch, daemon=True)
        thread.start()
        tier.write_gate.wait_for_arrival()
        assert harness.layer.table.get(5) & MOVING
        expected, tag = event(harness)
        tier.write_gate.open()
        thread.join(30)
        assert not thread.is_alive()
    else:
        assert harness.down.demote_batch() == 10
        expected, tag = event(harness)
        if event is _read:
            tag = Backing.BELOW
    harness.check()
    assert harness.backing(5) == tag
    assert harness.load(5) == expected
    if event is not _discard_and_rewrite:
        assert [harness.load(slot) for slot in (4, 6)] == [TEXT[4], TEXT[6]]
    harness.region.close()


def test_a_failed_write_keeps_the_pages_and_waits_longer_each_time() -> None:
    memory = MemoryTier(12)
    tier = FaultyTier(memory, "write_error", 1, 3)
    harness = Harness(SLOTS, 4 * MiB, tier)
    harness.store(0, *TEXT)
    pauses = []
    for number in range(1, 4):
        assert harness.down.demote_batch() == 0
        assert harness.counter("failed_demotions") == number
        pauses.append(harness.health.retry_at_s - harness.now_s)
        assert "made to fail" in harness.health.problem(harness.now_s)
        assert harness.down.demote_batch() == 0, "not before the pause is over"
        assert tier.failures == number
        harness.check()
        assert {harness.backing(slot) for slot in range(60)} == {Backing.POOL}
        harness.now_s += pauses[-1]
    assert pauses == [1.0, 2.0, 4.0]
    assert memory.map.bad_bytes == harness.counter("bad_sectors") * SECTOR_SIZE > 0
    assert harness.down.demote_batch() == 60
    assert harness.health.problem(harness.now_s) == ""
    assert harness.load(0, 60) == b"".join(TEXT)
    memory.map.check()
    harness.region.close()


def test_want_of_space_is_no_damage_and_passes() -> None:
    memory = MemoryTier(6)
    tier = FaultyTier(memory, "no_space", 1, 6)
    harness = Harness(SLOTS, 4 * MiB, tier)
    harness.store(0, *TEXT)
    for _ in range(6):
        assert harness.down.demote_batch() == 0
        assert "no space" in harness.health.problem(harness.now_s)
        assert memory.map.bad_bytes == memory.map.taken_bytes == harness.counter("bad_sectors") == 0
        harness.now_s += NO_SPACE_PAUSE_MAX_S
    assert harness.down.demote_batch() == 60
    assert harness.health.problem(harness.now_s) == ""
    assert harness.load(0, 60) == b"".join(TEXT)
    harness.check()
    harness.region.close()


def test_only_the_sectors_of_a_failed_write_are_lost() -> None:
    memory = MemoryTier(6)
    harness = Harness(SLOTS, 4 * MiB, FaultyTier(memory, "write_error", 1))
    harness.store(0, page("heap", 1))
    assert harness.down.demote_batch() == 0
    assert memory.map.bad_bytes == PAGE_SIZE
    harness.region.close()


def _failing_at(call: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return *real* with a bug that shows at one call, from 1."""
    calls = itertools.count(1)

    def buggy(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise MemoryError
        return real(*args, **kwargs)

    return buggy


def test_a_bug_while_writing_leaves_no_slot_moving_and_no_sector_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tier = MemoryTier(6)
    harness = Harness(SLOTS, 4 * MiB, tier)
    harness.store(0, *TEXT)
    with monkeypatch.context() as patch:
        patch.setattr(tier, "write", _failing_at(1, tier.write))
        with pytest.raises(MemoryError):
            harness.down.demote_batch()
    harness.check()
    assert tier.map.bad_bytes == harness.counter("bad_sectors") * SECTOR_SIZE > 0, "who knows"
    assert harness.down.demote_batch() == 60
    harness.check()
    harness.region.close()


@pytest.mark.parametrize("call", [1, 2, 60])
def test_a_bug_while_collecting_leaves_no_slot_moving_and_no_sector_taken(
    call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = MemoryTier(6)
    harness = Harness(SLOTS, 4 * MiB, tier)
    harness.store(0, *TEXT)
    with monkeypatch.context() as patch:
        patch.setattr(harness.down.writer, "add", _failing_at(call, harness.down.writer.add))
        with pytest.raises(MemoryError):
            harness.down.demote_batch()
    harness.check()
    assert (tier.map.taken_bytes, tier.map.bad_bytes) == (0, 0)
    assert harness.down.demote(60) == 60
    harness.check()
    harness.region.close()


def test_a_bug_while_recompressing_leaves_no_slot_moving_and_no_sector_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tier = MemoryTier(6)
    harness = Harness(SLOTS, 4 * MiB, tier, recompress=True)
    harness.store(0, *TEXT)
    recoder = harness.down.writer.recoder
    assert recoder is not None
    with monkeypatch.context() as patch:
        patch.setattr(recoder, "recode", _failing_at(1, recoder.recode))
        with pytest.raises(MemoryError):
            harness.down.demote_batch()
    harness.check()
    assert (tier.map.taken_bytes, tier.map.bad_bytes) == (0, 0)
    assert [level.users for level in harness.stack] == [0], "it can still leave"
    assert harness.down.demote_batch() == 60
    harness.check()
    harness.region.close()


def test_a_full_tier_stops_demotion_and_says_so() -> None:
    memory = MemoryTier(3)
    harness = Harness(SLOTS, 4 * MiB, memory)
    pages = [page("random", seed) for seed in range(400)]
    harness.store(0, *pages)
    moved = harness.down.demote(400)
    assert 213 <= moved < 400
    assert harness.health.problem(harness.now_s) == "full"
    assert harness.load(0, 400) == b"".join(pages)
    harness.layer.discard_run(0, 400)
    harness.store(0, *TEXT)
    assert harness.down.demote(10) == 10
    assert harness.health.problem(harness.now_s) == ""
    harness.check()
    harness.region.close()


def test_health() -> None:
    health = Health()
    for _ in range(12):
        health.failed("EIO", 100.0)
    assert health.retry_at_s == 100.0 + BACKOFF_MAX_S
    assert health.problem(130.0) == "writes fail (EIO), next try in 30s"
    assert not health.may_write(159.0)
    assert health.may_write(160.0)
    health.succeeded()
    assert health.problem(161.0) == ""
    health.begin(1, 200.0)
    health.begin(2, 203.0)
    health.end(2)
    assert health.problem(204.0) == ""
    assert health.problem(209.0) == "a write has been stuck for 9s"
    health.end(1)
    assert health.problem(300.0) == ""


# ---- cleaning ----


def _sparse(
    tier: SectorStore, keep_every: int, *, promote: bool = False
) -> tuple[Harness, set[int]]:
    """Return a harness whose file has no free segment to give, and every n-th slot still in use."""
    harness = Harness(SLOTS, 4 * MiB, tier, promote=promote)
    slot = 0
    while tier.stats().free_segments > 2:
        harness.store(slot, *TEXT)
        harness.down.demote(60)
        slot += 60
    kept = set(range(0, slot, keep_every))
    for at in range(slot):
        if at not in kept:
            harness.layer.discard_run(at, 1)
    return harness, kept


@pytest.mark.parametrize("keep_every", [2, 3, 10])
def test_cleaning_makes_room_and_loses_nothing(keep_every: int) -> None:
    memory = MemoryTier(10)
    harness, kept = _sparse(memory, keep_every)
    assert memory.map.free_segments <= 2
    moved = harness.down.clean()
    assert 0 < moved <= len(kept)
    assert harness.counter("cleaned_pages") == moved
    assert memory.map.free_segments > 2
    memory.map.check()
    harness.check()
    for slot in kept:
        assert harness.load(slot) == TEXT[slot % 60]
    writes = memory.writes
    assert harness.down.clean() == 0, "nothing is copied that gains nothing"
    assert memory.writes == writes
    harness.region.close()


def test_cleaning_ends_though_one_segment_is_half_empty() -> None:
    memory = MemoryTier(4)
    harness = Harness(SLOTS, 4 * MiB, memory)
    harness.store(0, *TEXT)
    harness.down.demote(60)
    harness.store(60, *[page("random", seed) for seed in range(220)])
    harness.down.demote(220)
    assert memory.map.free_segments <= 2
    writes = memory.writes
    harness.down.clean()
    assert memory.writes - writes <= 1
    harness.region.close()


def test_damaged_and_bad_sectors_do_not_stop_cleaning() -> None:
    memory = MemoryTier(10)
    harness, kept = _sparse(memory, 5)
    lost = min(kept)
    sector = harness.sector(lost)
    memory.data[sector * SECTOR_SIZE + 100] ^= 1
    for slot in kept - {lost}:  # its segment holds nothing else: the emptiest of all
        if harness.sector(slot) // SEGMENT_SECTORS == sector // SEGMENT_SECTORS:
            harness.layer.discard_run(slot, 1)
    kept = {slot for slot in kept if harness.layer.table.get(slot)} - {lost}
    assert harness.down.clean() > 0
    assert memory.map.free_segments > 2
    harness.check()
    with pytest.raises(BlobCorrupt):
        harness.load(lost)
    for slot in kept:
        assert harness.load(slot) == TEXT[slot % 60]
    harness.region.close()


def test_segments_that_hold_only_damage_are_not_read_again_and_again() -> None:
    memory = MemoryTier(10)
    harness, kept = _sparse(memory, 200)
    assert len({harness.sector(at) // SEGMENT_SECTORS for at in kept}) > 1
    memory.data[:] = bytes(len(memory.data))
    while memory.map.free_segments > 1:  # as if the rest were full
        memory.map.allocate(SEGMENT_SECTORS, cleaning=True)
    reads = memory.reads
    assert harness.down.clean() == 0
    sources = memory.reads - reads
    assert sources > 1
    assert harness.down.clean() == 0
    assert memory.reads - reads == sources
    harness.region.close()


def test_a_segment_that_cannot_be_read_does_not_stop_cleaning() -> None:
    memory = MemoryTier(10)
    outer = TierWrapper(memory)
    harness, kept = _sparse(outer, 5)
    outer.inner = tier = FaultyTier(memory, "read_error", 1)
    assert harness.down.clean() > 0
    assert tier.failures == 1
    assert memory.map.free_segments > 2
    for slot in kept:
        assert harness.load(slot) == TEXT[slot % 60]
    harness.check()
    harness.region.close()


@pytest.mark.parametrize("event", ["rewrite", "discard", "write below", "promote"])
def test_an_event_during_cleaning_keeps_the_right_page(event: str) -> None:
    tier = SlowTier(MemoryTier(10))
    harness, kept = _sparse(tier, 5, promote=event == "promote")
    tier.write_gate.shut()
    thread = threading.Thread(target=harness.down.clean, daemon=True)
    thread.start()
    tier.write_gate.wait_for_arrival()
    moving = [slot for slot, word in harness.layer.table.occupied_words() if word & MOVING]
    slot = moving[0]
    expected = TEXT[slot % 60]
    if event == "rewrite":
        expected = TEXT[7]
        harness.store(slot, expected)
    elif event == "discard":
        expected = bytes(PAGE_SIZE)
        harness.layer.discard_run(slot, 1)
    elif event == "write below":
        tier.write_gate.open()
        expected = TEXT[8]
        harness.write_direct(slot, expected)
    else:
        assert harness.load(slot) == expected
        assert harness.backing(slot) == Backing.POOL
    tier.write_gate.open()
    thread.join(30)
    assert not thread.is_alive()
    harness.check()
    assert harness.load(slot) == expected
    for other in kept - {slot}:
        assert harness.load(other) == TEXT[other % 60]
    harness.region.close()


def test_a_failed_write_while_cleaning_loses_nothing() -> None:
    outer = TierWrapper(MemoryTier(10))
    harness, kept = _sparse(outer, 5)
    outer.inner = FaultyTier(outer.inner, "write_error", 1)
    assert harness.down.clean() == 0
    harness.check()
    for slot in kept:
        assert harness.load(slot) == TEXT[slot % 60]
    harness.now_s += 100
    assert harness.down.clean() > 0
    harness.check()
    harness.region.close()


@pytest.mark.parametrize(("step", "call"), [("add", 1), ("add", 9), ("write", 1)])
def test_a_bug_while_cleaning_leaves_no_slot_moving_and_no_sector_taken(
    step: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryTier(10)
    harness, kept = _sparse(memory, 5)
    taken = memory.map.taken_bytes
    owner = harness.down.writer if step == "add" else memory
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, _failing_at(call, getattr(owner, step)))
        with pytest.raises(MemoryError):
            harness.down.clean()
    harness.check()
    assert memory.map.taken_bytes == taken
    assert bool(memory.map.bad_bytes) == (step == "write")
    assert harness.down.clean() > 0
    harness.check()
    for slot in kept:
        assert harness.load(slot) == TEXT[slot % 60]
    harness.region.close()


def test_a_file_promises_no_more_pages_than_it_holds() -> None:
    memory = MemoryTier(6)
    harness = Harness(SLOTS, 16 * 64 * 1024, memory)
    rng = random.Random(1)
    room = memory.room_pages()
    pages: dict[int, bytes] = {}
    for number in range(4000):  # random rewrites leave crumbs everywhere
        slot = rng.randrange(room)
        pages[slot] = page("random", number % 50)
        assert harness.write(slot, pages[slot]) == PAGE_SIZE, f"refused at {number}"
    harness.check()
    for slot, data in pages.items():
        assert harness.load(slot) == data
    harness.region.close()


# ---- the thread ----


def test_the_thread_demotes_when_kicked_serves_requests_and_stops() -> None:
    harness = Harness(SLOTS, 4 * MiB, MemoryTier(20))
    thread = threading.Thread(target=harness.down.run, daemon=True)
    harness.store(0, *TEXT)
    thread.start()
    answers: list[int] = []
    done = threading.Event()

    def answer(moved: int) -> None:
        answers.append(moved)
        done.set()

    harness.down.request(7, answer)
    assert done.wait(30)
    assert answers == [7]
    slot = 100
    while harness.layer.pool.used_bytes <= harness.down.high_bytes and slot < SLOTS:
        slot += harness.store(slot, page("random", slot))
    harness.down.kick_if_needed()
    done.clear()
    harness.down.request(0, answer)
    assert done.wait(30)
    assert harness.layer.pool.used_bytes <= harness.down.low_bytes, "it balances first"
    harness.down.request(1, answer)
    harness.down.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert len(answers) == 3, "a request at the end is answered too"
    harness.check()
    harness.region.close()


def test_who_waits_for_demotion_is_told_whether_anything_went_down() -> None:
    harness = Harness(SLOTS, 4 * MiB, MemoryTier(3))
    assert not harness.down.wait_for_demotion(0.0), "nobody does it"
    thread = threading.Thread(target=harness.down.run, daemon=True)
    thread.start()
    assert not harness.down.wait_for_demotion(30.0), "there is nothing to demote"
    harness.store(0, *TEXT)
    assert harness.down.wait_for_demotion(30.0)
    assert harness.backing(0) == Backing.BELOW
    harness.down.stop()
    thread.join(30)
    harness.check()
    harness.region.close()


def test_a_request_is_served_though_the_tier_rests_for_long() -> None:
    """The thread sleeps until the next try is due, which may be a minute."""
    tier = FaultyTier(MemoryTier(4), "write_error", 1, 1 << 30)
    harness = Harness(SLOTS, 4 * MiB, tier)
    harness.store(0, *TEXT)
    while harness.health.backoff_s < BACKOFF_MAX_S:
        assert harness.down.demote(5) == 0
        harness.now_s = harness.health.retry_at_s
    assert harness.down.demote(5) == 0
    thread = threading.Thread(target=harness.down.run, daemon=True)
    thread.start()
    answers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for _ in range(2):  # the second time it has gone to sleep again
        harness.down.request(5, answers.put)
        assert answers.get(timeout=BACKOFF_MAX_S / 2) == 0
    harness.down.stop()
    thread.join(30)
    harness.region.close()


class Numbers(TierWrapper):
    """Collects the sequence number of every blob that is written."""

    def __init__(self, inner: SectorStore) -> None:
        super().__init__(inner)
        self.seen: list[int] = []

    def write(self, extent: Extent, batch: Batch) -> None:
        at = 0
        for _ in batch.slots:
            _, _, length, sequence, _ = HEADER.unpack_from(batch.view, at)
            self.seen.append(sequence)
            at += blob_sectors(length) * SECTOR_SIZE
        super().write(extent, batch)


def test_no_two_blobs_share_a_number_whoever_writes_them() -> None:
    """They are nonces: of demotion, cleaning and direct writes, and of the next server."""
    tier = Numbers(MemoryTier(10))
    harness, _ = _sparse(tier, 5)
    for _ in range(2):
        harness.write_direct(3, *TEXT[:5])
        harness.down.clean()
        harness.store(100, *TEXT)
        assert harness.down.demote(5)
        harness = Harness(SLOTS, 4 * MiB, tier, region=harness.region)
    harness.write_direct(3, *TEXT[:5])
    assert len(set(tier.seen)) == len(tier.seen) > 100
    harness.region.close()


def test_the_thread_outlives_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(SLOTS, 4 * MiB, MemoryTier(20))
    monkeypatch.setattr(harness.down, "balance", lambda: 1 // 0)
    thread = threading.Thread(target=harness.down.run, daemon=True)
    thread.start()
    progress = harness.down.writer.progress
    progress.wait_s, mark = 30.0, progress.mark()
    assert harness.down.want_round()
    assert progress.wait(mark)
    assert thread.is_alive()
    assert harness.counter("failed_demotions") == 1
    harness.down.stop()
    thread.join(30)
    harness.region.close()

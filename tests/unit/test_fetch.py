"""Reading what lies in the file tier."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from swapfs.core._core import sign
from swapfs.errors import BlobCorrupt, TierIOError
from swapfs.policy import find
from swapfs.testing.faulty import FaultyTier
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import mixed_pages, page
from swapfs.testing.slow import SlowTier
from swapfs.testing.wrapper import TierWrapper
from swapfs.tiers.sectors import SectorStore
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, SECTOR_SIZE, MiB, PSector
from swapfs.vlayer import single_flight
from swapfs.vlayer.entry import Backing
from swapfs.vlayer.layer import SlotDamaged
from swapfs.vlayer.prefetch import PENDING
from swapfs.vlayer.single_flight import Flight
from tests.unit import events

TEXT = [page("text", seed) for seed in range(40)]


def _demoted(tier: SectorStore, pages: list[bytes], *, promote: bool = False) -> Harness:
    harness = Harness(4 * CLUSTER_SLOTS, 4 * MiB, tier, promote=promote)
    harness.store(0, *pages)
    assert harness.down.demote(len(pages))
    return harness


def _prefetching(pages: int, most: int = 16, **options: Any) -> Harness:
    harness = Harness(4 * CLUSTER_SLOTS, 4 * MiB, MemoryTier(8), prefetch=most, **options)
    harness.store(0, *mixed_texts(pages))
    assert harness.down.demote(pages)
    return harness


def mixed_texts(pages: int) -> list[bytes]:
    return [page("text", seed) for seed in range(pages)]


def _damage_in_memory(harness: Harness, slot: int) -> None:
    blob = harness.layer.blob(harness.layer.table.get(slot))
    blob[:] = b"\xff" * len(blob)


class Reader(threading.Thread):
    """Loads slots in a thread of its own."""

    def __init__(self, harness: Harness, slot: int, count: int = 1) -> None:
        super().__init__(daemon=True)
        self._what = (harness, slot, count)
        self.result: bytes | Exception = b""
        self.start()

    def run(self) -> None:
        try:
            harness, slot, count = self._what
            self.result = harness.load(slot, count)
        except (BlobCorrupt, TierIOError, AssertionError) as error:
            self.result = error

    def finish(self) -> bytes | Exception:
        self.join(30)
        assert not self.is_alive(), "a reader hangs"
        return self.result


@pytest.fixture
def slow() -> Iterator[tuple[Harness, SlowTier, MemoryTier]]:
    memory = MemoryTier(6)
    tier = SlowTier(memory)
    harness = _demoted(tier, TEXT)
    yield harness, tier, memory
    tier.read_gate.open()
    harness.region.close()


def test_blobs_that_lie_side_by_side_are_one_disk_read() -> None:
    memory = MemoryTier(4)
    harness = _demoted(memory, TEXT)
    assert harness.load(0, 40) == b"".join(TEXT)
    assert memory.reads == 1
    assert harness.load(39) == TEXT[39]
    assert harness.counter("file_read_ops") == 2
    assert harness.counter("read_file_pages") == 41
    harness.check()
    harness.region.close()


def test_a_run_mixes_memory_file_and_nothing() -> None:
    pages = mixed_pages(4, 300)
    harness = _demoted(MemoryTier(8), pages)
    for slot in range(0, 300, 7):
        harness.store(slot, TEXT[1])
        pages[slot] = TEXT[1]
    harness.layer.discard_run(100, 20)
    pages[100:120] = [bytes(PAGE_SIZE)] * 20
    assert harness.load(0, 300) == b"".join(pages)
    assert harness.load(90, 600)[: 210 * PAGE_SIZE] == b"".join(pages[90:])
    harness.region.close()


def test_concurrent_reads_of_one_slot_share_one_disk_read(
    slow: tuple[Harness, SlowTier, MemoryTier],
) -> None:
    harness, tier, memory = slow
    tier.read_gate.shut()
    leader = Reader(harness, 5)
    tier.read_gate.wait_for_arrival()
    followers = [Reader(harness, 5) for _ in range(4)]
    _wait_for_followers(harness, 4)
    tier.read_gate.open()
    assert [reader.finish() for reader in (leader, *followers)] == [TEXT[5]] * 5
    assert memory.reads == 1
    assert harness.load(5) == TEXT[5]
    assert memory.reads == 2, "the next one reads for itself"


def _wait_for_followers(harness: Harness, count: int = 1) -> None:
    """Let the other threads run until *count* readers wait for the disk read of another."""
    deadline_s = time.monotonic() + 30
    while harness.fetcher.followers < count:
        assert time.monotonic() < deadline_s, "nobody follows"
        time.sleep(0.001)


def _assert_nobody_waits(harness: Harness, slot: int, count: int) -> None:
    """Assert that a later read waits for none that has ended."""
    assert Reader(harness, slot, count).finish() == b"".join(TEXT[slot : slot + count])


def test_a_run_ends_where_another_read_is_under_way(
    slow: tuple[Harness, SlowTier, MemoryTier],
) -> None:
    harness, tier, memory = slow
    tier.read_gate.shut()
    first = Reader(harness, 5)
    tier.read_gate.wait_for_arrival()
    second = Reader(harness, 3, 4)
    tier.read_gate.wait_for_arrival(2)
    tier.read_gate.open()
    assert first.finish() == TEXT[5]
    assert second.finish() == b"".join(TEXT[3:7])
    assert memory.reads == 3 or memory.reads == 4


def _rewrite_below(harness: Harness) -> bytes:
    harness.write_direct(5, TEXT[21])
    return TEXT[21]


EVENTS = [events.rewrite, _rewrite_below, events.discard]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("overwritten", [False, True], ids=["old bytes", "torn bytes"])
def test_a_slot_that_changes_during_its_read_is_looked_at_again(
    slow: tuple[Harness, SlowTier, MemoryTier], event: Callable[[Harness], bytes], overwritten: bool
) -> None:
    harness, tier, memory = slow
    sector = harness.sector(5)
    if overwritten:  # its sectors went to somebody else before the disk was read
        memory.data[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE] = b"\x55" * SECTOR_SIZE
    tier.read_gate.shut()
    reader = Reader(harness, 5)
    tier.read_gate.wait_for_arrival()
    new = event(harness)
    tier.read_gate.open()
    got = reader.finish()
    assert got == new or (got == TEXT[5] and not overwritten)
    assert harness.counter("failed_read_checksum") == 0
    assert harness.load(5) == new


@pytest.mark.parametrize("event", EVENTS)
def test_a_follower_looks_again_too(
    slow: tuple[Harness, SlowTier, MemoryTier], event: Callable[[Harness], bytes]
) -> None:
    harness, tier, memory = slow
    sector = harness.sector(5)
    memory.data[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE] = b"\x55" * SECTOR_SIZE
    tier.read_gate.shut()
    readers = [Reader(harness, 5)]
    tier.read_gate.wait_for_arrival()
    readers.append(Reader(harness, 5))
    _wait_for_followers(harness)
    new = event(harness)
    tier.read_gate.open()
    assert [reader.finish() for reader in readers] == [new, new]


def test_damage_is_that_slot_only() -> None:
    memory = MemoryTier(4)
    harness = _demoted(memory, TEXT)
    sector = harness.sector(7)
    memory.data[sector * SECTOR_SIZE + 200] ^= 4
    assert harness.load(0, 40) == b"".join(TEXT[:7]), "what comes before it is delivered"
    with pytest.raises(BlobCorrupt, match="slot 7"):
        harness.load(7, 10)
    assert harness.load(8, 32) == b"".join(TEXT[8:])
    assert harness.counter("failed_read_checksum") == 2
    assert harness.counter("failed_read_io") == 0
    with pytest.raises(BlobCorrupt):
        harness.load(7)
    harness.store(7, TEXT[0])
    assert harness.load(7) == TEXT[0]
    harness.region.close()


def test_damage_in_memory_in_the_middle_of_a_run() -> None:
    harness = _demoted(MemoryTier(4), TEXT)
    harness.store(3, TEXT[3])
    _damage_in_memory(harness, 3)
    assert harness.load(0, 10) == b"".join(TEXT[:3])
    with pytest.raises(SlotDamaged):
        harness.load(3, 5)
    harness.region.close()


def test_a_failed_read_is_an_error_once() -> None:
    tier = FaultyTier(MemoryTier(4), "read_error", 1)
    harness = _demoted(tier, TEXT)
    with pytest.raises(TierIOError):
        harness.load(0)
    assert harness.counter("failed_read_io") == 1
    _assert_nobody_waits(harness, 0, 40)
    harness.region.close()


def _sharing(harness: Harness, tier: SlowTier) -> tuple[Reader, Reader]:
    """Return two readers of slot 5, the second of which waits for the first one's disk read."""
    tier.read_gate.shut()
    leader = Reader(harness, 5)
    tier.read_gate.wait_for_arrival()
    follower = Reader(harness, 5)
    _wait_for_followers(harness)
    return leader, follower


class BadSector(TierWrapper):
    """A tier in which no read that covers sector ``bad`` succeeds."""

    bad = -1

    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:
        if sector <= self.bad < sector + sectors:
            raise TierIOError(f"read at sector {sector}: Input/output error")
        return super().read(sector, sectors, scratch)


def test_a_bad_sector_costs_its_slot_and_none_beside_it() -> None:
    tier = BadSector(MemoryTier(4))
    harness = _demoted(tier, TEXT)
    tier.bad = harness.sector(5)
    assert harness.load(0, 8) == b"".join(TEXT[:5])
    assert harness.counter("failed_read_io") == 1
    with pytest.raises(TierIOError):
        harness.load(5, 8)
    assert harness.counter("failed_read_io") == 2
    assert harness.load(6, 8) == b"".join(TEXT[6:14])
    harness.check()
    harness.region.close()


def test_who_follows_a_read_that_a_bad_sector_ended_reads_for_himself() -> None:
    slow = SlowTier(MemoryTier(6))
    tier = BadSector(slow)
    harness = _demoted(tier, TEXT)
    tier.bad = harness.sector(5)
    slow.read_gate.shut()
    leader = Reader(harness, 4, 8)
    slow.read_gate.wait_for_arrival()
    follower = Reader(harness, 7)
    _wait_for_followers(harness)
    slow.read_gate.open()
    assert leader.finish() == TEXT[4]
    assert follower.finish() == TEXT[7]
    harness.region.close()


def test_no_memory_while_boarding_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = _demoted(MemoryTier(4), TEXT)
    made = 0

    def make(slot: int, ref: int, codec: int, *, word: int) -> Flight:
        nonlocal made
        made += 1
        if made == 3:
            raise MemoryError
        return Flight(slot, ref, codec, word=word)

    with monkeypatch.context() as patch:
        patch.setattr(single_flight, "Flight", make)
        with pytest.raises(MemoryError):
            harness.load(0, 8)
    assert made == 3
    _assert_nobody_waits(harness, 0, 8)
    harness.region.close()


def test_followers_learn_of_the_leaders_failure() -> None:
    tier = SlowTier(FaultyTier(MemoryTier(4), "flipped_read", 1))
    harness = _demoted(tier, TEXT)
    leader, follower = _sharing(harness, tier)
    tier.read_gate.open()
    assert isinstance(leader.finish(), BlobCorrupt)
    assert isinstance(follower.finish(), BlobCorrupt)
    assert harness.load(5) == TEXT[5]
    harness.region.close()


def test_followers_that_cannot_have_a_copy_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = SlowTier(MemoryTier(4))
    harness = _demoted(tier, TEXT)
    leader, follower = _sharing(harness, tier)

    def exhausted(_payload: object) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(single_flight, "bytes", exhausted, raising=False)
        tier.read_gate.open()
        assert leader.finish() == TEXT[5], "it needs no copy"
        assert isinstance(follower.finish(), TierIOError)
    assert harness.load(5) == TEXT[5]
    harness.region.close()


def test_a_bug_in_the_tier_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = MemoryTier(4)
    harness = _demoted(tier, TEXT)

    def buggy(*_: object) -> memoryview:
        raise RuntimeError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(tier, "read", buggy)
        with pytest.raises(RuntimeError):
            harness.load(0, 8)
    _assert_nobody_waits(harness, 0, 8)
    harness.region.close()


def test_a_blob_that_is_no_page_leaves_nobody_waiting() -> None:
    harness = Harness(CLUSTER_SLOTS, 4 * MiB, MemoryTier(4))
    harness.store(0, *TEXT[:3])
    _damage_in_memory(harness, 1)
    table = harness.layer.table
    word = table.get(1)
    table.exchange(1, sign(word, harness.layer.blob(word)), "write")  # as if it had come so
    harness.down.demote(3)
    assert harness.load(0, 3) == TEXT[0]
    with pytest.raises(BlobCorrupt):
        harness.load(1, 2)
    _assert_nobody_waits(harness, 2, 1)
    harness.region.close()


def test_promotion_brings_pages_back_and_frees_the_file() -> None:
    memory = MemoryTier(4)
    harness = _demoted(memory, TEXT, promote=True)
    assert harness.load(0, 40) == b"".join(TEXT)
    assert {harness.backing(slot) for slot in range(40)} == {Backing.POOL}
    assert memory.map.taken_bytes == 0
    assert harness.counter("promoted_pages") == 40
    harness.check()
    assert harness.load(0, 40) == b"".join(TEXT)
    assert memory.reads == 1
    harness.region.close()


def test_without_promotion_a_page_stays_where_it_is() -> None:
    harness = _demoted(MemoryTier(4), TEXT)
    harness.load(0, 40)
    assert {harness.backing(slot) for slot in range(40)} == {Backing.BELOW}
    harness.region.close()


def test_what_lies_beside_a_page_comes_up_in_the_same_read() -> None:
    harness = _prefetching(40)
    assert harness.load(4, 2) == TEXT[4] + TEXT[5]
    came = [slot for slot in range(40) if harness.backing(slot) is Backing.POOL]
    assert came == list(range(6, 14)), "eight to begin with, behind what was asked for"
    assert harness.counter("file_read_ops") == 1
    assert harness.counter("read_file_pages") == 2
    assert harness.counter("prefetched_pages") == 8
    harness.check()
    assert harness.load(6, 8) == b"".join(TEXT[6:14])
    assert harness.counter("file_read_ops") == 1
    harness.region.close()


def test_prefetch_goes_further_where_it_pays_and_less_far_where_not() -> None:
    harness = _prefetching(1400, most=32)
    prefetcher = harness.prefetcher
    assert prefetcher is not None
    for slot in range(0, 700, 2):  # in order: all that comes up is used
        harness.load(slot, 2)
    assert prefetcher.window == 32
    used = harness.counter("prefetch_used_pages")
    assert used >= 200
    for slot in range(700, 1360, 33):  # and now none
        harness.load(slot)
    assert prefetcher.window < 8
    assert harness.counter("prefetch_used_pages") - used <= PENDING, "of those that came before"
    harness.check()
    harness.region.close()


def test_a_damaged_neighbour_is_nobodys_error_until_it_is_asked_for() -> None:
    tier = MemoryTier(4)
    harness = Harness(CLUSTER_SLOTS, 4 * MiB, tier, prefetch=8)
    harness.store(0, *TEXT[:8])
    harness.down.demote(8)
    tier.data[harness.sector(3) * SECTOR_SIZE + 200] ^= 4
    assert harness.load(0) == TEXT[0]
    assert harness.counter("failed_read_checksum") == 0
    assert harness.backing(2) is Backing.POOL
    assert harness.backing(3) is Backing.BELOW
    with pytest.raises(BlobCorrupt, match="slot 3"):
        harness.load(3)
    harness.region.close()


def test_a_policy_says_how_many_come_along_and_never_too_many() -> None:
    class Few(find("fifo")):  # type: ignore[misc]
        answers: ClassVar[list[object]] = [0, 3, 999, -1, "x"]

        def prefetch(self, slot: int, count: int, most: int) -> int:
            return self.answers.pop(0)  # type: ignore[return-value]

    harness = _prefetching(60, policy=Few, log_bytes=MiB)
    came = []
    for slot in (0, 10, 20, 40, 50):
        before = harness.counter("prefetched_pages")
        harness.load(slot)
        came.append(harness.counter("prefetched_pages") - before)
    assert came == [0, 3, 8, 0, 0]
    assert harness.counter("policy_failures") == 1
    harness.region.close()


def test_a_neighbour_that_is_rewritten_meanwhile_stays_as_it_is() -> None:
    tier = SlowTier(MemoryTier(4))
    harness = Harness(CLUSTER_SLOTS, 4 * MiB, tier, prefetch=8)
    harness.store(0, *TEXT[:8])
    harness.down.demote(8)
    tier.read_gate.shut()
    reader = Reader(harness, 0)
    tier.read_gate.wait_for_arrival()
    harness.store(3, TEXT[9])
    tier.read_gate.open()
    assert reader.finish() == TEXT[0]
    assert harness.load(0, 8) == b"".join([*TEXT[:3], TEXT[9], *TEXT[4:8]])
    assert harness.counter("prefetched_pages") == 6
    harness.check()
    harness.region.close()


def test_promotion_of_a_slot_that_changed_does_nothing() -> None:
    tier = SlowTier(MemoryTier(4))
    harness = _demoted(tier, TEXT, promote=True)
    tier.read_gate.shut()
    reader = Reader(harness, 5)
    tier.read_gate.wait_for_arrival()
    harness.store(5, TEXT[9])
    tier.read_gate.open()
    reader.finish()
    assert harness.load(5) == TEXT[9]
    assert harness.counter("promoted_pages") == 0
    harness.check()
    harness.region.close()


def test_promotion_into_a_full_pool_does_nothing() -> None:
    harness = _demoted(MemoryTier(6), [page("random", seed) for seed in range(20)], promote=True)
    slot = 20
    while harness.store(slot, page("random", slot)):
        slot += 1
    assert harness.load(3) == page("random", 3)
    assert harness.backing(3) == Backing.BELOW
    harness.check()
    harness.region.close()


def test_reads_of_young_blobs_are_refaults() -> None:
    harness = _demoted(MemoryTier(4), TEXT)
    harness.load(0, 10)
    assert harness.counter("refaulted_pages") == 10
    younger, pool_pages = 0, harness.region.geometry.pool_bytes // PAGE_SIZE
    while younger <= pool_pages:
        assert harness.write_direct(50, *TEXT) > 0
        younger += len(TEXT)
    harness.load(0, 10)
    assert harness.counter("refaulted_pages") == 10
    harness.region.close()

"""No failure may leave a reference cycle: gc is off in the server, and its memory is locked.

Each kind of failure is made many times with gc off; then a collection must find nothing, and
there must be no more objects than before. An exception that is kept where its own traceback can
reach it is such a cycle, and holds every frame between (8 KB for a failed read, once).
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ENOSPC

import pytest

from swapfs.errors import TierError, TierIOError
from swapfs.server.workers import Buffers, Workers
from swapfs.testing.faulty import FaultyTier
from swapfs.testing.harness import Rig
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.testing.wrapper import TierWrapper
from swapfs.tiers.base import LowerTier
from swapfs.units import MiB, PSector
from swapfs.vlayer.layer import SlotDamaged

TIMES = 1000
ALWAYS = 1 << 30


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Have nothing logged: pytest keeps log records, and with them the errors they tell of."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def assert_nothing_stays(fail: Callable[[], object], times: int = TIMES) -> None:
    """Call *fail* again and again with gc off; nothing may be left behind by it."""
    for _ in range(20):  # what is made once: caches, free lists
        fail()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(times):
            fail()
        left = len(gc.get_objects()) - before
        unreachable = gc.collect()
    finally:
        gc.enable()
    assert unreachable == 0, f"{unreachable} objects in cycles after {times} failures"
    assert left < times // 10, f"{left} objects more after {times} failures"


def _demoted(tier: LowerTier, pages: int = 8) -> Rig:
    rig = Rig(1024, 4 * MiB, tier)
    rig.store(0, *(page("heap", number) for number in range(pages)))
    assert rig.down.demote(pages) == pages
    return rig


def _load(rig: Rig, slot: int, count: int = 1) -> None:
    with suppress(TierError, SlotDamaged):
        rig.load(slot, count)


@pytest.mark.parametrize("fault", ["read_error", "short_read", "flipped_read"])
@pytest.mark.parametrize("count", [1, 8])
def test_failed_reads_of_the_file_tier(fault: str, count: int) -> None:
    rig = _demoted(FaultyTier(MemoryTier(8), fault, 1, ALWAYS))
    assert_nothing_stays(lambda: _load(rig, 0, count))
    assert rig.counter("failed_read_io") + rig.counter("failed_read_checksum") > TIMES


def test_a_blob_that_is_no_page() -> None:
    rig = Rig(1024, 4 * MiB, MemoryTier(8))
    rig.store(0, page("heap", 0))
    blob = rig.layer.blob(rig.layer.table.get(0))
    blob[:] = b"\xff" * len(blob)
    assert_nothing_stays(lambda: _load(rig, 0))  # in memory
    rig.down.demote(1)
    assert_nothing_stays(lambda: _load(rig, 0))


class FailsWhileFollowed(TierWrapper):
    """A tier whose reads fail as soon as another thread waits for the same bytes."""

    rig: Rig | None = None

    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:
        rig = self.rig
        assert rig is not None
        follower = threading.Thread(target=_load, args=(rig, 0), daemon=True)
        follower.start()
        self.follower = follower
        deadline_s = time.monotonic() + 30
        while not rig.fetcher.followers:
            assert time.monotonic() < deadline_s, "nobody follows"
            time.sleep(0)
        raise TierIOError("made to fail")


def test_followers_of_a_failed_read() -> None:
    tier = FailsWhileFollowed(MemoryTier(8))
    tier.rig = rig = _demoted(tier)

    def fail() -> None:
        _load(rig, 0)
        tier.follower.join(30)

    assert_nothing_stays(fail, TIMES // 4)
    assert rig.counter("failed_read_io") >= 2 * TIMES // 4


@pytest.mark.parametrize("fault", ["write_error", "full"])
def test_failed_demotions(fault: str) -> None:
    rig = Rig(1024, 4 * MiB, FaultyTier(MemoryTier(8), fault, 1, ALWAYS))
    rig.store(0, *(page("heap", number) for number in range(8)))

    def fail() -> None:
        rig.now_s += 100  # past the pause after a failure
        assert rig.down.demote(8) == 0

    # each failed write makes its sectors bad, for good
    assert_nothing_stays(fail, 50 if fault == "write_error" else TIMES)


@pytest.mark.parametrize("fault", ["write_error", "full"])
def test_failed_direct_writes(fault: str) -> None:
    rig = Rig(1024, 4 * MiB, FaultyTier(MemoryTier(8), fault, 1, ALWAYS))
    slot = 0
    while rig.store(slot, page("random", slot)):
        slot += 1

    def fail() -> None:
        rig.now_s += 100
        assert rig.write_direct(slot, page("random", slot)) < 0

    assert_nothing_stays(fail, 50 if fault == "write_error" else TIMES)


def test_writes_that_nobody_has_room_for() -> None:
    rig = Rig(1024, 2 * 65536)
    slot = 0
    while rig.store(slot, page("random", slot)):
        slot += 1

    def fail() -> None:
        assert rig.write(slot, page("random", slot)) == -ENOSPC

    assert_nothing_stays(fail)


def test_bugs_in_a_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = MemoryTier(8)
    rig = _demoted(tier)

    def buggy(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    for name in ("read", "write"):
        monkeypatch.setattr(tier, name, buggy)

    def fail() -> None:
        rig.now_s += 100
        with suppress(ZeroDivisionError):
            rig.load(0, 8)
        rig.write_direct(9, page("heap", 9))

    assert_nothing_stays(fail, 50)


def test_jobs_of_a_worker_that_fail() -> None:
    workers = Workers(1, 4096, 4096)
    workers.start()
    ended = threading.Semaphore(0)

    def job(buffers: Buffers) -> None:
        ended.release()
        raise ZeroDivisionError("planted")

    def fail() -> None:
        workers.submit(job)
        assert ended.acquire(timeout=30)

    assert_nothing_stays(fail)
    workers.stop(30)

"""A server dies between any two stores to the region: every slot has its old page or its new one.

C and Python alike: a store is caught by the page that it goes to (``tape.py``). After each, the
region is what the next server would find, and so is the medium of the file tier.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from swapfs.errors import OverQuota
from swapfs.region.export_rows import ExportRow
from swapfs.testing.pages import KINDS, page
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE
from tests.property.crash import SLOTS, History, die_everywhere, names

RAW = [page("random", seed) for seed in range(40)]
HEAP = [page("heap", seed) for seed in range(40)]
TEXT = [page("text", seed) for seed in range(40)]


def _fill(history: History) -> None:
    """Blobs of several classes in two clusters, places that were used before, two files' worth."""
    history.store(0, *RAW[:6], *HEAP[:20], page("same", 1))
    history.store(CLUSTER_SLOTS - 2, *TEXT[:4])
    history.demote(10)
    history.discard(2, 5)
    history.demote(6)
    history.store(40, *HEAP[20:30])


# ---- one operation at a time, by hand ----


def _overwrite_by_each_kind(history: History) -> None:
    for slot, data in enumerate([page("same", 3), HEAP[30], RAW[30], TEXT[30]], 40):
        history.store(slot, data)
    history.store(40, RAW[31], page("zero", 0), HEAP[31], HEAP[32])


def _overwrite_what_is_alone_in_its_zspage(history: History) -> None:
    """The old place is the last of its zspage, which then belongs to no class."""
    history.store(60, TEXT[1])
    history.store(60, RAW[1])
    history.store(60, page("same", 1))


def _first_and_last_slot_of_a_cluster(history: History) -> None:
    """Its table page lies where another one was, whose first word is a link of the free list."""
    for data in (HEAP[1], page("same", 2), RAW[1]):
        history.store(2 * CLUSTER_SLOTS, data)
        history.discard(2 * CLUSTER_SLOTS)


def _discard(history: History) -> None:
    history.discard(0, 30)
    history.discard(0, 3 * CLUSTER_SLOTS)


def _demote(history: History) -> None:
    assert history.demote(12) > 4
    assert history.demote(12) > 2


def _overwrite_what_is_in_the_file(history: History) -> None:
    history.store(0, RAW[9], HEAP[9], page("same", 9))
    history.write_around(3, RAW[8], HEAP[8])
    history.discard(8, 4)


def _write_around(history: History) -> None:
    history.write_around(0, *HEAP[3:6])
    history.write_around(42, RAW[3])
    history.write_around(2 * CLUSTER_SLOTS, TEXT[3])


def _patch(history: History) -> None:
    for slot in (0, 1, 26, 41, 45, 300):
        history.patch(slot, 100, b"patched")


def _clean(history: History) -> None:
    assert history.clean() > 4


def _rebuild(history: History) -> None:
    history.store(44, RAW[4])
    history.crash()
    history.store(45, RAW[5])
    history.demote(4)


@pytest.mark.parametrize(
    "play",
    [
        *(_overwrite_by_each_kind, _overwrite_what_is_alone_in_its_zspage),
        *(_first_and_last_slot_of_a_cluster, _discard, _demote, _overwrite_what_is_in_the_file),
        *(_write_around, _patch, _clean, _rebuild),
    ],
    ids=lambda play: play.__name__.lstrip("_"),
)
def test_a_slot_has_its_old_page_or_its_new_one(play: Callable[[History], None]) -> None:
    history = History()
    _fill(history)
    assert die_everywhere(history, play) > 10


def test_a_page_that_comes_back_is_in_one_place() -> None:
    history = History(promote=True)
    _fill(history)

    def play(history: History) -> None:
        history.read(0, 12)

    assert die_everywhere(history, play) > 20
    assert history.harness.counter("promoted_pages") > 4


def test_a_page_that_is_moved_in_the_pool_is_in_one_place() -> None:
    history = History()
    history.store(0, *HEAP, *(page("heap", seed) for seed in range(100, 140)))
    for slot in range(0, 80, 2):
        history.discard(slot)

    def play(history: History) -> None:
        assert history.compact()

    assert die_everywhere(history, play) > 20
    assert history.harness.counter("compacted_pages") > 2


def test_a_page_that_is_recompressed_is_in_one_place() -> None:
    history = History()
    history.store(0, *HEAP[:12], *RAW[:3], *TEXT[:4])
    history.store(CLUSTER_SLOTS, TEXT[5])

    def play(history: History) -> None:
        history.recompress()
        assert history.recompress() > 12
        for _ in range(4):
            history.read(0, 3)
        assert history.recompress() == 3

    assert die_everywhere(history, play) > 60
    assert history.harness.counter("recompress_refused_pages") >= 3


def test_a_page_that_goes_from_tier_to_tier_is_in_one_place() -> None:
    history = History(tiers=2)
    _fill(history)
    history.demote(8)

    def play(history: History) -> None:
        assert history.sink(3) == 3
        assert history.drain(1) > 3
        history.write_around(CLUSTER_SLOTS - 2, RAW[1], RAW[2])
        assert history.drain(2) > 6

    assert die_everywhere(history, play) > 40
    assert history.harness.counter("drained_pages") > 9
    assert history.harness.counter("sunk_pages") == 3


def test_a_page_that_is_read_below_becomes_warm_and_stays() -> None:
    """Reads of a tier store to words too; the waterfall cools them and moves the others."""
    history = History(tiers=2)
    _fill(history)
    history.demote(12)

    def play(history: History) -> None:
        history.read(0, 12)
        history.waterfall()
        history.read(0, 6)
        assert history.drain(1) >= 0

    assert die_everywhere(history, play) > 20
    assert history.harness.counter("sunk_pages") + history.harness.counter("drained_pages") > 4


def test_a_pool_that_is_made_smaller_and_larger_is_of_one_size() -> None:
    history = History()
    history.store(0, *RAW[:12], *HEAP)
    history.store(CLUSTER_SLOTS, *TEXT)
    history.store(2 * CLUSTER_SLOTS, *TEXT[:4], *RAW[20:30])
    history.discard(4, 30)
    pool = history.harness.layer.pool

    def play(history: History) -> None:
        history.resize(pool.zspages.in_use - 1)
        history.store(3, RAW[33])
        history.resize(8)
        history.store(CLUSTER_SLOTS + 3, RAW[34], HEAP[3])

    assert die_everywhere(history, play) > 20
    assert history.harness.counter("compacted_pages") > 2


# ---- at random ----


def _random_operation(history: History, rng: random.Random) -> None:
    slots = [rng.randrange(70), CLUSTER_SLOTS - 3, 2 * CLUSTER_SLOTS]
    if history.exports:
        slots = [cluster * CLUSTER_SLOTS + rng.randrange(40) for cluster in range(3)]
    slot = rng.choice(slots)
    pages = [page(rng.choice(KINDS), rng.randrange(99)) for _ in range(rng.randrange(1, 5))]
    operations: list[tuple[int, Callable[[], object]]] = [
        (8, lambda: history.store(slot, *pages)),
        (3, lambda: history.write_around(slot, *pages)),
        (3, lambda: history.patch(slot, rng.randrange(4000), b"patch")),
        (4, lambda: history.discard(slot, min(rng.choice([1, 4, CLUSTER_SLOTS]), SLOTS - slot))),
        (4, lambda: history.read(slot, len(pages))),
        (4, lambda: history.demote(rng.randrange(1, 9))),
        (2, history.clean),
        (2, history.compact),
        (3, history.recompress),
        (1, history.crash),
    ]
    if len(history.tiers) > 1:
        operations += [
            (2, lambda: history.drain(rng.randrange(1, 3))),
            (2, lambda: history.sink(rng.randrange(1, 9))),
            (2, history.waterfall),
        ]
    weights, choices = zip(*operations, strict=True)
    rng.choices(choices, weights)[0]()


@pytest.mark.parametrize("seed", range(8))
def test_random_histories_may_end_anywhere(seed: int) -> None:
    rng = random.Random(seed)
    history = History(promote=bool(seed % 2))
    _fill(history)

    def play(history: History) -> None:
        for _ in range(24):
            _random_operation(history, rng)

    assert die_everywhere(history, play) > 50
    assert len(names(history.steps)) > 3


class ThreeExports(History):
    """Of three swap files one has a quota, and two may use one of two tiers."""

    exports = (
        ExportRow("swap", 0, CLUSTER_SLOTS, tiers=0b010),
        ExportRow("batch", CLUSTER_SLOTS, CLUSTER_SLOTS, 0, 24 * PAGE_SIZE),
        ExportRow("rest", 2 * CLUSTER_SLOTS, CLUSTER_SLOTS, tiers=0b100),
    )

    def store(self, slot: int, *pages: bytes) -> None:
        with self.step("store"):
            with suppress(OverQuota):
                self.harness.store(slot, *pages)
            self._write_taken(slot, pages)

    def write_around(self, slot: int, *pages: bytes) -> None:
        with self.step("write around"):
            self.harness.write_direct(slot, *pages)
            self._write_taken(slot, pages)

    def patch(self, slot: int, start: int, data: bytes) -> None:
        with suppress(OverQuota):
            super().patch(slot, start, data)

    def _write_taken(self, slot: int, pages: Sequence[bytes]) -> None:
        """Write to the model those of *pages* that were taken: a quota may be reached between."""
        for at, data in enumerate(pages, slot):
            if self.harness.load(at) == data:
                self.model.write(at, data)


@pytest.mark.parametrize("seed", range(6))
def test_what_several_exports_have_is_counted_anew_wherever_it_ends(seed: int) -> None:
    """`Harness.check` counts what each has page by page, and so after each death."""
    rng = random.Random(seed)
    history = ThreeExports(tiers=2, promote=bool(seed % 2))
    for cluster in range(3):
        history.store(cluster * CLUSTER_SLOTS, *HEAP[:12], *RAW[:6], *TEXT[:4])

    def play(history: History) -> None:
        for _ in range(24):
            _random_operation(history, rng)

    assert die_everywhere(history, play) > 50
    assert len(names(history.steps)) > 3

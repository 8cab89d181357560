"""Second chance over the table: the default policy, through the chooser."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from swapfs.testing.harness import Harness
from swapfs.testing.pages import page
from swapfs.units import CLUSTER_SLOTS, MiB
from swapfs.vlayer.choice import Chooser
from swapfs.vlayer.entry import HEAT_MASK, MOVING


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(8 * CLUSTER_SLOTS, 4 * MiB)
    yield harness
    harness.region.close()


def _fill(harness: Harness, *slots: int, kind: str = "text") -> None:
    for slot in slots:
        assert harness.store(slot, page(kind, slot))


def _victims(harness: Harness, chooser: Chooser) -> list[int]:
    """Take every victim, as demotion does."""
    taken = []
    with harness.layer.lock:
        for slot, _ in chooser.victims():
            harness.layer.table.mark(slot, MOVING, on=True)
            taken.append(slot)
    return taken


def test_new_blobs_get_a_second_chance(harness: Harness) -> None:
    _fill(harness, 3, 700, 5)
    assert _victims(harness, Chooser(harness.layer)) == [3, 5, 700]


def test_what_was_read_since_it_was_found_cold_stays(harness: Harness) -> None:
    _fill(harness, *range(10))
    chooser, seen = Chooser(harness.layer), []
    with harness.layer.lock:
        for slot, _ in chooser.victims():
            seen.append(slot)
            if slot == 2:
                harness.layer.table.warm(4)
    assert seen[:9] == [0, 1, 2, 3, 5, 6, 7, 8, 9], "it gets another round"


def test_only_blobs_in_the_pool_that_do_not_move_are_offered(harness: Harness) -> None:
    _fill(harness, 1, 2, 3)
    _fill(harness, 4, kind="zero")
    harness.layer.table.mark(2, MOVING, on=True)
    assert _victims(harness, Chooser(harness.layer)) == [1, 3]


def test_clusters_come_in_the_order_of_their_first_use(harness: Harness) -> None:
    _fill(harness, 3 * CLUSTER_SLOTS, 0, 5 * CLUSTER_SLOTS)
    assert _victims(harness, Chooser(harness.layer)) == [3 * CLUSTER_SLOTS, 0, 5 * CLUSTER_SLOTS]


def test_what_was_handed_back_comes_first_and_second_chances_are_kept(harness: Harness) -> None:
    _fill(harness, *range(20))
    for slot in range(20):
        harness.layer.table.mark(slot, HEAT_MASK, on=False)
    harness.layer.table.mark(12, HEAT_MASK, on=True)
    chooser = Chooser(harness.layer)
    with harness.layer.lock:
        for slot, _ in chooser.victims():
            if slot == 10:
                chooser.back(slot)
                break
        again = [slot for slot, _ in zip_first(chooser, 9)]
    assert again == [10, 11, *range(13, 20)]
    assert not harness.layer.table.get(12) & HEAT_MASK


def zip_first(chooser: Chooser, count: int) -> list[tuple[int, int]]:
    return list(islice(chooser.victims(), count))


def test_batches_of_one_take_all_in_order(harness: Harness) -> None:
    _fill(harness, *range(100))
    chooser, taken = Chooser(harness.layer), []
    with harness.layer.lock:
        for _ in range(100):
            for number, (slot, _) in enumerate(chooser.victims()):
                if number:
                    chooser.back(slot)
                    break
                taken.append(slot)
                harness.layer.table.mark(slot, MOVING, on=True)
    assert taken == list(range(100))


def test_a_cluster_that_went_while_the_hand_was_in_it(harness: Harness) -> None:
    _fill(harness, *range(100), 600)
    chooser = Chooser(harness.layer)
    with harness.layer.lock:
        next(chooser.victims())
    harness.layer.discard_run(0, CLUSTER_SLOTS)
    assert _victims(harness, chooser) == [600]


def test_an_empty_table_has_no_victims(harness: Harness) -> None:
    hand = Chooser(harness.layer)
    assert _victims(harness, hand) == []
    _fill(harness, 1)
    assert _victims(harness, hand) == [1]

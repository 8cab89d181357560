"""The clock hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swapfs.testing.harness import Harness
from swapfs.testing.pages import page
from swapfs.units import CLUSTER_SLOTS, MiB
from swapfs.vlayer.clock import ClockHand
from swapfs.vlayer.entry import HEAT_MASK, MOVING


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(8 * CLUSTER_SLOTS, 4 * MiB)
    yield harness
    harness.region.close()


def _fill(harness: Harness, *slots: int, kind: str = "text") -> None:
    for slot in slots:
        assert harness.store(slot, page(kind, slot))


def _victims(harness: Harness, hand: ClockHand) -> list[int]:
    """Take every victim, as demotion does."""
    taken = []
    for step in hand.victims():
        for slot, _ in step:
            harness.layer.table.mark(slot, MOVING, on=True)
            taken.append(slot)
    return taken


def test_new_blobs_get_a_second_chance(harness: Harness) -> None:
    _fill(harness, 3, 700, 5)
    assert _victims(harness, ClockHand(harness.layer)) == [3, 5, 700]


def test_what_is_read_between_two_rounds_stays(harness: Harness) -> None:
    _fill(harness, *range(10))
    hand = ClockHand(harness.layer)
    for _ in zip(range(8), hand.victims(), strict=False):
        pass
    seen = []
    for step in hand.victims():
        seen += [slot for slot, _ in step]
        harness.load(4)
    assert 4 not in seen
    assert set(seen) == set(range(10)) - {4}


def test_only_blobs_in_the_pool_that_do_not_move_are_offered(harness: Harness) -> None:
    _fill(harness, 1, 2, 3)
    _fill(harness, 4, kind="zero")
    harness.layer.table.mark(2, MOVING, on=True)
    assert _victims(harness, ClockHand(harness.layer)) == [1, 3]


def test_clusters_come_in_the_order_of_their_first_use(harness: Harness) -> None:
    _fill(harness, 3 * CLUSTER_SLOTS, 0, 5 * CLUSTER_SLOTS)
    assert _victims(harness, ClockHand(harness.layer)) == [3 * CLUSTER_SLOTS, 0, 5 * CLUSTER_SLOTS]


def test_back_resumes_at_the_slot_and_keeps_second_chances(harness: Harness) -> None:
    _fill(harness, *range(20))
    for slot in range(20):
        harness.layer.table.mark(slot, HEAT_MASK, on=False)
    harness.layer.table.mark(12, HEAT_MASK, on=True)
    hand = ClockHand(harness.layer)
    for step in hand.victims():
        for slot, _ in step:
            if slot == 10:
                hand.back(slot)
                break
        break
    step = next(hand.victims())
    assert [slot for slot, _ in step] == [10, 11, *range(13, 20)]
    assert not harness.layer.table.get(12) & HEAT_MASK


def test_interruptions_do_not_end_a_round_early(harness: Harness) -> None:
    _fill(harness, *range(100))
    hand, taken = ClockHand(harness.layer), []
    for step in hand.victims():
        for number, (slot, _) in enumerate(step):
            if number:
                hand.back(slot)
                break
            taken.append(slot)
            harness.layer.table.mark(slot, MOVING, on=True)
    assert taken == list(range(100))


def test_a_cluster_that_went_while_the_hand_was_in_it(harness: Harness) -> None:
    _fill(harness, *range(100), 600)
    hand = ClockHand(harness.layer)
    next(hand.victims())
    harness.layer.discard_run(0, CLUSTER_SLOTS)
    assert _victims(harness, hand) == [600]


def test_an_empty_table_has_no_victims(harness: Harness) -> None:
    hand = ClockHand(harness.layer)
    assert _victims(harness, hand) == []
    _fill(harness, 1)
    assert _victims(harness, hand) == [1]

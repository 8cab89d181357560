"""The clock hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swapfs.testing.harness import Rig
from swapfs.testing.pages import page
from swapfs.units import CLUSTER_SLOTS, MiB
from swapfs.vlayer.clock import ClockHand
from swapfs.vlayer.entry import MOVING, REFERENCED


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(8 * CLUSTER_SLOTS, 4 * MiB)
    yield rig
    rig.region.close()


def _fill(rig: Rig, *slots: int, kind: str = "text") -> None:
    for slot in slots:
        assert rig.store(slot, page(kind, slot))


def _victims(rig: Rig, hand: ClockHand) -> list[int]:
    """Take every victim, as demotion does."""
    taken = []
    for step in hand.victims():
        for slot, _ in step:
            rig.layer.table.mark(slot, MOVING, on=True)
            taken.append(slot)
    return taken


def test_new_blobs_get_a_second_chance(rig: Rig) -> None:
    _fill(rig, 3, 700, 5)
    assert _victims(rig, ClockHand(rig.layer)) == [3, 5, 700]


def test_what_is_read_between_two_rounds_stays(rig: Rig) -> None:
    _fill(rig, *range(10))
    hand = ClockHand(rig.layer)
    for _ in zip(range(8), hand.victims(), strict=False):
        pass
    seen = []
    for step in hand.victims():
        seen += [slot for slot, _ in step]
        rig.load(4)
    assert 4 not in seen
    assert set(seen) == set(range(10)) - {4}


def test_only_blobs_in_the_pool_that_do_not_move_are_offered(rig: Rig) -> None:
    _fill(rig, 1, 2, 3)
    _fill(rig, 4, kind="zero")
    rig.layer.table.mark(2, MOVING, on=True)
    assert _victims(rig, ClockHand(rig.layer)) == [1, 3]


def test_clusters_come_in_the_order_of_their_first_use(rig: Rig) -> None:
    _fill(rig, 3 * CLUSTER_SLOTS, 0, 5 * CLUSTER_SLOTS)
    assert _victims(rig, ClockHand(rig.layer)) == [3 * CLUSTER_SLOTS, 0, 5 * CLUSTER_SLOTS]


def test_back_resumes_at_the_slot_and_keeps_second_chances(rig: Rig) -> None:
    _fill(rig, *range(20))
    for slot in range(20):
        rig.layer.table.mark(slot, REFERENCED, on=False)
    rig.layer.table.mark(12, REFERENCED, on=True)
    hand = ClockHand(rig.layer)
    for step in hand.victims():
        for slot, _ in step:
            if slot == 10:
                hand.back(slot)
                break
        break
    step = next(hand.victims())
    assert [slot for slot, _ in step] == [10, 11, *range(13, 20)]
    assert not rig.layer.table.get(12) & REFERENCED


def test_interruptions_do_not_end_a_round_early(rig: Rig) -> None:
    _fill(rig, *range(100))
    hand, taken = ClockHand(rig.layer), []
    for step in hand.victims():
        for number, (slot, _) in enumerate(step):
            if number:
                hand.back(slot)
                break
            taken.append(slot)
            rig.layer.table.mark(slot, MOVING, on=True)
    assert taken == list(range(100))


def test_a_cluster_that_went_while_the_hand_was_in_it(rig: Rig) -> None:
    _fill(rig, *range(100), 600)
    hand = ClockHand(rig.layer)
    next(hand.victims())
    rig.layer.discard_run(0, CLUSTER_SLOTS)
    assert _victims(rig, hand) == [600]


def test_an_empty_table_has_no_victims(rig: Rig) -> None:
    hand = ClockHand(rig.layer)
    assert _victims(rig, hand) == []
    _fill(rig, 1)
    assert _victims(rig, hand) == [1]

"""Lists of numbers through two arrays."""

from __future__ import annotations

import random

from swapfs.region.lists import ListHeads


def test_what_is_moved_about_is_in_one_list_in_order() -> None:
    rng, lists = random.Random(1), 4
    rings = ListHeads(50, lists)
    model: list[list[int]] = [list(range(50)), [], [], []]
    for _ in range(2000):
        number, ring, last = rng.randrange(50), rng.randrange(lists), rng.random() < 0.5
        model[rings.where(number)].remove(number)
        model[ring].insert(len(model[ring]) if last else 0, number)
        rings.move(number, ring, last=last)
        for each, expected in enumerate(model):
            assert rings.numbers(each, 60) == expected
            assert rings.numbers(each, 3) == expected[:3]
            assert rings.members(each) == sorted(expected)
            assert rings.length(each) == len(expected)
            assert rings.first(each) == (expected[0] if expected else -1)

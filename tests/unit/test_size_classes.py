"""The sizes that the pool hands out."""

from __future__ import annotations

from swapfs.core._core import NO_CLASS
from swapfs.region.layout import ZSPAGE_BYTES
from swapfs.tiers.pool.size_classes import (
    CLASS_OF_GRAINS,
    CLASS_SIZES,
    GRAIN,
    INCOMPRESSIBLE_BYTES,
    OBJECTS,
    SIZES,
)
from swapfs.units import PAGE_SIZE


def test_sizes_ascend_to_one_page_on_the_grain() -> None:
    assert list(CLASS_SIZES) == sorted(set(CLASS_SIZES))
    assert CLASS_SIZES[-1] == PAGE_SIZE
    assert all(size % GRAIN == 0 for size in CLASS_SIZES)
    assert len(SIZES) < NO_CLASS


def test_every_length_gets_the_smallest_class_that_holds_it() -> None:
    for length in range(1, PAGE_SIZE + 1):
        size_class = CLASS_OF_GRAINS[(length + GRAIN - 1) // GRAIN]
        assert CLASS_SIZES[size_class] >= length
        assert size_class == 0 or CLASS_SIZES[size_class - 1] < length


def test_little_is_wasted() -> None:
    for size, objects in zip(SIZES, OBJECTS, strict=True):
        assert ZSPAGE_BYTES - size * objects < ZSPAGE_BYTES // 16
    lengths = range(300, INCOMPRESSIBLE_BYTES)
    handed_out = sum(CLASS_SIZES[CLASS_OF_GRAINS[(n + 15) // 16]] for n in lengths)
    assert handed_out < 1.04 * sum(lengths)

"""The sizes in which the pool hands out memory.

Idea: mm/zsmalloc.c. A zspage is cut into equal objects, so a size that does not divide it
wastes its tail. Only sizes of the form ``zspage // n`` are used here, which waste none but the
rounding to 16 bytes; neighbours closer than STEP are merged, since each class may strand one
partly filled zspage.
"""

from __future__ import annotations

from typing import Final

from swapfs.core._core import GRAIN_SHIFT, NO_CLASS
from swapfs.region.layout import ZSPAGE_BYTES
from swapfs.units import PAGE_SIZE

GRAIN: Final = 1 << GRAIN_SHIFT
"""Bytes: every object starts at a multiple of it."""
_SMALLEST: Final = 32
_STEP: Final = 1.035


def _sizes() -> tuple[int, ...]:
    sizes = [PAGE_SIZE]
    for count in range(ZSPAGE_BYTES // PAGE_SIZE + 1, ZSPAGE_BYTES // _SMALLEST + 1):
        size = ZSPAGE_BYTES // count // GRAIN * GRAIN
        if size * _STEP <= sizes[-1] or size == _SMALLEST:
            sizes.append(size)
    return tuple(sorted(set(sizes)))


CLASS_SIZES: Final = _sizes()
"""Object size in bytes of each class, ascending; the last is one page."""
CLASS_OF_GRAINS: Final = bytes(
    next(index for index, size in enumerate(CLASS_SIZES) if size >= grains * GRAIN)
    for grains in range(PAGE_SIZE // GRAIN + 1)
)
"""The smallest class that holds a blob, by its length in grains, rounded up."""
INCOMPRESSIBLE_BYTES: Final = CLASS_SIZES[-2]
"""A blob longer than this would take a whole page anyway, so the page is kept raw."""

RAW_CLASS: Final = len(CLASS_SIZES) - 1
"""The class of whole pages, the largest that holds blobs."""
# Table pages have a class of their own: raw pages must not take the rest of a zspage that was
# claimed from the tables' reserve.
TABLE_CLASS: Final = RAW_CLASS + 1
SIZES: Final = (*CLASS_SIZES, PAGE_SIZE)
"""Object size in bytes of each class, that of table pages too."""
OBJECTS: Final = tuple(ZSPAGE_BYTES // size for size in SIZES)
"""Objects in one zspage of each class."""

assert len(SIZES) < NO_CLASS

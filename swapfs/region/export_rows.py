"""The rows of the exports in the region: which file has which slots, whatever server comes.

A row is 256 bytes, little endian; a row without slots is none::

    0 first slot   8 slots   16 quota in bytes, 0: none   24 priority (i16)   26 tiers (u16)
    32 name (48)   128 figures, each 8 bytes: FIGURES

Bit n of the tiers is tier n of the stack; bit 0, which the pool needs not, is EVERY_TIER.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ROW_BYTES: Final = 256
EXPORTS_MAX: Final = 8
EVERY_TIER: Final = 1
"""Of the tiers of an export: all that there are and will be."""
_FIGURES_OFFSET: Final = 128
_ROW: Final = struct.Struct("<QQQhH4x48s")
_SLOTS_OFFSET: Final = 8
_TIERS_OFFSET: Final = 26
FIGURES: Final = ("refused_writes", "demoted_pages")
"""What is counted for each export; append only: part of the region's format."""
_INDEX: Final = {name: index for index, name in enumerate(FIGURES)}
assert _FIGURES_OFFSET + 8 * len(FIGURES) <= ROW_BYTES


@dataclass(frozen=True, slots=True)
class ExportRow:
    """One export, as the region knows it."""

    name: str
    first_slot: int
    slots: int
    priority: int = 0
    quota_bytes: int = 0
    tiers: int = EVERY_TIER


class ExportFigures:
    """The figures of one row; the layer's lock covers them.

    :param words: writable memoryview of format ``Q``, FIGURES long; without it, memory of its own
    """

    __slots__ = ("_words",)

    def __init__(self, words: memoryview | None = None) -> None:
        self._words = memoryview(bytearray(8 * len(FIGURES))).cast("Q") if words is None else words

    @classmethod
    def of(cls, rows: memoryview, index: int) -> ExportFigures:
        """Return those of row *index* in *rows*, the view of the region."""
        start = index * ROW_BYTES + _FIGURES_OFFSET
        return cls(rows[start : start + 8 * len(FIGURES)].cast("Q"))

    def add(self, name: str, count: int = 1) -> None:
        """Add to one figure."""
        self._words[_INDEX[name]] += count

    def counters(self) -> dict[str, int]:
        """Return what was counted, by name."""
        return {name: self._words[index] for name, index in _INDEX.items()}


def write_exports(rows: memoryview, exports: Sequence[ExportRow]) -> None:
    """Put *exports* in the place of those that are in *rows*, the view of the region.

    The number of its slots makes a row one, and comes last.
    """
    assert len(exports) <= EXPORTS_MAX
    rows[:] = bytes(EXPORTS_MAX * ROW_BYTES)
    for index, row in enumerate(exports):
        at = index * ROW_BYTES
        _ROW.pack_into(
            *(rows, at, row.first_slot, 0, row.quota_bytes, row.priority, row.tiers),
            row.name.encode(),
        )
        struct.pack_into("<Q", rows, at + _SLOTS_OFFSET, row.slots)


def read_exports(rows: memoryview) -> list[ExportRow]:
    """Return the exports in *rows*, in their order."""
    found = []
    for at in range(0, EXPORTS_MAX * ROW_BYTES, ROW_BYTES):
        first_slot, slots, quota_bytes, priority, tiers, name = _ROW.unpack_from(rows, at)
        if slots:
            name = name.rstrip(b"\0").decode()
            found.append(ExportRow(name, first_slot, slots, priority, quota_bytes, tiers))
    return found


def forget_tier(rows: memoryview, number: int) -> None:
    """Take tier *number* out of the tiers of every export: it is gone, and another may come."""
    for at in range(0, EXPORTS_MAX * ROW_BYTES, ROW_BYTES):
        (tiers,) = struct.unpack_from("<H", rows, at + _TIERS_OFFSET)
        struct.pack_into("<H", rows, at + _TIERS_OFFSET, tiers & ~(1 << number))

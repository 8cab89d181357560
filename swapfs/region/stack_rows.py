"""The rows of the stack in the region: which tier has which number, whatever server comes.

Words name a tier by its number, so a number means the same tier as long as the region lives. A
row is 256 bytes, little endian; number 0 is no row::

    0 number   1 state   2 priority (i16)   4 kind (12)   16 name (48)   64 digest of its place (32)
    96 key (32)   128 figures, each 8 bytes: FIGURES

The key has no use yet.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swapfs.units import TIERS_MAX

ROW_BYTES: Final = 256
_FIGURES_OFFSET: Final = 128
_ROW: Final = struct.Struct("<BBh12s48s32s32s")
_PRIORITY_OFFSET: Final = 2
ACTIVE, DRAINING, LEAVING, GONE = 1, 2, 3, 4
"""States of a row; see ``vlayer.stack.Phase``. GONE: no word names it, and it may be let go."""
FIGURES: Final = (
    # what may be written to it, and what was in the hour and the day of these numbers
    "budget_hour_bytes",
    "budget_day_bytes",
    "budget_exceeds",
    "hour",
    "hour_bytes",
    "day",
    "day_bytes",
    # counters
    "written_bytes",
    "writes",
    "read_bytes",
    "reads",
    "read_pages",
    "moved_in_pages",
    "moved_out_pages",
    "read_errors",
    "write_errors",
)
"""The figures of a row, in their order; part of the region's format."""
COUNTERS: Final = FIGURES[FIGURES.index("written_bytes") :]
assert _FIGURES_OFFSET + 8 * len(FIGURES) == ROW_BYTES
ROW_INDEX: Final = {name: index for index, name in enumerate(FIGURES)}


@dataclass(frozen=True, slots=True)
class StackRow:
    """One tier, as the region knows it; of budgets 0 is none."""

    number: int
    kind: str
    name: str
    priority: int
    digest: bytes
    state: int = ACTIVE
    budget_hour_bytes: int = 0
    budget_day_bytes: int = 0
    budget_exceeds: bool = False


class RowFigures:
    """The figures of one row; the layer's lock covers them.

    :param words: writable memoryview of format ``Q``, FIGURES long; without it, memory of its own
    """

    __slots__ = ("words",)

    def __init__(self, words: memoryview | None = None) -> None:
        self.words = memoryview(bytearray(8 * len(FIGURES))).cast("Q") if words is None else words

    @classmethod
    def of(cls, stack: memoryview, number: int) -> RowFigures:
        """Return those of tier *number* in *stack*, the view of the region."""
        end = (number + 1) * ROW_BYTES
        return cls(stack[end - 8 * len(FIGURES) : end].cast("Q"))

    def get(self, name: str) -> int:
        """Return one figure."""
        value: int = self.words[ROW_INDEX[name]]
        return value

    def set(self, name: str, value: int) -> None:
        """Replace one figure."""
        self.words[ROW_INDEX[name]] = value

    def add(self, name: str, count: int = 1) -> None:
        """Add to one figure."""
        self.words[ROW_INDEX[name]] += count

    def counters(self) -> dict[str, int]:
        """Return what was counted, by name."""
        return {name: self.get(name) for name in COUNTERS}


def write_rows(stack: memoryview, rows: Sequence[StackRow]) -> None:
    """Put *rows* in the place of those that are in *stack*, the view of the region."""
    stack[: TIERS_MAX * ROW_BYTES] = bytes(TIERS_MAX * ROW_BYTES)
    for row in rows:
        write_row(stack, row)


def write_row(stack: memoryview, row: StackRow) -> None:
    """Add *row* where none is; its number, in the first byte, makes it one and comes last."""
    at = row.number * ROW_BYTES
    assert not stack[at]
    _ROW.pack_into(
        *(stack, at, 0, row.state, row.priority, row.kind.encode(), row.name.encode()),
        *(row.digest, b""),
    )
    figures = RowFigures.of(stack, row.number)
    for name in FIGURES:
        figures.set(name, 0)
    for name in ("budget_hour_bytes", "budget_day_bytes", "budget_exceeds"):
        figures.set(name, int(getattr(row, name)))
    stack[at] = row.number


def clear_row(stack: memoryview, number: int) -> None:
    """Take row *number* away."""
    stack[number * ROW_BYTES] = 0


def read_rows(stack: memoryview) -> list[StackRow]:
    """Return the rows in *stack*, by number."""
    rows = []
    for at in range(0, TIERS_MAX * ROW_BYTES, ROW_BYTES):
        number, state, priority, kind, name, digest, _ = _ROW.unpack_from(stack, at)
        if number:
            kind, name = (text.rstrip(b"\0").decode() for text in (kind, name))
            figures = RowFigures.of(stack, number)
            hour, day = (figures.get(f"budget_{span}_bytes") for span in ("hour", "day"))
            exceeds = bool(figures.get("budget_exceeds"))
            rows.append(StackRow(number, kind, name, priority, digest, state, hour, day, exceeds))
    return rows


def set_state(stack: memoryview, number: int, state: int) -> None:
    """Change the state of row *number* in one store."""
    stack[number * ROW_BYTES + 1] = state


def set_priority(stack: memoryview, number: int, priority: int) -> None:
    """Change the priority of row *number*."""
    struct.pack_into("<h", stack, number * ROW_BYTES + _PRIORITY_OFFSET, priority)

"""The rows of the stack in the region: which tier has which number, whatever server comes.

Words name a tier by its number, so a number means the same tier as long as the region lives. A
row is 256 bytes, little endian; number 0 is no row::

    0 number   1 state   2 priority (i16)   4 kind (12)   16 name (48)   64 digest of its place (32)
    96 key (32)   128 bytes written   136 budget, bytes a day   144 zero

Key, bytes written and budget have no use yet.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swapfs.units import TIERS_MAX

ROW_BYTES: Final = 256
_ROW: Final = struct.Struct("<BBh12s48s32s32sQQ")
ACTIVE, DRAINING = 1, 2
"""States of a row; see ``vlayer.stack.Phase``."""


@dataclass(frozen=True, slots=True)
class StackRow:
    """One tier, as the region knows it."""

    number: int
    kind: str
    name: str
    priority: int
    digest: bytes
    state: int = ACTIVE


def write_rows(stack: memoryview, rows: Sequence[StackRow]) -> None:
    """Put *rows* in the place of those that are in *stack*, the view of the region."""
    stack[: TIERS_MAX * ROW_BYTES] = bytes(TIERS_MAX * ROW_BYTES)
    for row in rows:
        _ROW.pack_into(
            *(stack, row.number * ROW_BYTES, row.number, row.state, row.priority),
            *(row.kind.encode(), row.name.encode(), row.digest, b"", 0, 0),
        )


def read_rows(stack: memoryview) -> list[StackRow]:
    """Return the rows in *stack*, by number."""
    rows = []
    for at in range(0, TIERS_MAX * ROW_BYTES, ROW_BYTES):
        number, state, priority, kind, name, digest, *_ = _ROW.unpack_from(stack, at)
        if number:
            kind, name = (text.rstrip(b"\0").decode() for text in (kind, name))
            rows.append(StackRow(number, kind, name, priority, digest, state))
    return rows


def set_state(stack: memoryview, number: int, state: int) -> None:
    """Change the state of row *number* in one store."""
    stack[number * ROW_BYTES + 1] = state

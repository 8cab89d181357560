"""An SQLite database in memory beside an array of numbers, both larger than the limit.

    python3 sqlite.py MIB

Half of MIB is the table, half the array. The table is filled, indexed and asked at random; the
array is filled and summed up with a stride. Every answer is compared with what arithmetic says.
"""

from __future__ import annotations

import random
import sqlite3
import sys
from array import array
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROW_BYTES: Final = 512
_NUMBER_BYTES: Final = 8
_LOOKUPS_PER_MIB: Final = 100
_FACTOR: Final = 2654435761
_SEED: Final = 6
_STRIDE: Final = 512


def _key(row: int) -> int:
    return row * _FACTOR % (1 << 32)


def _text(row: int) -> str:
    return f"{row} swaps {_key(row):x} " * (_ROW_BYTES // 32)


def _rows(count: int) -> Iterator[tuple[int, str]]:
    for row in range(count):
        yield _key(row), _text(row)


def main() -> int:
    """Do the job; 1: an answer was wrong."""
    mib = int(sys.argv[1])
    rows, numbers = (mib << 19) // _ROW_BYTES, (mib << 19) // _NUMBER_BYTES
    table = sqlite3.connect(":memory:")
    table.execute("CREATE TABLE pages (key INTEGER, text TEXT)")
    table.executemany("INSERT INTO pages VALUES (?, ?)", _rows(rows))
    values = array("d", (float(number) for number in range(numbers)))
    table.execute("CREATE INDEX by_key ON pages (key)")
    rng, wrong = random.Random(_SEED), 0
    for _ in range(mib * _LOOKUPS_PER_MIB):
        row = rng.randrange(rows)
        found = table.execute("SELECT text FROM pages WHERE key = ?", (_key(row),)).fetchall()
        wrong += found != [(_text(row),)]
    (total,) = table.execute("SELECT sum(key) FROM pages").fetchone()
    wrong += total != sum(map(_key, range(rows)))
    for first in range(_STRIDE):
        wrong += sum(values[first::_STRIDE]) != float(sum(range(first, numbers, _STRIDE)))
    print(f"{rows} rows, {numbers} numbers, {wrong} wrong answers", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Markdown tables that are also aligned in a terminal, and numbers short enough for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.bench.ratios import Spread

WIDTH_MAX: Final = 118
"""Columns of a terminal that a table should fit into."""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """Return a table; its first *words* columns are text, the others are right-aligned."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    cells.insert(
        1, ["-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    )
    lines = []
    for row in cells:
        padded = [
            f"{cell:<{width}}" if i < words else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |\n")
    return "".join(lines)


def folded(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return one table or, where that is too wide for a terminal, several below each other.

    Each has the first column, and leaves out rows that are empty in its own columns.
    """
    first = max(len(row[0]) for row in [header, *rows]) + 4
    groups: list[list[int]] = [[]]
    used = first
    for i in range(1, len(header)):
        width = max(len(row[i]) for row in [header, *rows]) + 3
        if groups[-1] and used + width > WIDTH_MAX:
            groups.append([])
            used = first
        groups[-1].append(i)
        used += width
    tables = []
    for group in groups:
        kept = [row for row in rows if any(row[i] for i in group)]
        cells = [[row[i] for i in (0, *group)] for row in kept]
        tables.append(markdown([header[i] for i in (0, *group)], cells))
    return "\n".join(tables)


def number(value: float) -> str:
    """Return *value* with three digits, and whole from 1000 on: 0.0123, 26.1, 1234."""
    if abs(value) >= 999.5 or value == int(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


def samples(found: Spread) -> str:
    """Return the median and, unless all samples are equal, the range."""
    if found.low == found.high:
        return number(found.median)
    return f"{number(found.median)} ({number(found.low)}..{number(found.high)})"


def ratios(found: Spread) -> str:
    """Return the median of ratios and, if there is more than one, their range."""
    if found.count == 1:
        return f"{found.median:.2f}"
    return f"{found.median:.2f} [{found.low:.2f}..{found.high:.2f}]"


def labelled(name: str, unit: str) -> str:
    """Return ``p50, us``, or the name alone for what has no unit."""
    return f"{name}, {unit}" if unit not in ("", "ratio") else name

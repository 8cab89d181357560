"""The table of ``swapfs status``: its columns, after zramctl(8), and how they are laid out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from swapfs.server.status import meaning, value_at
from swapfs.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swapfs.command.status import Instance


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    :param path: of its figure in the status; empty for what the instance knows itself
    :param meaning: if it is not what the figure says of itself
    """

    name: str
    path: str = ""
    meaning: str = ""
    is_size: bool = False
    left: bool = False
    always: bool = True

    def explained(self) -> str:
        """Return in one sentence what it shows."""
        return self.meaning or meaning(self.path)

    def cell(self, instance: Instance, show_size: Callable[[int], str]) -> str:
        """Return its value for *instance*; ``-`` for what a dead one has not left."""
        value: Any = (
            value_at(instance.status, self.path) if self.path else _OWN[self.name](instance)
        )
        if value is None:
            return "-"
        if self.is_size:
            return show_size(value)
        return f"{value:.2f}" if isinstance(value, float) else str(value)


_OWN: Final[dict[str, Callable[[Instance], object]]] = {
    "NAME": lambda instance: instance.name,
    "STATE": lambda instance: instance.state,
}

_ALL: Final = (
    Column("NAME", meaning="The name of the instance.", left=True),
    Column("ALGORITHM", "algorithm", "What compresses pages.", left=True),
    Column("SIZE", "size_bytes", is_size=True),
    Column("DATA", "orig_bytes", is_size=True),
    Column("COMPR", "compr_bytes", is_size=True),
    Column("TOTAL", "memory_bytes", is_size=True),
    Column("MEM-LIMIT", "pool.limit_bytes", is_size=True),
    Column("SAME", "slots.same", "Pages that repeat one word and need no memory."),
    Column("HUGE", "slots.raw", "Pages in the pool that do not compress."),
    Column("FILE-USED", "file_bytes", is_size=True),
    Column("RATIO", "ratio"),
    Column("PRIO", "swap.priority", "Swap priority; `-` while swap is off."),
    Column("MOUNTPOINT", "mountpoint", "Where the swap file is.", left=True),
    Column("STATE", meaning="running, silent, held or dead.", left=True, always=False),
    Column("PID", "pid", "The monitor's process.", always=False),
    Column("DEVICE", "loop", "The loop device on the swap file.", left=True, always=False),
    Column("MEM-PEAK", "pool.peak_bytes", is_size=True, always=False),
    Column("SWAP-USED", "swap.used_bytes", is_size=True, always=False),
)
_BY_NAME: Final = {column.name: column for column in _ALL}
COLUMNS: Final = tuple(column.name for column in _ALL if column.always)
"""What status shows unless told otherwise."""


def column_names() -> list[str]:
    """Return every column that :func:`format_table` knows."""
    return list(_BY_NAME)


def format_table(
    instances: Sequence[Instance],
    columns: Sequence[str] = COLUMNS,
    *,
    in_bytes: bool = False,
    headings: bool = True,
    raw: bool = False,
) -> str:
    """Return one line per instance.

    :param columns: names, see :func:`column_names`
    :param in_bytes: sizes as plain numbers of bytes
    :param raw: one blank between columns, blanks in values as ``\\x20``
    """
    show_size = str if in_bytes else format_size
    chosen = [_BY_NAME[name] for name in columns]
    rows = [list(columns)] if headings else []
    rows += [[column.cell(instance, show_size) for column in chosen] for instance in instances]
    if raw:
        return "\n".join(" ".join(cell.replace(" ", "\\x20") for cell in row) for row in rows)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, chosen, widths) for row in rows)


def reference() -> str:
    """Return the Markdown table of every column, as docs/operating.md holds it."""
    rows = [f"| {column.name} | {column.explained()} |" for column in _ALL]
    return "\n".join(["| Column | Meaning |", "|---|---|", *rows]) + "\n"


def _aligned(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if column.left else cell.rjust(width)
        for cell, column, width in zip(row, columns, widths, strict=True)
    ]
    return " ".join(cells).rstrip()

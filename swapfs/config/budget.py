"""The write budget of a tier as the user writes it: ``2G/hour, 50G/day``, one of them, ``none``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swapfs.config import values
from swapfs.errors import ConfigError
from swapfs.units import MiB, format_size

LEAST_BYTES: Final = 16 * MiB
"""Less is spent by a few batches."""
_NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class WriteBudget:
    """Bytes that may be written in an hour and in a day; 0: as many as one likes."""

    hour_bytes: int = 0
    day_bytes: int = 0

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self.hour_bytes or self.day_bytes)


NO_BUDGET: Final = WriteBudget()


def parse_budget(where: str, value: object) -> WriteBudget:
    """Return the budget that *value* says.

    :raises ConfigError: it says none
    """
    text = values.parse_text(where, value).strip()
    if text == _NONE:
        return NO_BUDGET
    found: dict[str, int] = {}
    for part in text.split(","):
        size, slash, span = (each.strip() for each in part.partition("/"))
        if not slash or span not in ("hour", "day") or span in found:
            raise ConfigError(
                where, f"{text!r} is no budget (write 2G/hour, 50G/day, both with a comma, or none)"
            )
        found[span] = values.parse_size(where, size)
        if found[span] < LEAST_BYTES:
            least = format_size(LEAST_BYTES)
            raise ConfigError(where, f"{size} is too small a budget (least: {least})")
    return WriteBudget(found.get("hour", 0), found.get("day", 0))


def show_budget(budget: WriteBudget, show_size: Callable[[int], object]) -> str:
    """Return *budget* as ``parse_budget`` reads it."""
    spans = (("hour", budget.hour_bytes), ("day", budget.day_bytes))
    parts = [f"{values.exact_size(size)}/{span}" for span, size in spans if size]
    return ", ".join(parts) or _NONE

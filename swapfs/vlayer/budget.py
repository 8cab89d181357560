"""The write budget of a tier: bytes that may go there in an hour and in a day, for what wears out.

Counted in the tier's row of the region, so that no server begins anew. The hours and days are
those of the clock that nobody sets, from the machine's start on: two budgets may be used up back
to back, at the end of one hour and the beginning of the next. All that is written counts, cleaning
too. A batch is written if a whole one is left, so of several at once the last may go beyond by one
batch.
"""

from __future__ import annotations

from typing import Final

from swapfs.region.stack_rows import RowFigures
from swapfs.tiers.segments import SEGMENT_BYTES
from swapfs.units import format_size

_SPANS: Final = (("hour", 3600), ("day", 24 * 3600))


class Budget:
    """What of a budget is left; kept in *figures*. The layer's lock covers ``charge``."""

    def __init__(self, figures: RowFigures) -> None:
        self._figures = figures

    def _used_bytes(self, span: str, seconds: int, now_s: float) -> int:
        figures = self._figures
        return figures.get(f"{span}_bytes") if figures.get(span) == int(now_s) // seconds else 0

    def charge(self, size_bytes: int, now_s: float) -> None:
        """Count *size_bytes* that were written."""
        figures = self._figures
        for span, seconds in _SPANS:
            if figures.get(span) != (current := int(now_s) // seconds):
                figures.set(f"{span}_bytes", 0)
                figures.set(span, current)
            figures.add(f"{span}_bytes", size_bytes)

    def allows(self, now_s: float) -> bool:
        """Whether a batch may be written now."""
        figures = self._figures
        for span, seconds in _SPANS:
            limit = figures.get(f"budget_{span}_bytes")
            if limit and limit < self._used_bytes(span, seconds, now_s) + SEGMENT_BYTES:
                return False
        return True

    def exceeds(self) -> bool:
        """Whether what finds no other room may go beyond it."""
        return bool(self._figures.get("budget_exceeds"))

    def figures(self, now_s: float) -> dict[str, tuple[int, int]]:
        """Return by span (hour, day) the bytes that may be written, 0: any, and those that were."""
        return {
            span: (
                self._figures.get(f"budget_{span}_bytes"),
                self._used_bytes(span, seconds, now_s),
            )
            for span, seconds in _SPANS
        }

    def problem(self, now_s: float) -> str:
        """Say in a few words which budget is spent; empty: none is."""
        for span, seconds in reversed(_SPANS):
            limit, used = self.figures(now_s)[span]
            if limit and limit < used + SEGMENT_BYTES:
                left_s = seconds - int(now_s) % seconds
                beyond = ", what finds no other room goes beyond it" if self.exceeds() else ""
                return (
                    f"the write budget of this {span} is spent ({format_size(used)} of "
                    f"{format_size(limit)}), the next begins in {left_s // 60} min{beyond}"
                )
        return ""

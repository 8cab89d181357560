"""The state of a tier, as one word. Imports nothing, so that a command may know the words."""

from __future__ import annotations

from enum import StrEnum


class TierState(StrEnum):
    """Whether a tier takes pages. The words are labels of metrics and keys of the status."""

    OK = "ok"
    FULL = "full"
    FAILING = "failing"
    STUCK = "stuck"
    SPENT = "spent"
    """Its write budget is."""
    UNKNOWN = "unknown"
    """A word of another version, read from its snapshot; no tier of ours is in it."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong: one that is full, or spent, is as it should be."""
        return self in (TierState.OK, TierState.FULL, TierState.SPENT)

"""Whether the tier below takes writes: what went wrong, and when the next attempt is due.

Times are monotonic seconds. Several threads write; each field is set in one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from swapfs.tiers.state import TierState

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
NO_SPACE_PAUSE_MAX_S: Final = 4.0
"""Where nothing is broken, a try costs little, and room may be made at any time."""
STUCK_AFTER_S: Final = 5.0
"""A batch that takes longer is reported as stuck."""


@dataclass(slots=True)
class Health:
    """The state of one tier as its writers see it."""

    backoff_s: float = 0.0
    retry_at_s: float = 0.0
    reason: str = ""
    full: bool = False
    _busy_since_s: dict[int, float] = field(default_factory=dict)

    def begin(self, writer: int, now_s: float) -> None:
        """Note that *writer* (any number of its own) starts a write."""
        self._busy_since_s[writer] = now_s

    def end(self, writer: int) -> None:
        """Note that the write of *writer* is over, well or not."""
        self._busy_since_s.pop(writer, None)

    def failed(self, reason: str, now_s: float, pause_max_s: float = BACKOFF_MAX_S) -> None:
        """Note a failed write: the next attempt waits twice as long as the last one did.

        :param pause_max_s: and no longer than this
        """
        self.backoff_s = min(pause_max_s, self.backoff_s * 2 or BACKOFF_FIRST_S)
        self.retry_at_s = now_s + self.backoff_s
        self.reason = reason

    def succeeded(self) -> None:
        """Note a write that went well."""
        self.backoff_s = self.retry_at_s = 0.0
        self.reason = ""
        self.full = False

    def may_write(self, now_s: float) -> bool:
        """Whether a write may be tried now."""
        return now_s >= self.retry_at_s

    def is_stuck(self, now_s: float) -> bool:
        """Whether a write is under way that has taken too long, whatever others came to."""
        return self._busy_s(now_s) > STUCK_AFTER_S

    def state(self, now_s: float) -> TierState:
        """Return the state of the tier."""
        if self.reason:
            return TierState.FAILING
        if self.is_stuck(now_s):
            return TierState.STUCK
        return TierState.FULL if self.full else TierState.OK

    def problem(self, now_s: float) -> str:
        """Say in a few words what is wrong; empty: nothing is."""
        match self.state(now_s):
            case TierState.FAILING:
                due_s = max(0, self.retry_at_s - now_s)
                return f"writes fail ({self.reason}), next try in {due_s:.0f}s"
            case TierState.STUCK:
                return f"a write has been stuck for {self._busy_s(now_s):.0f}s"
            case TierState.FULL:
                return "full"
            case _:
                return ""

    def _busy_s(self, now_s: float) -> float:
        """Return for how long the oldest write has been under way."""
        return now_s - min(list(self._busy_since_s.values()), default=now_s)

"""When another server is started after one has died. Pure: deaths in, decision out."""

from __future__ import annotations

from typing import Final

RAPID_LIFE_S: Final = 0.2
"""A server that served for less time than this, or never, died rapidly."""
RAPID_DEATHS_MAX: Final = 10
"""After so many in a row no other is started: it would die as well."""
PAUSE_MAX_S: Final = 5.0
_PAUSE_S: Final = 0.05


class RestartPolicy:
    """Decides for the servers of one monitor."""

    def __init__(self) -> None:
        self._rapid = 0

    def died(self, served_s: float) -> float | None:
        """Return after which pause to start the next one; None: not at all.

        The first death is followed at once, as processes wait for their pages.

        :param served_s: for how long the one that died had served; 0: not at all
        """
        self._rapid = self._rapid + 1 if served_s < RAPID_LIFE_S else 0
        if self._rapid >= RAPID_DEATHS_MAX:
            return None
        return min(PAUSE_MAX_S, _PAUSE_S * 2**self._rapid) if self._rapid > 1 else 0.0

    def begin_again(self) -> None:
        """Forget the deaths: somebody has mended their cause."""
        self._rapid = 0

"""Which records of a log are repetitions: a disk that fails must not fill another one.

Records of one line of the source are alike, whatever numbers are in them. The first few of them
pass; the rest are counted until a minute is over, and then said to have been, in one line. Holds
no more than a line of text for each place that logs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

PASS_MAX: Final = 10
PERIOD_S: Final = 60.0
TEXT_MAX: Final = 200

_Place = tuple[str, int]


@dataclass(slots=True)
class _Series:
    """What came from one place since *since_s*: how many, and the last one that was held back."""

    since_s: float
    count: int = 0
    last: str = ""


class Repeats:
    """Counts records by the place in the source that they come from."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._series: dict[_Place, _Series] = {}

    def may_pass(self, record: logging.LogRecord) -> bool:
        """Whether *record* is to be written; if not it is counted."""
        place = record.pathname, record.lineno
        series = self._series.get(place)
        if series is None:
            series = self._series[place] = _Series(self._clock_s())
        series.count += 1
        if series.count <= PASS_MAX:
            return True
        series.last = record.getMessage()[:TEXT_MAX]
        return False

    def over(self) -> Iterator[str]:
        """Forget the series whose time is over; yield a line for each that was cut short."""
        now_s = self._clock_s()
        ended = [place for place, one in self._series.items() if now_s - one.since_s >= PERIOD_S]
        for place in ended:
            one = self._series.pop(place)
            if one.count > PASS_MAX:
                yield f"swapfs: {one.count - PASS_MAX} more like this one: {one.last}\n"

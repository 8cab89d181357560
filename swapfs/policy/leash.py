"""A leash for code that is not ours: what runs on and on is ended, and so lets go of the lock.

A policy of one's own is asked under the layer's lock, and no thread can be stopped from outside.
So it is traced while it is asked: each line of Python that it runs is counted, and one too many
raises ``RunsOn`` in it, as if the line itself had failed. The code of this package is not counted.
A loop inside one call of C is not seen. Costs 0.1 us a line, and nothing for built-in policies,
which have no leash.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

LINES_MAX: Final = 100_000
"""Between an answer and the next: some 20 ms."""
_OURS: Final = str(Path(__file__).resolve().parents[1]) + "/"

T = TypeVar("T")


class RunsOn(BaseException):
    """It ran too many lines. No Exception, so that it does not catch it with its own mistakes."""


class Leash:
    """For one call, in one thread.

    :param lines: that it may run
    """

    __slots__ = ("_left",)

    def __init__(self, lines: int = LINES_MAX) -> None:
        self._left = lines

    def run(self, call: Callable[[], T]) -> T:
        """Return what *call* returns.

        :raises RunsOn: it ran too many lines
        """
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return None if frame.f_code.co_filename.startswith(_OURS) else self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise RunsOn("it runs on and on")
        return self._line

"""Whether what others wait for gets on: the one rule for how long a write waits.

Idea: a write that finds no room is refused only when there is none to be had (I6), and until then
it waits: as long as things are under way that may make some, and one of them ends now and then.
When none does for WAIT_S, whoever it is that does not answer, those who wait give up. The session
loop, which serves nobody meanwhile, then does not wait again until something ends in time: a disk
that needs seven seconds for each write would hold it up for five of them, again and again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")

WAIT_S: Final = 5.0
"""The longest that a write waits while nothing gets on."""


class Mark(NamedTuple):
    """What had begun and ended at some time, and how much of it was under way."""

    begun: int
    ended: int
    under_way: int


class Progress:
    """What is under way, in any number of threads. Its lock is held for a few steps only.

    :param wait_s: how long to wait while nothing ends
    """

    def __init__(self, clock_s: Callable[[], float], wait_s: float = WAIT_S) -> None:
        self.wait_s = wait_s
        self._clock_s = clock_s
        self._changed = threading.Condition()
        self._begun = 0
        self._ended = 0
        self._under_way = 0
        self._since_s = 0.0
        self._gave_up = False

    # ---- those who work ----

    def begin(self) -> None:
        """Note the start of something that may take or make room; before it takes any."""
        with self._changed:
            if not self._under_way:
                self._since_s = self._clock_s()
            self._under_way += 1
            self._begun += 1

    def cancel(self) -> None:
        """Take a ``begin`` back: there was nothing to do, and nothing was taken."""
        with self._changed:
            self._under_way -= 1
            self._begun -= 1
            self._changed.notify_all()

    def end(self) -> None:
        """Note the end of something that was begun; after its room can be had."""
        with self._changed:
            self._under_way -= 1
            self._got_on()

    def step(self) -> None:
        """Note that something which is under way gets on."""
        with self._changed:
            self._got_on()

    def _got_on(self) -> None:
        now_s = self._clock_s()
        if now_s - self._since_s <= self.wait_s:
            self._gave_up = False
        self._since_s = now_s
        self._ended += 1
        self._changed.notify_all()

    # ---- those who wait ----

    def mark(self) -> Mark:
        """Return what has happened until now, to ask later what happened since."""
        with self._changed:
            return Mark(self._begun, self._ended, self._under_way)

    def quiet_since(self, mark: Mark) -> bool:
        """Whether nothing was under way at *mark* nor at any time since."""
        with self._changed:
            return not mark.under_way and self._begun == mark.begun

    def wait(self, mark: Mark) -> bool:
        """Wait until something has ended since *mark*, or nothing is under way.

        False: nothing ends.
        """
        with self._changed:
            while self._under_way and self._ended == mark.ended:
                if not self._changed.wait(self._left_s()):
                    return not self._under_way or self._ended != mark.ended
            return True

    def take(self, things: queue.SimpleQueue[T]) -> T | None:
        """Take one of *things*, which those who work give back; None: they do not.

        For the session loop, which must not wait in vain twice.
        """
        while True:
            with self._changed:
                ended, left_s = self._ended, 0.0 if self._gave_up else self._left_s()
            try:
                return things.get(timeout=left_s)
            except queue.Empty:
                with self._changed:
                    if self._ended == ended:
                        self._gave_up = True
                        return None

    def _left_s(self) -> float:
        if not self._under_way:
            return self.wait_s
        return max(0.0, self.wait_s - (self._clock_s() - self._since_s))

"""Reads of one blob that come together share one disk read.

Whoever asks first for a blob is its leader and reads it; whoever asks meanwhile follows, and
gets a copy of its bytes. Blobs that are read at once are one run, with one leader. Knows words,
and nothing of the table or of tiers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from swapfs.errors import TierIOError
from swapfs.tiers.base import NOT_READ, Failure, Wanted
from swapfs.vlayer.entry import CODEC_MASK, CODEC_SHIFT, FLAGS, REF_SHIFT

GIVEN_UP: Final = NOT_READ
"""The leader did not come to this blob: whoever wants it looks again."""
_NO_COPY: Final = Failure(TierIOError, "no memory for a copy")


@dataclass(slots=True)
class Flight(Wanted):
    """One blob that is being read; its leader has the outcome filled in.

    ``payload`` is the leader's, and may lie in its scratch; ``shared`` is a copy, made if anybody
    follows.
    """

    word: int = 0
    followers: int = 0
    landed: bool = False
    shared: bytes | None = None


@dataclass(slots=True)
class Run:
    """Blobs of consecutive slots from *slot* on that are read at once.

    ``follows``: another thread reads it; then it is one blob.
    """

    slot: int
    flights: list[Flight] = field(default_factory=list)
    follows: bool = False

    def outcome(self, flight: Flight) -> tuple[bytes | memoryview, Failure | None]:
        """Return the bytes of a landed flight for who asked for this run, or why there are none."""
        if not self.follows:
            return flight.payload, flight.failure
        if flight.shared is None:
            return b"", flight.failure or _NO_COPY
        return flight.shared, flight.failure

    def give_up(self, first: int = 0) -> None:
        """Note that nobody reads the blobs from number *first* on."""
        for flight in self.flights[first:]:
            flight.failure = GIVEN_UP


class SingleFlight:
    """The reads of tiers that are under way."""

    def __init__(self) -> None:
        self._landing = threading.Condition()
        self._flights: dict[tuple[int, int], Flight] = {}

    @property
    def followers(self) -> int:
        """How many wait for bytes that somebody else reads."""
        with self._landing:
            return sum(flight.followers for flight in self._flights.values())

    def board(self, slot: int, words: Sequence[int]) -> Run:
        """Return what of *words*, of *slot* and those after it, is nobody else's; not empty.

        The caller reads it and calls ``land``, whatever happens; or ``wait`` if it follows.
        """
        run = Run(slot)
        with self._landing:
            try:
                self._register(run, words)
            except BaseException:  # nobody can follow yet: we have the lock
                self._forget(run)
                raise
        return run

    def _register(self, run: Run, words: Sequence[int]) -> None:
        """Add to *run* what is not being read, or else the one flight to follow."""
        for index, word in enumerate(words):
            flight = self._flights.get((run.slot + index, word & ~FLAGS))
            if flight is not None:
                if not run.flights:
                    flight.followers += 1
                    run.flights.append(flight)
                    run.follows = True
                return
            codec = word >> CODEC_SHIFT & CODEC_MASK
            flight = Flight(run.slot + index, word >> REF_SHIFT, codec, word=word)
            run.flights.append(flight)
            self._flights[run.slot + index, word & ~FLAGS] = flight

    def _forget(self, run: Run) -> None:
        for index, flight in enumerate(run.flights):
            self._flights.pop((run.slot + index, flight.word & ~FLAGS), None)

    def land(self, run: Run) -> None:
        """Let those who follow have what the leader of *run* noted in its flights."""
        with self._landing:
            self._forget(run)
            waited_for = False
            for flight in run.flights:
                flight.landed = True
                if flight.followers:
                    waited_for = True
                    self._share(flight)
            if waited_for:
                self._landing.notify_all()

    @staticmethod
    def _share(flight: Flight) -> None:
        """Copy the payload: the leader's scratch is used again before they wake."""
        with suppress(MemoryError):  # then they are told that there is no copy
            flight.shared = bytes(flight.payload)

    def wait(self, run: Run) -> None:
        """Wait until the flight that *run* follows has landed."""
        (flight,) = run.flights
        with self._landing:
            while not flight.landed:
                self._landing.wait()

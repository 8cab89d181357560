"""A write that is answered later, by whoever has its last page stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class Answerable(Protocol):
    """The one who waits for a deferred write."""

    def reply(self, result: int, /) -> None:
        """Take bytes written, or a negative errno value."""

    def used_file(self) -> None:
        """Hear that the answer waits for the file tier."""


class Overflow(Protocol):
    """Takes writes that found the pool full."""

    def submit(
        self, ticket: Answerable, size: int, slot: int, pages: memoryview, count: int, /
    ) -> None:
        """Store *count* pages from *slot* on, then answer *ticket* with *size* or -errno.

        *pages* may be reused when this returns.
        """


@dataclass(slots=True)
class DeferredWrite:
    """One write; ``parts`` counts the batches that are not down yet, plus who hands them over.

    ``still``: asked under the layer's lock whether a page may be published.
    """

    ticket: Answerable
    size: int
    still: Callable[[], bool] = lambda: True
    parts: int = 1
    error: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, result: int, /) -> None:
        """Take the answer of the stalled write, as that of one more part."""
        self.part_done(-result if result < 0 else 0)

    def used_file(self) -> None:
        """Hear the same from it."""
        self.ticket.used_file()

    def add_part(self) -> None:
        """Wait for one more part."""
        with self.lock:
            self.parts += 1

    def part_done(self, error: int) -> None:
        """Note a part that is stored, or failed with the errno value *error*."""
        with self.lock:
            self.parts -= 1
            self.error = self.error or error
            last = self.parts == 0
        if last:
            self.ticket.reply(-self.error if self.error else self.size)

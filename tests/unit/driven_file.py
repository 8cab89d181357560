"""A SwapFile over a Harness, driven as the session loop does; no mount, no thread unless asked."""

from __future__ import annotations

import threading
from errno import EIO
from typing import Any, cast

from swapfs.core._core import Decoder
from swapfs.server.partial import PartialWrites
from swapfs.server.swap_file import SwapFile
from swapfs.server.workers import Buffers, Job
from swapfs.testing.harness import Harness
from swapfs.tiers.sectors import SectorStore
from swapfs.units import MiB
from swapfs.vlayer import fetch

PAGE = 4096
SLOTS = 24
REQUEST_BYTES = 16 * PAGE


class Ticket:
    """Takes the answer of a deferred request, and notes what it waited for."""

    def __init__(self) -> None:
        self.answers: list[int | bytes] = []
        self.slowest = "memory"

    def used_file(self) -> None:
        self.slowest = "file"

    def reply(self, result: int, /) -> None:
        self.answers.append(result)

    def reply_data(self, data: memoryview, /) -> None:
        self.answers.append(bytes(data))


class InlineWorkers:
    """Runs a job when it is told to, in the thread that tells it."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        pages = memoryview(bytearray(REQUEST_BYTES + 2 * PAGE))
        scratch = memoryview(bytearray(fetch.SCRATCH_BYTES))
        self._buffers = Buffers(pages, scratch, bytearray(PAGE), Decoder())

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def run(self) -> int:
        ran = 0
        while self.jobs:
            self.jobs.pop(0)(self._buffers)
            ran += 1
        return ran


class File:
    """A SwapFile over a Harness, spoken to as the session loop does."""

    def __init__(
        self,
        *,
        pool_bytes: int = MiB,
        tier: SectorStore | None = None,
        promote: bool = False,
        slots: int = SLOTS,
    ) -> None:
        self.harness = Harness(slots, pool_bytes, tier, promote=promote)
        self.size = slots * PAGE
        self.tickets: list[Ticket] = []
        self.workers = InlineWorkers()
        self.request = bytearray(REQUEST_BYTES)
        self.reply = bytearray(REQUEST_BYTES)
        self.stored = 0
        self.swap = SwapFile(
            self.harness.layer,
            self.size,
            memoryview(self.reply),
            self.workers,  # type: ignore[arg-type]
            PartialWrites(
                self.harness.layer,
                lambda pages, *, look: self.harness.stalled.compactor.make_room(pages, look=look),
                self.harness.fetcher if tier else None,
                self.harness.direct if tier else None,
            ),
            self.harness.direct if tier else self.harness.stalled,
            fetcher=self.harness.fetcher if tier else None,
            stored=self._count_store,
        )

    def _count_store(self) -> None:
        self.stored += 1

    @property
    def payload(self) -> memoryview:
        """Be the Request of the handler that is being called."""
        return memoryview(self.request).toreadonly()

    def defer(self) -> Ticket:
        """Be the Request of the handler that is being called."""
        self.tickets.append(Ticket())
        return self.tickets[-1]

    def finish(self) -> int | bytes:
        """Let what was deferred run to its end and return the answer of the one ticket."""
        overflows: list[Any] = [
            self.harness.stalled,
            *([self.harness.direct] if self.harness.tier else []),
        ]
        threads = [threading.Thread(target=overflow.run) for overflow in overflows]
        for thread in threads:
            thread.start()
        try:
            self.workers.run()
        finally:
            for overflow, thread in zip(overflows, threads, strict=True):
                overflow.stop()
                thread.join()
        (answer,) = self.tickets[-1].answers
        return answer

    def call(self, what: str, *arguments: int) -> int | None:
        """Call a handler as the loop does; what it raises is EIO."""
        handler = getattr(self.swap, what)
        try:
            result = handler(cast(Any, self), *arguments)
        except Exception as error:  # noqa: BLE001 - as the loop does it
            self.swap.on_failure(what, error)
            return -EIO
        assert result is None or isinstance(result, int)
        return result

    def read(self, offset: int, size: int) -> Any:
        """Return the bytes, or a negative errno value."""
        result = self.call("read", offset, size)
        if result is None:
            return self.finish()
        return bytes(self.reply[:result]) if result >= 0 else result

    def write(self, offset: int, data: bytes) -> int:
        self.request[: len(data)] = data
        result = self.call("write", offset, len(data))
        if result is None:
            self.request[:] = bytes(REQUEST_BYTES)  # the loop uses it for the next request
            answer = self.finish()
            assert isinstance(answer, int)
            return answer
        return result

    def fallocate(self, mode: int, offset: int, length: int) -> int:
        result = self.call("fallocate", mode, offset, length)
        if result is None:
            answer = self.finish()
            assert isinstance(answer, int)
            return answer
        return result

    def counter(self, name: str) -> int:
        return self.harness.counter(name)

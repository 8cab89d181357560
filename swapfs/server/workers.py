"""Threads for requests that may wait for a disk, each with buffers reserved at start."""

from __future__ import annotations

import functools
import logging
import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass

from swapfs.core._core import Decoder, Disks
from swapfs.session import Ticket
from swapfs.units import PAGE_SIZE

StartThread = Callable[[str, Callable[[], None]], threading.Thread]
"""Starts and returns a thread by its name and what it does."""

log = logging.getLogger(__name__)


def aligned_buffer(size_bytes: int) -> memoryview:
    """Return page aligned zeroed memory of *size_bytes*, present and never given back."""
    view = memoryview(mmap.mmap(-1, size_bytes))
    for position in range(0, size_bytes, PAGE_SIZE):
        view[position] = 0
    return view


@dataclass(frozen=True, slots=True)
class Buffers:
    """What one worker works in: pages of the largest request, a disk read, one page."""

    pages: memoryview
    scratch: memoryview
    page: bytearray
    decoder: Decoder


Job = Callable[[Buffers], None]
LateRead = Callable[[Ticket, int, int, Buffers], None]
"""Answers a read by its ticket: (ticket, offset, size, buffers)."""


class Workers:
    """A fixed number of threads that run jobs in the order in which they came.

    The queue is bounded by its source: the kernel has only so many requests under way. Reads that
    the session puts there are served without Python, but for those that ``read_late`` has to do.

    :param disks: the queue
    """

    read_late: LateRead

    def __init__(self, disks: Disks, threads: int, pages_bytes: int, scratch_bytes: int) -> None:
        self._jobs = disks
        self._sizes_bytes = (pages_bytes, scratch_bytes)
        self._buffers = [self._reserve() for _ in range(threads)]
        self._threads: list[threading.Thread] = []

    def _reserve(self) -> Buffers:
        pages_bytes, scratch_bytes = self._sizes_bytes
        return Buffers(
            aligned_buffer(pages_bytes),
            aligned_buffer(scratch_bytes),
            bytearray(PAGE_SIZE),
            Decoder(),
        )

    def start(self, start_thread: StartThread) -> None:
        """Start the threads, each with *start_thread*."""
        for number, buffers in enumerate(self._buffers):
            run = functools.partial(self._run, buffers)
            self._threads.append(start_thread(f"worker-{number}", run))

    def grow(self, threads: int, start_thread: StartThread) -> bool:
        """Have *threads* threads; False: it has."""
        if len(self._threads) >= threads:
            return False
        while (number := len(self._threads)) < threads:
            run = functools.partial(self._run, self._reserve())
            self._threads.append(start_thread(f"worker-{number}", run))
        return True

    def submit(self, job: Job) -> None:
        """Have *job* run; it answers its own request and its exceptions are logged."""
        self._jobs.submit(job)

    def stop(self, timeout_s: float) -> None:
        """Let the threads end after the jobs they have; give up waiting after *timeout_s*.

        Safe if ``start`` was never reached.
        """
        for _ in self._threads:
            self._jobs.submit(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self, buffers: Buffers) -> None:
        get, pages, page, decoder = self._jobs.get, buffers.pages, buffers.page, buffers.decoder
        while (job := get(pages, page, decoder)) is not None:
            try:
                if isinstance(job, tuple):
                    ticket, offset, size = job
                    self.read_late(ticket, offset, size, buffers)
                else:
                    job(buffers)
            except Exception:  # a ticket that is dropped answers EIO itself
                log.exception("a deferred request failed")
            del job

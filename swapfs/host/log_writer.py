"""The process that writes the log: ``python -m swapfs.host.log_writer RINGS WAKE PIPE OUTPUT``.

It alone touches the log, which may lie on a tmpfs whose pages are in swap: while no server lives
it may have to wait for one. Nobody waits for it, and nothing here is locked in memory. A thread of
monitor or server could not do it: a process with a thread that waits for swap cannot end, not
even by SIGKILL, and a monitor that cannot see its server's end starts no other.

The arguments are descriptors: the rings (see ``journal``), what says that there is something in
them, a pipe for what is written to standard error, and the log. It ends when nobody has the
other end of the pipe any more, after all that was put.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
from collections.abc import Sequence
from typing import Final

from swapfs.host.ring import Ring

READ_BYTES: Final = 64 << 10


class LogWriter:
    """Writes what is in *rings* to descriptor *output_fd*."""

    def __init__(self, rings: Sequence[Ring], output_fd: int) -> None:
        self._rings = rings
        self._output_fd = output_fd

    def drain(self) -> None:
        """Write all that is there, and say how much there was no room for."""
        for ring in self._rings:
            while data := ring.peek():
                self.write(data)
                ring.take(len(data))
        lost = sum(ring.take_refused() for ring in self._rings)
        if lost:
            self.write(f"swapfs: {lost} records of the log were lost\n".encode())

    def write(self, data: bytes) -> None:
        """Write *data*; what the log does not take (no space, a closed terminal) is lost."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._output_fd, view) :]
            except BlockingIOError:
                select.select([], [self._output_fd], [])
            except OSError:
                return


def serve(rings_fd: int, wake_fd: int, pipe_fd: int, output_fd: int) -> None:
    """Write until nobody can put anything any more."""
    whole = memoryview(mmap.mmap(rings_fd, 0))
    half = len(whole) // 2
    writer = LogWriter([Ring(whole[:half]), Ring(whole[half:])], output_fd)
    poll = select.poll()
    poll.register(wake_fd, select.POLLIN)
    poll.register(pipe_fd, select.POLLIN)
    writer.drain()  # what a writer that died has left
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if wake_fd in ready:
            os.eventfd_read(wake_fd)
        said = os.read(pipe_fd, READ_BYTES) if pipe_fd in ready else None
        writer.drain()
        if said:
            writer.write(said)
        elif said is not None:
            return


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))

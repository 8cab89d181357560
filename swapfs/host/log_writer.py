"""The process that writes the log: ``python -m swapfs.host.log_writer FD FD FD FD LOG [journald]``.

It alone touches the log, which may lie on a tmpfs whose pages are in swap: while no server lives
it may have to wait for one. Nobody waits for it, and nothing here is locked in memory. A thread of
monitor or server could not do it: a process with a thread that waits for swap cannot end, not
even by SIGKILL, and a monitor that cannot see its server's end starts no other.

The descriptors: the rings (see ``journal``), what says that there is something in them, a pipe
for what is written to standard error, and the log. LOG is the path of that, if it is ours to keep
short (else empty): when it is long it is begun anew, and what was in it is LOG~. With ``journald``
all of it goes to the journal of systemd too. The process ends when nobody has the other end of the
pipe any more, after all that was put.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import shutil
import sys
from collections.abc import Sequence
from typing import Final

from swapfs.host.journald import Journald
from swapfs.host.ring import Ring

JOURNALD: Final = "journald"
READ_BYTES: Final = 64 << 10
LOG_BYTES_MAX: Final = 4 << 20
"""It may lie in memory (/run): with the last one beside it, twice that."""


class LogWriter:
    """Writes what is in *rings* to descriptor *output_fd*.

    :param path: of that file, if it is to be kept short
    :param journald: gets the same, if it is wanted there
    """

    def __init__(
        self,
        rings: Sequence[Ring],
        output_fd: int,
        path: str = "",
        journald: Journald | None = None,
    ) -> None:
        self._journald = journald
        self._rings = rings
        self._output_fd = output_fd
        self._path = path

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
        if self._journald is not None:
            self._journald.put(data)
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._output_fd, view) :]
            except BlockingIOError:
                select.select([], [self._output_fd], [])
            except OSError:
                return
        if self._path:
            self._keep_short()

    def _keep_short(self) -> None:
        """Begin anew if the log is long.

        Others have this very file open to append to it, so it is emptied and not renamed. What
        cannot be kept (no space) is lost, as a log that grows for ever would lose more.
        """
        try:
            if os.fstat(self._output_fd).st_size < LOG_BYTES_MAX:
                return
            with contextlib.suppress(OSError), open(self._path, "rb") as log:
                if os.path.sameopenfile(log.fileno(), self._output_fd):
                    beside = f"{self._path}~"
                    with open(beside, "wb", opener=_private) as kept:
                        shutil.copyfileobj(log, kept)
            os.ftruncate(self._output_fd, 0)
        except OSError:
            return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def serve(
    rings_fd: int, wake_fd: int, pipe_fd: int, output_fd: int, path: str = "", also: str = ""
) -> None:
    """Write until nobody can put anything any more."""
    whole = memoryview(mmap.mmap(rings_fd, 0))
    half = len(whole) // 2
    journald = Journald() if also == JOURNALD else None
    writer = LogWriter([Ring(whole[:half]), Ring(whole[half:])], output_fd, path, journald)
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
    rings, wake, pipe, output = map(int, sys.argv[1:5])
    serve(rings, wake, pipe, output, *sys.argv[5:])

"""The log of a daemon: whoever logs never waits, for a disk or for swap (I5, I9).

Monitor and server put their records into two rings in shared memory that both have locked; a
process of its own writes them to the log (``log_writer`` says why). When a ring is full a record
is dropped and counted. A record that a server put before it was killed is not lost with it.

What is written to standard error without us, by libfuse say, goes to the same process through a
pipe that never makes its writer wait. Tracebacks name files and lines but quote none: to read
source files is I/O.

There is one journal in a process. Until ``start`` everything here does nothing.
"""

from __future__ import annotations

import io
import logging
import mmap
import os
import select
import signal
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from swapfs.host import interpreter, systemd
from swapfs.host.repeats import Repeats
from swapfs.host.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Sequence

RING_BYTES: Final = 128 << 10
"""One for the monitor and one for its servers: some 1000 lines, or 50 tracebacks, each."""
FORMAT: Final = "%(asctime)s swapfs[%(process)d] %(levelname)s %(message)s"
WRITER_LIFE_S: Final = 1.0
"""A writer that lives for less is not replaced: it would not live longer the next time."""
_WRITER: Final = "swapfs.host.log_writer"
_STANDARD_FDS: Final = (1, 2)

log = logging.getLogger(__name__)


class Journal:
    """Takes the records of this process and, in the monitor, keeps a writer for them.

    :param output_fd: the log
    :param path: of the log, if it is to be kept short
    """

    def __init__(self, output_fd: int, path: str = "") -> None:
        self._path = path
        self.output_fd = output_fd
        self._rings_fd = os.memfd_create("swapfs-journal", os.MFD_CLOEXEC)
        os.ftruncate(self._rings_fd, 2 * RING_BYTES)
        self._whole = memoryview(mmap.mmap(self._rings_fd, 2 * RING_BYTES))
        self._rings = [Ring(self._whole[:RING_BYTES]), Ring(self._whole[RING_BYTES:])]
        self._ring = self._rings[0]
        self._lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pipe_fd, self.stderr_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.stderr_fd, False)
        self._writer = 0
        self._writer_since_s = 0.0

    @property
    def dropped(self) -> int:
        """Records that found no room, of monitor and servers together."""
        return sum(ring.refused for ring in self._rings)

    def put(self, text: str) -> None:
        """Have *text* written, or drop it."""
        data = text.encode(errors="replace")
        with self._lock:
            self._ring.put(data)
        os.eventfd_write(self._wake_fd, 1)

    def enter_server(self) -> None:
        """Take the ring of the servers; to be called in the child of a fork."""
        self._ring = self._rings[1]
        self._lock = threading.Lock()  # a thread that did not come along may have held it
        self._writer = 0

    # ---- the writer ----

    def start_writer(self) -> None:
        """Start the writer; does not wait until it has begun.

        :raises OSError: no process can be made
        """
        self._writer_since_s = time.monotonic()
        # In a unit of ours, its journal has what an administrator looks for there.
        in_unit = systemd.unit_of(os.getpid()) is not None
        named = [self._path, *(["journald"] if in_unit else [])]
        arguments = (self._rings_fd, self._wake_fd, self._pipe_fd, self.output_fd)
        self._writer = os.fork()
        if self._writer:
            return
        try:
            os.setsid()  # Ctrl-C is not for it
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for fd in _STANDARD_FDS:
                os.dup2(self.output_fd, fd)  # else it would wait for its own end of the pipe
            for fd in arguments:
                os.set_inheritable(fd, True)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.execv(sys.executable, interpreter.command(_WRITER, *map(str, arguments), *named))
        finally:
            os._exit(127)

    def tend(self) -> None:
        """Replace a writer that has died; to be called after each SIGCHLD."""
        if not self._writer or not os.waitpid(self._writer, os.WNOHANG)[0]:
            return
        self._writer = 0
        if time.monotonic() - self._writer_since_s < WRITER_LIFE_S:
            return
        log.error("the process that writes the log has died; starting another")
        try:
            self.start_writer()
        except OSError as error:
            log.error("which failed: %s", error.strerror)

    def finish(self, wait_s: float) -> None:
        """Wait until all is written, *wait_s* at the most. Never while swap may stand on us."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for fd in _STANDARD_FDS:
            os.dup2(self.output_fd, fd)
        os.close(self.stderr_fd)
        if not self._writer:
            return
        pidfd = os.pidfd_open(self._writer)
        select.select([pidfd], [], [], wait_s)
        os.close(pidfd)


_journal: Journal | None = None


def start(path: str = "") -> None:
    """Give this process a journal: from now on its log, stdout and stderr go through it.

    :param path: of the file that stderr is, if that is a log of ours to be kept short
    """
    global _journal
    if _journal is not None:
        return
    time.localtime()  # reads /etc/localtime, once
    made = Journal(os.dup(2), path)
    made.start_writer()
    for fd in _STANDARD_FDS:
        os.dup2(made.stderr_fd, fd)
    _journal = made
    sys.stdout = sys.stderr = _Stream()
    handler = _Handler()
    handler.setFormatter(_Formatter(FORMAT))
    logging.raiseExceptions = False
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_in_thread


def enter_server() -> None:
    """Say, in the child of a fork, that this is a server."""
    if _journal is not None:
        _journal.enter_server()


def tend() -> None:
    """Look after the writer; see ``Journal.tend``."""
    if _journal is not None:
        _journal.tend()


def finish(wait_s: float) -> None:
    """Let the writer come to its end; see ``Journal.finish``."""
    if _journal is not None:
        _journal.finish(wait_s)


def dropped() -> int:
    """Return how many records of this instance's log were dropped."""
    return _journal.dropped if _journal is not None else 0


def output_fd() -> int | None:
    """Return the log itself, for programs that we start; None: they have ours."""
    return _journal.output_fd if _journal is not None else None


# ---- from Python's logging to it ----


class _Handler(logging.Handler):
    """Puts records into the journal; what comes again and again is counted and not repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        if _journal is None:
            return
        for told in self.repeats.over():
            _journal.put(told)
        if self.repeats.may_pass(record):
            _journal.put(f"{self.format(record)}\n")


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        return describe_exception(ei[1])


def describe_exception(error: BaseException) -> str:
    """Return *error* and what led to it, as Python prints them but without source lines."""
    lines: list[str] = []
    following: BaseException | None = error
    seen: set[int] = set()
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        lines += ["after:"] if len(seen) > 1 else []
        lines += _frames(following.__traceback__)
        lines.append(f"{type(following).__name__}: {following}")
        cause = following.__cause__
        context = None if following.__suppress_context__ else following.__context__
        following = cause or context
    return "\n".join(lines)


def _frames(trace: TracebackType | None) -> Sequence[str]:
    lines = ["Traceback (most recent call last):"] if trace is not None else []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}')
        trace = trace.tb_next
    return lines


class _Stream(io.TextIOBase):
    """What is printed goes into the journal."""

    def write(self, text: str, /) -> int:
        if _journal is not None:
            _journal.put(text)
        return len(text)

    def writable(self) -> bool:
        return True


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log.critical("uncaught", exc_info=(kind, error, trace))


def _log_unraisable(found: sys.UnraisableHookArgs) -> None:
    # The traceback belongs to the exception, and both end here: nothing may keep them (I5).
    log.error("%s %r", found.err_msg or "exception in", found.object, exc_info=found.exc_value)


def _log_in_thread(found: threading.ExceptHookArgs) -> None:
    name = found.thread.name if found.thread else "?"
    log.critical("thread %s", name, exc_info=found.exc_value)

"""What a server says to its monitor while both live: a socket pair, and a signal to look at it.

The monitor waits for signals and must not wait for anything else, so the server sends a message
and then LOOK_SIGNAL; the monitor answers what is there and goes on waiting. A message is for the
monitor's hands only: a descriptor to hold, memory to lock. What the two agreed on stands in the
region, so that either may die between any two steps.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import logging
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from swapfs.errors import OperationError, SwapfsError

log = logging.getLogger(__name__)

LOOK_SIGNAL: Final = signal.SIGUSR2
ANSWER_S: Final = 30.0
_MESSAGE_BYTES_MAX: Final = 64 << 10
_FD_BYTES: Final = array.array("i").itemsize

Handle = Callable[[str, dict[str, Any], int | None], Any]
"""(operation, its arguments, a descriptor or None, which is the handler's) -> answer."""


class NoAnswer(OperationError):
    """The monitor has not answered in time, and may yet do what it was asked."""


class Link:
    """Both ends, made by the monitor; a server has its own by fork."""

    def __init__(self) -> None:
        self._monitor, self.server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._monitor.setblocking(False)
        self._monitor_pid = os.getpid()
        self._asking = threading.Lock()
        self._numbers = itertools.count()

    def close(self) -> None:
        """Close both ends."""
        self._monitor.close()
        self.server_end.close()

    # ---- the server ----

    def ask(self, operation: str, fd: int | None = None, **arguments: Any) -> Any:
        """Have the monitor do *operation*; return its answer.

        :raises OperationError: it is gone, or cannot
        """
        with self._asking:
            return self._answer(self._send(operation, fd, arguments), operation)

    def tell(self, operation: str, **arguments: Any) -> None:
        """Have the monitor do *operation* after all that it was asked before; wait for nothing.

        :raises OperationError: it is gone
        """
        with self._asking:
            self._send(operation, None, arguments)

    def _send(self, operation: str, fd: int | None, arguments: dict[str, Any]) -> tuple[int, int]:
        if os.getppid() != self._monitor_pid:
            raise OperationError("the monitor is gone: 'swapfs upgrade' brings another")
        key = (os.getpid(), next(self._numbers))
        message = pickle.dumps((key, operation, arguments))
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _packed(fd))]
        self.server_end.sendmsg([message], rights)
        os.kill(self._monitor_pid, LOOK_SIGNAL)
        return key

    def _answer(self, key: tuple[int, int], operation: str) -> Any:
        deadline_s = time.monotonic() + ANSWER_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.server_end.settimeout(left_s)
            with contextlib.suppress(TimeoutError):
                found, ok, answer = pickle.loads(self.server_end.recv(_MESSAGE_BYTES_MAX))
                if found != key:
                    continue  # of a server that has died
                if not ok:
                    raise OperationError(str(answer))
                return answer
        raise NoAnswer(f"the monitor does not answer ({operation})")

    # ---- the monitor ----

    def serve(self, server_pid: int, handle: Handle) -> None:
        """Answer what *server_pid* has asked; what another one had is dropped. Raises nothing."""
        while True:
            try:
                received = self._receive()
                if received is None:
                    return
                (key, operation, arguments), fd = received
                if key[0] == server_pid:
                    answer = _answer(key, operation, arguments, fd, handle)
                    self._monitor.send(pickle.dumps(answer))
                elif fd is not None:
                    os.close(fd)
            except OSError as error:
                log.error("what a server asks for cannot be read or answered: %s", error)
                return
            except Exception:  # the pages live as long as the monitor: it must outlive a bug
                log.exception("what a server asked for cannot be read")

    def drop(self) -> None:
        """Forget what a server that has died asked for."""
        self.serve(0, lambda *_: None)

    def _receive(self) -> tuple[Any, int | None] | None:
        try:
            data, rights, _, _ = self._monitor.recvmsg(
                _MESSAGE_BYTES_MAX, socket.CMSG_SPACE(_FD_BYTES), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        fds = array.array("i")
        for level, kind, packed in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(packed[: len(packed) - len(packed) % _FD_BYTES])
        return pickle.loads(data), fds[0] if fds else None


def _answer(
    key: tuple[int, int], operation: str, arguments: dict[str, Any], fd: int | None, handle: Handle
) -> tuple[tuple[int, int], bool, Any]:
    try:
        return key, True, handle(operation, arguments, fd)
    except SwapfsError as error:
        return key, False, str(error)
    except Exception as error:  # likewise
        log.exception("what the server asked for failed: %s", operation)
        return key, False, f"{type(error).__name__}: {error}"


def _packed(fd: int) -> bytes:
    return array.array("i", [fd]).tobytes()

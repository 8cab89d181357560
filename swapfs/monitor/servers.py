"""Forking servers: what parent and child do, and how the parent learns that one has served."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import signal
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from swapfs.config.model import Config
from swapfs.errors import OperationError, SwapfsError
from swapfs.host import journal
from swapfs.monitor.holdings import Holdings
from swapfs.server.server import Server, preload
from swapfs.wire.handover import RETIRE_SIGNAL
from swapfs.wire.link import LOOK_SIGNAL
from swapfs.wire.startup import READY, announce, describe

log = logging.getLogger(__name__)

FORK_RETRY_S: Final = 1.0


class Servers:
    """Forks the servers of one instance, one after another.

    :param answer_fd: where the command that started the monitor waits for word
    :param signals: those that the monitor has blocked
    """

    def __init__(self, config: Config, answer_fd: int, signals: Collection[signal.Signals]) -> None:
        preload(config)
        self._config = config
        self._answer_fd = answer_fd
        self._signals = set(signals)
        self._first = True
        self.ever_served = False
        # Shared with the servers: monotonic seconds at which the present one began to serve.
        self._served_since = ctypes.c_double.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))

    def start(self, held: Holdings) -> int:
        """Fork a server and return its pid.

        :raises OperationError: there is no memory or room for it, and no page depends on it
        """
        self._served_since.value = 0.0
        pid = self._fork()
        if pid:
            return pid
        status = 1
        try:
            journal.enter_server()
            self._serve(held)
            status = 0
        except SwapfsError as error:
            log.error("%s", error)
            self._tell_failure(error)
        except BaseException as error:
            log.exception("the server failed")
            self._tell_failure(error)
        finally:
            os._exit(status)

    def ended(self) -> float:
        """Take note that the server has ended; return for how many seconds it had served."""
        since_s = self._served_since.value
        if not since_s:
            return 0.0
        self.ever_served, self._first = True, False
        return time.monotonic() - since_s

    def _fork(self) -> int:
        """Fork; once there are pages to lose, for as long as it takes to have the memory for it."""
        while True:
            try:
                return os.fork()
            except OSError as error:
                if not self.ever_served:
                    raise OperationError(f"cannot start a server: {error.strerror}") from error
                log.critical("cannot start a server: %s; trying again", error.strerror)
            time.sleep(FORK_RETRY_S)

    # ---- in the child ----

    def _serve(self, held: Holdings) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, LOOK_SIGNAL):
            signal.signal(number, signal.SIG_IGN)  # the monitor's to handle
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals - {RETIRE_SIGNAL})
        handover = replace(held.handover(), pid=os.getppid())
        server = Server(
            *(held.config, held.region, held.stack(), handover, held.link),
            recover=self.ever_served,
        )
        server.run(self._on_serving, self._on_ready, self._tell_failure)

    def _on_serving(self) -> None:
        self._served_since.value = time.monotonic()

    def _on_ready(self) -> None:
        if self._first and not announce(self._answer_fd, READY) and not self.ever_served:
            # It was interrupted, and has said so: what it started must not be there after all.
            raise OperationError("the command that started this has ended")

    def _tell_failure(self, error: BaseException) -> None:
        """Tell an `up` why there is no server, or an `upgrade` that there is none yet."""
        if not isinstance(error, SwapfsError):
            error = OperationError(f"{type(error).__name__}: {error}")
        if self.ever_served:
            error = OperationError(
                f"handed over, but the new server fails: {error}; monitor {os.getppid()} holds "
                f"the pages and goes on trying, see 'swapfs status {self._config.name}'"
            )
        announce(self._answer_fd, describe(error))

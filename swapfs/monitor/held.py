"""The held state: no server stays alive, so none is started, and the monitor keeps the pages.

There is no server now, so the monitor must not wait for a file (I9): the state file lies on a
tmpfs. A child writes it, and is killed when a server is to come.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Collection
from typing import Any, Final

from swapfs.config.model import Config
from swapfs.host import fusectl, journal, proc
from swapfs.monitor import holdings, restart_policy
from swapfs.monitor.holdings import Holdings
from swapfs.monitor.outcome import Outcome
from swapfs.monitor.shutdown import Shutdown
from swapfs.region.counters import Counters
from swapfs.wire import state_file
from swapfs.wire.handover import RETIRE_SIGNAL, Successor

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""How often it is looked whether the kernel has ended the connection, of which no signal tells."""


class HeldState:
    """Keeps what *held* has and waits: restarting has no sense, but an operator may have.

    :param signals: what the monitor has blocked and waits for
    """

    def __init__(
        self,
        config: Config,
        held: Holdings,
        signals: Collection[signal.Signals],
        shutdown: Shutdown,
    ) -> None:
        self._config = config
        self._held = held
        self._signals = signals
        self._shutdown = shutdown
        self._publisher = 0

    def wait(self) -> Outcome | None:
        """Return how the watch ends, or None to try another server."""
        name, pid, deaths = self._config.name, os.getpid(), restart_policy.RAPID_DEATHS_MAX
        reason = (
            f"the server died {deaths} times in a row and is not started again; its "
            f"pages are safe in memory, but processes that need one wait; mend the cause (see "
            f"the log), then 'kill -HUP {pid}' or 'swapfs upgrade {name}'"
        )
        log.critical("%s", reason)
        self._publisher = self._publish(reason)
        try:
            return self._wait_for_operator()
        finally:
            if self._publisher:  # it waits for swap: at its end it must not say what is no more
                os.kill(self._publisher, signal.SIGKILL)

    def _wait_for_operator(self) -> Outcome | None:
        while True:
            received = signal.sigtimedwait(self._signals, LOOK_EVERY_S)
            self._reap()
            if fusectl.is_closed(self._held.fuse_fd):
                return Outcome.UNMOUNTED
            if received is None:
                continue
            if received.si_signo == signal.SIGHUP:
                return None
            if received.si_signo == RETIRE_SIGNAL:
                if Successor(received.si_pid, self._held.lock_fd).is_proven():
                    return Outcome.HANDED_OVER
            elif received.si_signo in (signal.SIGTERM, signal.SIGINT):
                needed_by = holdings.needed_by(self._config, self._held)
                if needed_by is None:
                    return Outcome.UNMOUNTED
                log.critical("asked to stop, but %s needs a server first", needed_by)

    def _reap(self) -> None:
        self._shutdown.reap()
        journal.tend()
        if self._publisher and os.waitpid(self._publisher, os.WNOHANG)[0]:
            self._publisher = 0

    def _publish(self, reason: str) -> int:
        """Have the state file say what no server is there to tell; return the child's pid."""
        parent = os.getpid()
        try:
            child = os.fork()
        except OSError as error:
            log.error("state file of %s: %s", self._config.name, error.strerror)
            return 0
        if child:
            return child
        try:
            self._write_state(reason, parent)
        finally:
            os._exit(0)

    def _write_state(self, reason: str, parent: int) -> None:
        config = self._config
        written = state_file.read(config.runtime_dir, config.name)
        status: dict[str, Any] = written[1] if written else {}
        known: list[str] = [] if status.get("held") else status.get("degraded", [])
        status |= {
            "held": True,
            "mountpoint": str(config.mountpoint),
            "pid": parent,
            "server_pid": None,
            "born": proc.births(parent),
            "handover": {**self._held.handover().as_dict(), "pid": parent},
            "degraded": [reason, *known],
            "counters": Counters(self._held.region.counter_words).snapshot(),
        }
        try:
            state_file.write(config.runtime_dir, config.name, status)
        except OSError as error:
            # As a server does, from the child of a fork: the monitor's ring is not its own.
            journal.enter_server()
            log.error("state file of %s: %s", config.name, error.strerror)

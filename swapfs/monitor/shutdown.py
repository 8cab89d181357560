"""What a monitor does when it is asked to stop: ``swapfs down``, as a process of its own.

The monitor itself must stay able to replace its server, for swapoff reads every page through
it. When ``down`` fails, nothing has been taken away and everything goes on (I7).
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from swapfs.host import interpreter, journal

log = logging.getLogger(__name__)


class Shutdown:
    """Runs at most one ``swapfs down`` for instance *name* at a time; ``command`` is its argv."""

    def __init__(self, name: str, runtime_dir: Path) -> None:
        self._name = name
        self.command = [
            *interpreter.command("swapfs", "down", name),
            *("--runtime-dir", str(runtime_dir)),
        ]
        self._pid = 0
        self._asked_again = False

    def start(self) -> None:
        """Begin; if an earlier one is still at it and fails, another one follows."""
        if self._pid:
            log.warning("asked to stop again: %s is still being taken down", self._name)
            self._asked_again = True
            return
        self._asked_again = False
        log.warning("asked to stop: taking %s down, swapoff first", self._name)
        try:
            self._pid = os.fork()
        except OSError as error:
            log.critical("cannot take %s down: %s; it goes on serving", self._name, error)
            return
        if not self._pid:
            self._become_command()

    def _become_command(self) -> None:
        """Be the command, in the child of a fork.

        Not by `subprocess`, which waits until the program runs: to find it the child must look
        into files, for which it may need the next server, which the monitor could not start.
        """
        try:
            os.setsid()  # a second Ctrl-C must not interrupt its swapoff
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            output_fd = journal.output_fd()
            if output_fd is not None:  # else what the monitor has there would outlive it
                os.dup2(output_fd, 1)
                os.dup2(output_fd, 2)
            # The monitor has signals blocked, which a new program would inherit.
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.execv(self.command[0], self.command)
        except OSError as error:
            os.write(2, f"swapfs: {self.command[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)

    def reap(self) -> None:
        """Take note of how it ended, if it has; to be called after each SIGCHLD."""
        done, status = os.waitpid(self._pid, os.WNOHANG) if self._pid else (0, 0)
        if not done:
            return
        self._pid = 0
        if status != 0:
            log.critical(
                "taking %s down failed (status %d, its reason is above): it goes on serving; "
                "mend the cause and ask again",
                self._name,
                os.waitstatus_to_exitcode(status),
            )
            if self._asked_again:
                self.start()

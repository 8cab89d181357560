"""What a monitor does when it is asked to stop: ``swapfs down``, as a process of its own.

The monitor itself must stay able to replace its server, for swapoff reads every page through
it. When ``down`` fails, nothing has been taken away and everything goes on (I7).
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

log = logging.getLogger(__name__)


class TakeDown:
    """Runs at most one ``swapfs down`` for instance *name* at a time."""

    def __init__(self, name: str, runtime_dir: Path) -> None:
        self._name = name
        self._command = [
            *(sys.executable, "-m", "swapfs", "down", name),
            *("--runtime-dir", str(runtime_dir)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_again = False

    def start(self) -> None:
        """Begin; if an earlier one is still at it and fails, another one follows."""
        if self._process is not None:
            log.warning("asked to stop again: %s is still being taken down", self._name)
            self._asked_again = True
            return
        self._asked_again = False
        log.warning("asked to stop: taking %s down, swapoff first", self._name)
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # a second Ctrl-C must not interrupt its swapoff
                # The monitor has signals blocked, which a new program would inherit.
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, []),
            )
        except (OSError, subprocess.SubprocessError) as error:
            log.critical("cannot take %s down: %s; it goes on serving", self._name, error)

    def reap(self) -> None:
        """Take note of how it ended, if it has; to be called after each SIGCHLD."""
        status = self._process.poll() if self._process is not None else None
        if status is None:
            return
        self._process = None
        if status != 0:
            log.critical(
                "taking %s down failed (status %d, its reason is above): it goes on serving; "
                "mend the cause and ask again",
                self._name,
                status,
            )
            if self._asked_again:
                self.start()

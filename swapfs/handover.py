"""Handing a running instance to another monitor: live upgrade.

The new monitor fetches the old one's descriptors (pidfd_getfd(2)), maps and locks the region
beside it, loads its own code, and only then asks the old one to retire. The old server finishes
what it is serving and ends; the old monitor ends without unmounting; the new one forks a server
that resumes the session. At every moment at least one process has the region locked, and until
the old one has gone nothing has changed, so a refusal costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from swapfs import syscalls
from swapfs.errors import OperationError

RETIRE_SIGNAL: Final = signal.SIGUSR1
"""What a monitor is sent to make it retire; part of the protocol between versions."""
RETIRE_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Handover:
    """Where the descriptors of a running monitor are: numbers in process *pid*."""

    pid: int
    region_fd: int
    fuse_fd: int
    lock_fd: int
    tier_fd: int | None

    def as_dict(self) -> dict[str, int | None]:
        """Return the fields as they stand in the status snapshot."""
        return asdict(self)

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> Handover:
        """Return the handover that a status snapshot offers.

        :raises OperationError: that instance is of a version that offers none
        """
        try:
            return cls(**status["handover"])
        except (KeyError, TypeError) as error:
            raise OperationError(
                "the running version cannot be upgraded in place; run 'swapfs down', then 'up'"
            ) from error


class Predecessor:
    """The monitor that is to be replaced."""

    def __init__(self, handover: Handover) -> None:
        try:
            self._pidfd = os.pidfd_open(handover.pid)
        except OSError as error:
            raise OperationError(f"monitor {handover.pid}: {error.strerror}") from error
        self._handover = handover

    def descriptors(self) -> Handover:
        """Return the same handover with copies of its descriptors, as numbers of this process.

        :raises OperationError: not allowed, or it has no such descriptors any more
        """
        theirs = self._handover
        taken: dict[str, int] = {}
        try:
            for name in ("region_fd", "fuse_fd", "lock_fd", "tier_fd"):
                number = getattr(theirs, name)
                if number is not None:
                    taken[name] = syscalls.pidfd_getfd(self._pidfd, number)
        except OSError as error:
            for fd in taken.values():
                os.close(fd)
            raise OperationError(f"monitor {theirs.pid}: {error.strerror}") from error
        return replace(theirs, **taken)

    def retire(self) -> None:
        """Ask it to end, and wait until it has.

        :raises OperationError: it goes on; nothing has changed
        """
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, RETIRE_SIGNAL)
        gone = select.poll()
        gone.register(self._pidfd, select.POLLIN)
        if not gone.poll(RETIRE_WAIT_S * 1000):
            raise OperationError(
                f"monitor {self._handover.pid} did not retire within {RETIRE_WAIT_S:.0f} s"
            )

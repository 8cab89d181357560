"""Handing a running instance to another monitor: live upgrade.

The new monitor fetches the old one's descriptors (pidfd_getfd(2)), maps and locks the region
beside it, loads its own code, and only then asks the old one to retire. Up to there nothing has
changed, and a refusal costs nothing. The old server finishes what it is serving and ends; the old
monitor ends without unmounting; the new one forks a server that resumes the session.

From the request on neither monitor may end before the other has what it holds, or the kernel
aborts the connection with every page in it. So the new one waits for as long as it takes, and the
old one looks whether its `Successor` is one, and lives, before it ends; if not, it goes on with a
new server. At every moment at least one process has the region locked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from swapfs.errors import OperationError
from swapfs.host import instance_lock, proc, syscalls

log = logging.getLogger(__name__)

RETIRE_SIGNAL: Final = signal.SIGUSR1
"""What a monitor is sent to make it retire; part of the protocol between versions."""
RETIRE_NOTE_S: Final = 20.0
"""How often it is said that the other one has not retired yet."""
RETIRE_AGAIN_S: Final = 1.0
"""How often it is asked again: a signal is lost where one of its kind is pending, from anybody."""


@dataclass(frozen=True, slots=True)
class Handover:
    """Where the descriptors of a running monitor are: numbers in process *pid*."""

    pid: int
    region_fd: int
    fuse_fd: int
    lock_fd: int
    tier_fds: tuple[int, ...]
    device: int | None = None
    """st_dev of the mount: mountinfo forgets it when somebody takes the mount away lazily."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as they stand in the status snapshot."""
        return {**asdict(self), "tier_fds": list(self.tier_fds)}

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> Handover:
        """Return the handover that a status snapshot offers.

        :raises OperationError: that instance is of a version that offers none
        """
        try:
            handover = dict(status["handover"])
            return cls(**{**handover, "tier_fds": tuple(handover["tier_fds"])})
        except (KeyError, TypeError) as error:
            raise OperationError(
                "the running version cannot be upgraded in place; run 'swapfs down', then 'up'"
            ) from error


def lock_path(runtime_dir: Path, name: str) -> Path:
    """Return the file whose lock is the life of instance *name*."""
    return runtime_dir / f"{name}.lock"


@contextlib.contextmanager
def exclusively(lock_path: Path) -> Iterator[None]:
    """Keep other upgrades of the instance that locks *lock_path* out, for the time of the block.

    Two monitors that took the same descriptors would both serve. It also proves to the old monitor
    who its `Successor` is.

    :raises OperationError: another upgrade is under way
    """
    with lock_path.open("a+b") as file:
        if not instance_lock.acquire_upgrade(file.fileno()):
            raise OperationError("another upgrade of it is under way; wait until it is done")
        yield


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
        taken: list[int] = []
        try:
            for number in (theirs.region_fd, theirs.fuse_fd, theirs.lock_fd, *theirs.tier_fds):
                taken.append(syscalls.pidfd_getfd(self._pidfd, number))  # noqa: PERF401
        except OSError as error:
            for fd in taken:
                os.close(fd)
            raise OperationError(f"monitor {theirs.pid}: {error.strerror}") from error
        region_fd, fuse_fd, lock_fd, *tier_fds = taken
        return Handover(theirs.pid, region_fd, fuse_fd, lock_fd, tuple(tier_fds), theirs.device)

    def retire(self, note: Callable[[str], None]) -> None:
        """Ask it to end, and wait until it has, however long that is: there is no way back.

        :param note: told every RETIRE_NOTE_S that it has not ended yet
        :raises OperationError: it is gone already, and nobody knows what of its server
        """
        try:
            signal.pidfd_send_signal(self._pidfd, RETIRE_SIGNAL)
        except ProcessLookupError as error:
            raise OperationError(f"monitor {self._handover.pid} has just died") from error
        began_s = time.monotonic()
        note_s = began_s + RETIRE_NOTE_S
        while not proc.has_ended(self._pidfd, min(RETIRE_AGAIN_S, RETIRE_NOTE_S)):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                signal.pidfd_send_signal(self._pidfd, RETIRE_SIGNAL)
            now_s = time.monotonic()
            if now_s < note_s:
                continue
            note_s = now_s + RETIRE_NOTE_S
            note(
                f"waiting for the old server, which has not finished after {now_s - began_s:.0f} s;"
                f" a disk that hangs holds it up, and swap stands still until it answers"
            )


class Successor:
    """Who has asked this monitor to retire, by the *pid* that the signal carries.

    Anybody may send a signal. Only what holds the lock that ``exclusively`` takes is another
    monitor that has everything already, and to nothing else may the pages go.

    :param lock_fd: of the file that the lock is on
    """

    def __init__(self, pid: int, lock_fd: int) -> None:
        self.pid = pid
        self._lock_fd = lock_fd
        self._pidfd = -1
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(pid)  # before the look at the lock: no other gets its pid

    def is_proven(self) -> bool:
        """Whether it lives and is a successor; if not, that is logged."""
        holder = instance_lock.upgrader(self._lock_fd)
        # One of another pid namespace has pid 0 here, as sender and as holder of a lock.
        lives = self.pid == 0 or (self._pidfd >= 0 and not proc.has_ended(self._pidfd, 0))
        if lives and holder == self.pid:
            return True
        log.warning(
            "process %d asked this monitor to retire, but is no other monitor that goes on; "
            "nothing changes",
            self.pid,
        )
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return False

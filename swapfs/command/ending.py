"""Ending the daemon of an instance: ask, unmount, and wait until every process of it is gone.

Nothing here kills anything, and nothing is ended under a loop device.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from swapfs.command.stale import daemon_lives, was_born
from swapfs.config.paths import mount_source
from swapfs.errors import OperationError
from swapfs.host import mounts, proc
from swapfs.wire import control

if TYPE_CHECKING:
    from pathlib import Path

    Snapshot = dict[str, Any]

EXIT_WAIT_S: Final = 60.0
"""Longest wait for a daemon to exit after its unmount; it has a pool of memory to give back."""
STOP_TIMEOUT_S: Final = 10.0


def end_held(name: str, runtime_dir: Path, last: Snapshot, devices: list[Path]) -> None:
    """End a monitor that has given up restarting its server.

    :raises OperationError: a loop device needs a server first; nothing was touched
    """
    if devices:
        hang_up = f"kill -HUP {last.get('pid')}"
        raise OperationError(
            f"{name} has no server, so {devices[0]} cannot be taken down, but its pages are in"
            f" memory: mend the cause, then '{hang_up}' or 'swapfs upgrade {name}'"
        )
    pidfd = _open_monitor(last)
    if pidfd is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        _wait_until_gone(name, runtime_dir, pidfd)
    finally:
        os.close(pidfd)


def unmount(name: str, runtime_dir: Path, last: Snapshot) -> list[str]:
    """Unmount instance *name*, wait until its daemon is gone; return what was done.

    :param last: its last snapshot, empty if there is none

    :raises OperationError: the mount is busy, or the daemon is still there after EXIT_WAIT_S
    """
    done = []
    alive = daemon_lives(runtime_dir, name)
    # Before the unmount: afterwards the number may belong to somebody else.
    pidfd = _open_monitor(last) if alive else None
    try:
        mounted = [m.mountpoint for m in mounts.entries() if m.source == mount_source(name)]
        for mountpoint in reversed(mounted):
            try:
                mounts.umount(mountpoint)
            except OperationError:
                if mounts.at(mountpoint) is not None:
                    raise
                continue  # another `down` was faster
            done.append(f"unmounted {mountpoint}")
        if alive and not mounted:
            # Nothing left to unmount, so it must be asked; it may also be exiting already.
            with contextlib.suppress(OperationError):
                control.request(control.socket_path(runtime_dir, name), "stop", STOP_TIMEOUT_S)
        if alive:
            if not _ends_within(STOP_TIMEOUT_S, name, runtime_dir, pidfd):
                # Another mount namespace (a container's) may have a copy of the mount.
                with contextlib.suppress(OperationError):
                    control.request(control.socket_path(runtime_dir, name), "abort", STOP_TIMEOUT_S)
            _wait_until_gone(name, runtime_dir, pidfd)
            done.append("stopped the daemon")
    finally:
        if pidfd is not None:
            os.close(pidfd)
    return done


def _open_monitor(last: Snapshot) -> int | None:
    """Return a pidfd of the monitor that *last* names; None if it has ended."""
    pid, born = last.get("pid"), last.get("born")
    try:
        pidfd = os.pidfd_open(pid) if isinstance(pid, int) else None
    except OSError:
        return None
    # Looked at with the descriptor in hand: from now on the number cannot become another's.
    if pidfd is not None and not (isinstance(born, dict) and was_born(pid, born.get(str(pid)))):
        os.close(pidfd)
        return None
    return pidfd


def _wait_until_gone(name: str, runtime_dir: Path, pidfd: int | None) -> None:
    """Wait until the process *pidfd* has exited and nobody holds the lock of *name*."""
    if not _ends_within(EXIT_WAIT_S, name, runtime_dir, pidfd):
        raise OperationError(
            f"nothing of {name} is mounted any more, but its daemon still runs after "
            f"{EXIT_WAIT_S:g} s; see {name}.log, and try again"
        )


def _ends_within(wait_s: float, name: str, runtime_dir: Path, pidfd: int | None) -> bool:
    deadline = time.monotonic() + wait_s
    if pidfd is not None:
        proc.has_ended(pidfd, wait_s)
    while daemon_lives(runtime_dir, name):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True

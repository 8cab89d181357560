"""Bringing an instance up and down: daemon, loop device, swap header, swapon, and back.

The order is what keeps pages safe: swap goes on last and off first, and nothing below an
active swap area is ever taken away (I7). No step here kills anything.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swapfs.command import reserve, stale
from swapfs.command.stale import daemon_lives, was_born
from swapfs.config.model import default_mountpoint, load, mount_source, swap_backing
from swapfs.errors import OperationError
from swapfs.host import loop, mounts, proc, swap, systemd
from swapfs.vlayer.health import condition
from swapfs.wire import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from swapfs.config.model import Config

    Snapshot = dict[str, Any]
    UndoSteps = list[tuple[str, Callable[[], object]]]  # (what it does, how)

EXIT_WAIT_S: Final = 60.0
"""Longest wait for a daemon to exit after its unmount; it has a pool of memory to give back."""
STOP_TIMEOUT_S: Final = 10.0


def mount(config: Config, foreground: bool) -> int | None:
    """Mount the swap file; return the daemon's pid, or None once a foreground one has ended.

    :raises OperationError: already up, a ghost is in the way, or the daemon could not start;
        nothing is left behind
    """
    # Imported here: down and status must not pay for FUSE, compression and metrics.
    from swapfs.command import launch

    stale.refuse(config)
    with _undone_on_failure() as undo:
        _make_mountpoint(config, undo)
        if not foreground:
            return launch.launch(config)
        launch.run_foreground(config)
        _remove_mountpoint(config.runtime_dir, config.name)
        return None


def up(config: Config) -> Path:
    """Mount the swap file and make the kernel swap on it; return the loop device.

    :raises OperationError: the first step that failed; the steps before it are undone in
        reverse order, and a note says so if that failed too
    """
    from swapfs.command import launch

    stale.refuse(config)
    swap_file = config.swap_file
    with _undone_on_failure() as undo:
        _make_mountpoint(config, undo)
        pid = launch.launch(config)
        undo.append(("unmount", lambda: _unmount_started(config, pid)))
        # These two are noted before they are done, so that an interrupt between loses nothing.
        undo.append(("detach loop device", lambda: _detach_all(config)))
        device = loop.attach(swap_file).device
        swap.mkswap(device, config.name)
        undo.append(("put vm.min_free_kbytes back", lambda: _release_reserve(config)))
        _hold_reserve(config)
        undo.append(("swapoff", lambda: _swapoff_if_on(device)))
        swap.swapon(device, config.priority)
        _check_swap(device, config.priority)
    return device


def down(name: str, runtime_dir: Path) -> list[str]:
    """Take instance *name* down: swapoff, detach, unmount; return what was done, in order.

    Takes whatever parts of it there are, so it may be called again; an empty list means
    that there were none.

    :raises OperationError: a step failed; what that step protects is left as it is
    """
    written = control.read_snapshot(runtime_dir, name)
    last = written[1] if written else {}
    devices = [attached.device for attached in stale.loops_of(runtime_dir, name)]
    done: list[str] = []
    if last.get("held") and daemon_lives(runtime_dir, name):
        _end_held(name, runtime_dir, last, devices)
    for device in devices:
        if swap.find(device) is not None:
            _swapoff_or_explain(device)
            done.append(f"swapoff {device}")
    # Looked at again: swapoff may have taken minutes, and the number may be another's by now.
    for device in [attached.device for attached in stale.loops_of(runtime_dir, name)]:
        loop.detach(device)
        done.append(f"detached {device}")
    done += _unmount(name, runtime_dir, last)
    former_kib = reserve.release(runtime_dir, name, functools.partial(daemon_lives, runtime_dir))
    if former_kib is not None:
        done.append(f"vm.min_free_kbytes is {former_kib} again")
    _remove_mountpoint(runtime_dir, name)
    for left in (
        control.socket_path(runtime_dir, name),
        control.snapshot_path(runtime_dir, name),
    ):
        left.unlink(missing_ok=True)
    return done


def upgrade(name: str, runtime_dir: Path) -> tuple[str, str]:
    """Put this version in the place of the running daemon; swap stays on.

    Returns the version that ran before and this one.

    :raises OperationError: it does not run, or cannot be replaced; it goes on as before
    """
    from swapfs import __version__
    from swapfs.command import launch
    from swapfs.wire.handover import Handover

    status = _status_to_upgrade(name, runtime_dir)
    systemd.refuse_other_unit(status["pid"])
    if not status.get("held"):
        _refuse_stuck(status["tiers"])
    launch.take_over(load(status["config"]), Handover.from_status(status))
    return str(status["version"]), __version__


def _status_to_upgrade(name: str, runtime_dir: Path) -> dict[str, Any]:
    """Return the status of the running daemon, which may be one that has given up restarting."""
    try:
        return control.request(control.socket_path(runtime_dir, name), "status", STOP_TIMEOUT_S)
    except OperationError:
        written = control.read_snapshot(runtime_dir, name)
        if written and written[1].get("held") and daemon_lives(runtime_dir, name):
            return written[1]
        raise


def _refuse_stuck(tiers: list[dict[str, Any]]) -> None:
    """Refuse while a disk hangs: the old server could not end, and swap would stand still.

    :raises OperationError: one of *tiers*, as in the status, has a write that does not end
    """
    for tier in tiers:
        if condition(tier["state"]) == "stuck":
            raise OperationError(
                f"{tier['path']}: {tier['state']}, and until it ends no server can; "
                "upgrade when the disk answers"
            )


@contextlib.contextmanager
def _undone_on_failure() -> Iterator[UndoSteps]:
    """Give a list for undo steps; on any exception run them, last first, and raise it.

    Each step stands on the ones before it, so the first undo that fails is the last.
    """
    steps: UndoSteps = []
    try:
        yield steps
    except BaseException as error:
        for what, step in reversed(steps):
            try:
                step()
            except OperationError as failed:
                error.add_note(f"and undoing it stopped at {what}: {failed}")
                break
        raise


def _unmount_started(config: Config, pid: int) -> None:
    # not from its snapshot, which it may not have written yet
    _unmount(config.name, config.runtime_dir, {"pid": pid, "born": proc.births(pid)})


def _make_mountpoint(config: Config, undo: UndoSteps) -> None:
    """Make the default mount point; one that the user names exists already."""
    if config.mountpoint != default_mountpoint(config.runtime_dir, config.name):
        return
    undo.append(("remove mount point", lambda: _remove_mountpoint(config.runtime_dir, config.name)))
    try:
        control.make_runtime_dir(config.runtime_dir)
        for made in (config.mountpoint.parent, config.mountpoint):
            made.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OperationError(f"{config.mountpoint}: {error.strerror}") from error


def _remove_mountpoint(runtime_dir: Path, name: str) -> None:
    """Remove the default mount point if it is there, empty and nobody's.

    A daemon that lives is about to mount on it: of two that were started at once it is the one
    that came first.
    """
    if daemon_lives(runtime_dir, name):
        return
    mountpoint = default_mountpoint(runtime_dir, name)
    with contextlib.suppress(OSError):
        mountpoint.rmdir()
        mountpoint.parent.rmdir()


def _hold_reserve(config: Config) -> None:
    needed_bytes = reserve.wanted_bytes(config.min_free_bytes)
    if needed_bytes:
        reserve.hold(config.runtime_dir, config.name, needed_bytes)


def _release_reserve(config: Config) -> None:
    lives = functools.partial(daemon_lives, config.runtime_dir)
    reserve.release(config.runtime_dir, config.name, lives)


def _end_held(name: str, runtime_dir: Path, last: Snapshot, devices: list[Path]) -> None:
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


def _swapoff_or_explain(device: Path) -> None:
    try:
        swap.swapoff(device)
    except OperationError as error:
        raise OperationError(
            f"{error}; swap is still on, so nothing was detached or unmounted"
        ) from error
    if swap.find(device) is not None:
        raise OperationError(f"swapoff {device}: it is still in /proc/swaps; nothing was detached")


def _swapoff_if_on(device: Path) -> None:
    if swap.find(device) is not None:
        _swapoff_or_explain(device)


def _check_swap(device: Path, priority: int) -> None:
    """Believe swapon only when /proc/swaps agrees (I8)."""
    entry = swap.find(device)
    if entry is None:
        raise OperationError(f"swapon {device}: it is not in /proc/swaps")
    if entry.priority != priority:
        raise OperationError(f"swapon {device}: priority {entry.priority} instead of {priority}")


def _detach_all(config: Config) -> None:
    mounted = mounts.at(config.mountpoint)
    backing = swap_backing(config.mountpoint, mounted.device if mounted else None)
    while (attached := loop.find(backing)) is not None:
        loop.detach(attached.device)


def _unmount(name: str, runtime_dir: Path, last: Snapshot) -> list[str]:
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
            f"{EXIT_WAIT_S:g} s; see {runtime_dir}/{name}.log, and try again"
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

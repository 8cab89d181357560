"""Bringing an instance up and down: daemon, loop device, swap header, swapon, and back.

The order is what keeps pages safe: swap goes on last and off first, and nothing below an
active swap area is ever taken away (I7). No step here kills anything.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapfs.command import ending, reserve, stale, turn_on
from swapfs.command.stale import daemon_lives
from swapfs.config.model import load
from swapfs.config.paths import default_mountpoint, swap_backings
from swapfs.errors import OperationError
from swapfs.host import loop, mounts, proc, systemd
from swapfs.server.status import Status
from swapfs.tiers.state import TierState
from swapfs.wire import control, state_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swapfs.command.turn_on import UndoSteps
    from swapfs.config.model import Config
    from swapfs.server.status import TierStatus


def mount(config: Config, foreground: bool) -> int | None:
    """Mount the swap file; return the daemon's pid, or None once a foreground one has ended.

    :raises OperationError: already up, a ghost is in the way, or the daemon could not start;
        nothing is left behind
    """
    # Imported here: down and status must not pay for FUSE, compression and metrics.
    from swapfs.command import launch

    _refuse(config)
    with _undone_on_failure() as undo:
        _make_mountpoint(config, undo)
        if not foreground:
            return launch.launch(config)
        launch.run_foreground(config)
        _remove_mountpoint(config.runtime_dir, config.name)
        return None


def up(config: Config) -> list[Path]:
    """Mount the swap files and make the kernel swap on them; return the loop device of each.

    An instance of this configuration that `up` made, and whose swap somebody turned off, gets it
    back; that is all then.

    :raises OperationError: the first step that failed; the steps before it are undone in
        reverse order, and a note says so if that failed too
    """
    from swapfs.command import launch

    with _undone_on_failure() as undo:
        if mended := turn_on.mend(config, undo):
            return mended
        _refuse(config)
        _make_mountpoint(config, undo)
        pid = launch.launch(config)
        undo.append(("unmount", lambda: _unmount_started(config, pid)))
        # Noted before it is done, so that an interrupt between loses nothing.
        undo.append(("detach loop device", lambda: _detach_all(config)))
        areas = [(e, loop.attach(config.mountpoint / e.name).device) for e in config.exports]
        turn_on.turn_on(config, areas, undo)
    return [device for _, device in areas]


def down(name: str, runtime_dir: Path, *, force: bool = False) -> list[str]:
    """Take instance *name* down: swapoff, detach, unmount; return what was done, in order.

    Takes whatever parts of it there are, so it may be called again, and by several at a time; an
    empty list means that there were none.

    :param force: turn swap off although there seems to be no room for what comes back
    :raises OperationError: a step failed; what that step protects is left as it is
    """
    written = state_file.read(runtime_dir, name)
    last = written[1] if written else {}
    devices = [attached.device for attached in stale.loops_of(runtime_dir, name)]
    alive = daemon_lives(runtime_dir, name)
    if last.get("held") and alive:
        ending.end_held(name, runtime_dir, last, devices)
    # Of the dead no page comes back, and none needs room.
    force = force or not alive
    turned_off = (
        device for device in devices if turn_on.off(name, runtime_dir, device, force=force)
    )
    done = [f"swapoff {device}" for device in turned_off]
    control.wanted_path(runtime_dir, name).unlink(missing_ok=True)
    # Looked at again: swapoff may have taken minutes, and the number may be another's by now.
    for device in [attached.device for attached in stale.loops_of(runtime_dir, name)]:
        loop.detach(device)
        done.append(f"detached {device}")
    done += ending.unmount(name, runtime_dir, last)
    former_kib = reserve.release(runtime_dir, name, functools.partial(daemon_lives, runtime_dir))
    if former_kib is not None:
        done.append(f"vm.min_free_kbytes is {former_kib} again")
    _remove_mountpoint(runtime_dir, name)
    for left in (
        control.socket_path(runtime_dir, name),
        state_file.path(runtime_dir, name),
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
        _refuse_stuck(Status.from_dict(status).tiers)
    launch.take_over(load(status["config"]), Handover.from_status(status))
    return str(status["version"]), __version__


def _status_to_upgrade(name: str, runtime_dir: Path) -> dict[str, Any]:
    """Return the status of the running daemon, which may be one that has given up restarting."""
    try:
        return control.request(
            control.socket_path(runtime_dir, name), "status", ending.STOP_TIMEOUT_S
        )
    except OperationError:
        written = state_file.read(runtime_dir, name)
        if written and written[1].get("held") and daemon_lives(runtime_dir, name):
            return written[1]
        raise


def _refuse_stuck(tiers: Iterable[TierStatus]) -> None:
    """Refuse while a disk hangs: the old server could not end, and swap would stand still.

    :raises OperationError: one of *tiers* has a write that does not end
    """
    for tier in tiers:
        if tier.state is TierState.STUCK:
            raise OperationError(
                f"{tier.path}: {tier.detail}, and until it ends no server can; "
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


def _refuse(config: Config) -> None:
    """Refuse to start beside what is there; forget what was wanted of one that is not."""
    stale.refuse(config)
    control.wanted_path(config.runtime_dir, config.name).unlink(missing_ok=True)


def _unmount_started(config: Config, pid: int) -> None:
    # not from its snapshot, which it may not have written yet
    ending.unmount(config.name, config.runtime_dir, {"pid": pid, "born": proc.births(pid)})


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


def _detach_all(config: Config) -> None:
    mounted = mounts.at(config.mountpoint)
    device = mounted.device if mounted else None
    for backing in swap_backings(config.mountpoint, device, config.export_names):
        while (attached := loop.find(backing)) is not None:
            loop.detach(attached.device)

"""Turning swap on over a loop device, and again on an instance whose swap somebody turned off.

``up`` leaves a mark that the kernel shall swap on the instance; ``down`` takes it away. With the
mark and without swap the instance is degraded, and another ``up`` mends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swapfs.command import reserve, stale, turn_off
from swapfs.command.stale import daemon_lives
from swapfs.config.model import describe
from swapfs.config.paths import mount_source
from swapfs.errors import OperationError
from swapfs.host import loop, mounts, swap
from swapfs.wire import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from swapfs.config.model import Config

    UndoSteps = list[tuple[str, Callable[[], object]]]  # (what it does, how)

STATUS_TIMEOUT_S: Final = 10.0


def turn_on(config: Config, device: Path, undo: UndoSteps) -> None:
    """Make a swap area of *device* and have the kernel swap on it.

    :param undo: gets what takes each step back; noted before it is done, so that an interrupt
        between loses nothing
    :raises OperationError: the step that failed
    """
    swap.mkswap(device, config.name)
    undo.append(("put vm.min_free_kbytes back", lambda: _release_reserve(config)))
    _hold_reserve(config)
    undo.append(("swapoff", lambda: off(config.name, config.runtime_dir, device, force=True)))
    swap.swapon(device, config.priority)
    _check_swap(device, config.priority)
    control.wanted_path(config.runtime_dir, config.name).touch(mode=0o600)
    _killed_note(config.runtime_dir, config.name).unlink(missing_ok=True)


def mend(config: Config, undo: UndoSteps) -> Path | None:
    """Turn swap on again if `up` made a living instance of *config* that has none; else None.

    :raises OperationError: it runs with other values, it does not answer, or a step failed
    """
    run, name = config.runtime_dir, config.name
    if not daemon_lives(run, name):
        return None
    with _locked(control.wanted_path(run, name)) as wanted:
        devices = [attached.device for attached in stale.loops_of(run, name)]
        if not wanted or any(swap.find(device) for device in devices):
            return None
        _require_same(config)
        device = devices[0] if devices else _attach(config, undo)
        turn_on(config, device, undo)
        return device


def off(name: str, runtime_dir: Path, device: Path, *, force: bool) -> bool:
    """Have swap off on *device* of instance *name*; return False if it was off before.

    :raises OperationError: it is still on
    """
    try:
        was_on = turn_off.turn_off(device, _killed_note(runtime_dir, name), force=force)
    except OperationError as error:
        raise OperationError(
            f"{error}; swap is still on, so nothing was detached or unmounted"
        ) from error
    if swap.find(device) is not None:
        raise OperationError(f"swapoff {device}: it is still in /proc/swaps; nothing was detached")
    return was_on


def _killed_note(runtime_dir: Path, name: str) -> Path:
    return runtime_dir / f"{name}.killed"


@contextlib.contextmanager
def _locked(mark: Path) -> Iterator[bool]:
    """Keep every other `up` out: two would make two loop devices, and two swap areas, of one file.

    Yields whether *mark* is there.
    """
    try:
        descriptor = os.open(mark, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield mark.exists()  # `down` may have taken it away meanwhile
    finally:
        os.close(descriptor)


def _require_same(config: Config) -> None:
    """Refuse another configuration than that of the running instance."""
    sock = control.socket_path(config.runtime_dir, config.name)
    running = control.request(sock, "status", STATUS_TIMEOUT_S)["config"]
    wanted = json.loads(describe(config, as_json=True))
    # Of another version it may have other keys.
    others = [key for key in wanted if key in running and wanted[key] != running[key]]
    if others:
        raise OperationError(
            f"{config.name} runs with another {', '.join(others)}: run swapfs down {config.name} "
            "first"
        )


def _attach(config: Config, undo: UndoSteps) -> Path:
    """Attach a loop device in the place of one that went at swapoff (after losetup -D)."""
    mounted = mounts.at(config.mountpoint)
    if mounted is None or mounted.source != mount_source(config.name):
        raise OperationError(
            f"{config.name} runs, and is not mounted here: run swapfs down {config.name} first"
        )
    device = loop.attach(config.swap_file).device
    undo.append(("detach loop device", lambda: loop.detach(device)))
    return device


def _hold_reserve(config: Config) -> None:
    needed_bytes = reserve.wanted_bytes(config.min_free_bytes)
    if needed_bytes:
        reserve.hold(config.runtime_dir, config.name, needed_bytes)


def _release_reserve(config: Config) -> None:
    lives = functools.partial(daemon_lives, config.runtime_dir)
    reserve.release(config.runtime_dir, config.name, lives)


def _check_swap(device: Path, priority: int) -> None:
    """Believe swapon only when /proc/swaps agrees (I8)."""
    entry = swap.find(device)
    if entry is None:
        raise OperationError(f"swapon {device}: it is not in /proc/swaps")
    if entry.priority != priority:
        raise OperationError(f"swapon {device}: priority {entry.priority} instead of {priority}")

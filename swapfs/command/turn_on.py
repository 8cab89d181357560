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
from swapfs.config.paths import SWAP_FILE_NAME, mount_source
from swapfs.errors import OperationError
from swapfs.host import loop, mounts, swap
from swapfs.wire import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from swapfs.config.exports import ExportConfig
    from swapfs.config.model import Config

    Areas = Sequence[tuple[ExportConfig, Path]]  # swap files, and the devices on them
    UndoSteps = list[tuple[str, Callable[[], object]]]  # (what it does, how)

STATUS_TIMEOUT_S: Final = 10.0
_NONE: Final = Path()
"""No device."""


def turn_on(config: Config, areas: Areas, undo: UndoSteps) -> None:
    """Make swap areas of the devices of *areas* and have the kernel swap on them, all or none.

    :param undo: gets what takes each step back; noted before it is done, so that an interrupt
        between loses nothing
    :raises OperationError: the step that failed
    """
    for export, device in areas:
        swap.mkswap(device, _label(config, export))
    undo.append(("put vm.min_free_kbytes back", lambda: _release_reserve(config)))
    _hold_reserve(config)
    for export, device in areas:
        back = functools.partial(off, config.name, config.runtime_dir, device, force=True)
        undo.append((f"swapoff {device}", back))
        swap.swapon(device, export.priority)
        _check_swap(device, export.priority)
    control.wanted_path(config.runtime_dir, config.name).touch(mode=0o600)
    _killed_note(config.runtime_dir, config.name).unlink(missing_ok=True)


def _label(config: Config, export: ExportConfig) -> str:
    return config.name if export.name == SWAP_FILE_NAME else f"{config.name}-{export.name}"


def mend(config: Config, undo: UndoSteps) -> list[Path]:
    """Turn swap on again where a living instance of *config* that `up` made has none.

    Returns the device of each swap file then; none if there was nothing to mend.

    :raises OperationError: it runs with other values, it does not answer, or a step failed
    """
    run, name = config.runtime_dir, config.name
    if not daemon_lives(run, name):
        return []
    with _locked(control.wanted_path(run, name)) as wanted:
        devices = devices_by_name(config)
        missing = [e for e in config.exports if swap.find(devices.get(e.name, _NONE)) is None]
        if not wanted or not missing:
            return []
        _require_same(config)
        areas = [(e, devices.get(e.name) or _attach(config, e, undo)) for e in missing]
        turn_on(config, areas, undo)
        devices |= {export.name: device for export, device in areas}
        return [devices[export.name] for export in config.exports]


def devices_by_name(config: Config) -> dict[str, Path]:
    """Return the loop device of each swap file of *config*'s instance that has one.

    Of several on one file, that which swap is on.
    """
    found: dict[str, Path] = {}
    for attached in stale.loops_of(config.runtime_dir, config.name):
        name = Path(attached.backing_file).name
        if name not in found or swap.find(attached.device) is not None:
            found[name] = attached.device
    return found


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


def _attach(config: Config, export: ExportConfig, undo: UndoSteps) -> Path:
    """Attach a loop device in the place of one that went at swapoff (after losetup -D)."""
    mounted = mounts.at(config.mountpoint)
    if mounted is None or mounted.source != mount_source(config.name):
        raise OperationError(
            f"{config.name} runs, and is not mounted here: run swapfs down {config.name} first"
        )
    device = loop.attach(config.mountpoint / export.name).device
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

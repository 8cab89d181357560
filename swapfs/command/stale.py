"""What an instance leaves behind when it dies, and how to tell it from one that lives.

Without a process of it there may still be a mount that nobody serves, a loop device on it, and a
swap area on that: a ghost, which reads as errors. All of it is looked at without touching a file
inside a mount.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swapfs.config.model import mount_source
from swapfs.errors import OperationError
from swapfs.host import instance_lock, loop, mounts, proc, swap
from swapfs.wire import control

if TYPE_CHECKING:
    from collections.abc import Collection

    from swapfs.config.model import Config
    from swapfs.host.loop import LoopDevice
    from swapfs.host.mounts import MountEntry
    from swapfs.host.swap import SwapEntry

_LOOP_DEVICE = re.compile(r"/dev/loop[0-9]+")


@dataclass(frozen=True, slots=True)
class GhostSwap:
    """A swap area whose backing file is out of reach; *reason* says why, in one line."""

    device: Path
    backing_file: str
    reason: str


def daemon_lives(runtime_dir: Path, name: str) -> bool:
    """Whether a process of instance *name* is there: the one test, for all who ask.

    It holds the lock. Should somebody have removed that file, it is one that the last snapshot
    names, and no later process with its number. Monitor or server, one is enough: a monitor
    starts another server, and a server goes on alone. Takes nothing, and needs no root.
    """
    with contextlib.suppress(OSError):  # not ours to open: the snapshot will do
        if instance_lock.is_held(runtime_dir / f"{name}.lock"):
            return True
    written = control.read_snapshot(runtime_dir, name)
    born = written[1].get("born") if written else None
    return isinstance(born, dict) and any(was_born(pid, tick) for pid, tick in born.items())


def was_born(pid: object, born: object) -> bool:
    """Whether the process *pid* is there and the one that was *born* then; see ``proc.birth``."""
    return isinstance(born, str) and str(pid).isdecimal() and proc.birth(int(str(pid))) == born


def refuse(config: Config) -> None:
    """Refuse to start beside an instance of the same name, or a swap area without a server."""
    name = config.name
    cure = f"run swapfs down {name} first"
    alive = daemon_lives(config.runtime_dir, name)
    for mounted in mounts.entries():
        if mounted.source == mount_source(name):
            where = f"mounted on {mounted.mountpoint}"
            if alive:
                raise OperationError(f"{name} is already {where}: {cure}")
            raise OperationError(
                f"{name} is still {where}, and no daemon in {config.runtime_dir} serves it: choose "
                f"another --name if one with another --runtime-dir does, else {cure}"
            )
    if alive:
        raise OperationError(f"a daemon of {name} is running: {cure}")
    attached = loop.find(config.swap_file)
    if attached is not None:
        raise OperationError(f"{attached.device} is left over from another {name}: {cure}")
    ghosts = ghost_swaps(dead_mounts(config.runtime_dir))
    if ghosts and not config.unsafe:
        ghost = ghosts[0]
        raise OperationError(
            f"{ghost.device} is swap but {ghost.reason}: try swapoff {ghost.device}, else reboot"
            " (--unsafe goes on beside it)"
        )


def dead_mounts(runtime_dir: Path) -> set[Path]:
    """Return where instances were mounted that left a snapshot but no daemon."""
    dead = set()
    for path in runtime_dir.glob("*.json"):
        written = control.read_snapshot(runtime_dir, path.stem)
        if written and not daemon_lives(runtime_dir, path.stem):
            dead.add(Path(str(written[1].get("mountpoint"))))
    return dead


def ghost_swaps(dead: Collection[Path] = (), root: Path = proc.ROOT) -> list[GhostSwap]:
    """Return the swap areas on loop devices that nothing serves any more.

    Their pages may be lost, and swapoff may fail on them; only a reboot is sure to help.

    :param dead: mount points that are known to be without a daemon
    """
    attached = {str(found.device): found for found in loop.devices(root)}
    mounted = mounts.entries(root)
    ghosts = []
    for entry in swap.entries(root):
        if not _LOOP_DEVICE.fullmatch(entry.path):
            continue
        below = attached.get(entry.path)
        reason = _ghost_reason(entry, below, mounted, dead, root)
        if reason:
            ghosts.append(GhostSwap(Path(entry.path), below.backing_file if below else "", reason))
    return ghosts


def _ghost_reason(
    entry: SwapEntry,
    below: LoopDevice | None,
    mounted: list[MountEntry],
    dead: Collection[Path],
    root: Path,
) -> str:
    """Say why nothing serves *entry*, in one line; never asks a FUSE server."""
    if below is None:
        return "sysfs shows nothing attached to it"
    if below.deleted:
        return f"its backing file {below.backing_file} is deleted"
    path = Path(below.backing_file)
    holders = [entry for entry in mounted if path.is_relative_to(entry.mountpoint)]
    holder = max(holders, key=lambda entry: len(entry.mountpoint.parts), default=None)
    if holder is not None and holder.mountpoint in dead:
        return f"the daemon that served {path} is gone, and with it what it held in memory"
    served = holder is not None and holder.fstype.startswith("fuse")
    if not served and not os.path.lexists(root / below.backing_file.lstrip("/")):
        return f"nothing is mounted that holds its backing file {below.backing_file}"
    return f"its device node {entry.path} is deleted" if entry.deleted else ""

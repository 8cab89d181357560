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

from swapfs.config.paths import SWAP_FILE_NAME, mount_source, swap_backings
from swapfs.errors import OperationError
from swapfs.host import instance_lock, loop, mounts, proc, swap
from swapfs.host.loop import FileId
from swapfs.server.status import Status
from swapfs.wire import state_file

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
    written = state_file.read(runtime_dir, name)
    born = written[1].get("born") if written else None
    return isinstance(born, dict) and any(was_born(pid, tick) for pid, tick in born.items())


def was_born(pid: object, born: object) -> bool:
    """Whether the process *pid* is there and the one that was *born* then; see ``proc.birth``."""
    return isinstance(born, str) and str(pid).isdecimal() and proc.birth(int(str(pid))) == born


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the last snapshot of an instance says of its mount, and whether the instance lives.

    :param device: st_dev of the mount
    :param attachments: loop devices and their sequence numbers, which no other attachment has
    :param names: of the swap files, in the order of their inodes
    """

    name: str
    alive: bool
    mountpoint: Path | None
    device: int | None
    attachments: frozenset[tuple[str, int]] = frozenset()
    names: tuple[str, ...] = (SWAP_FILE_NAME,)

    def has(self, attached: LoopDevice, mounted: list[MountEntry], root: Path = proc.ROOT) -> bool:
        """Whether *attached* stands on a swap file of it, which may not be mounted any more.

        :param mounted: what is mounted now
        """
        if (str(attached.device), attached.sequence) in self.attachments:
            return True
        if self.mountpoint is None:
            return False
        backings = swap_backings(self.mountpoint, self.device, self.names)
        backing = next((one for one in backings if loop.stands_on(attached, one, root)), None)
        if backing is None:
            return False
        if self.alive:
            return True
        # The kernel gives the number of a mount that is gone to the next one.
        source = mount_source(self.name)
        others = [entry for entry in mounted if entry.source != source]
        return attached.backing_file == str(backing.path) and not any(
            entry.device == self.device or entry.mountpoint == self.mountpoint for entry in others
        )


def remembered(runtime_dir: Path, name: str) -> Remembered:
    """Return what is remembered of instance *name*; nothing is if there is no snapshot."""
    written = state_file.read(runtime_dir, name)
    last = written[1] if written else {}
    mountpoint, handover = last.get("mountpoint"), last.get("handover")
    device = handover.get("device") if isinstance(handover, dict) else None
    exports = Status.from_dict(last).exports
    attached = [(each.loop, each.loop_sequence) for each in exports]
    if not exports:  # of another version
        attached = [(last.get("loop"), last.get("loop_sequence"))]
    return Remembered(
        name=name,
        alive=daemon_lives(runtime_dir, name),
        mountpoint=Path(mountpoint) if isinstance(mountpoint, str) else None,
        device=device if isinstance(device, int) else None,
        attachments=frozenset(
            (str(node), sequence) for node, sequence in attached if isinstance(sequence, int)
        )
        - {(str(node), 0) for node, _ in attached},
        names=tuple(each.name for each in exports) or (SWAP_FILE_NAME,),
    )


def all_remembered(runtime_dir: Path) -> list[Remembered]:
    """Return what is remembered of every instance that left a snapshot in *runtime_dir*."""
    return [remembered(runtime_dir, path.stem) for path in sorted(runtime_dir.glob("*.json"))]


def loops_of(runtime_dir: Path, name: str) -> list[LoopDevice]:
    """Return the loop devices on the swap files of *name*, mounted or not, in their order."""
    mounted, last = mounts.entries(), remembered(runtime_dir, name)
    ours = [entry for entry in mounted if entry.source == mount_source(name)]
    backings = [
        backing
        for entry in ours
        for backing in swap_backings(entry.mountpoint, entry.device, last.names)
    ]
    return [
        attached
        for attached in loop.devices()
        if any(loop.stands_on(attached, backing) for backing in backings)
        or any(loop.stands_in(attached, entry.mountpoint, entry.device) for entry in ours)
        or last.has(attached, mounted)
    ]


def refuse(config: Config) -> None:
    """Refuse to start beside an instance of the same name, or a swap area without a server.

    :raises OperationError: there is one, and how to be rid of it
    """
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
    left = loop.find_all(swap_backings(config.mountpoint, None, config.export_names))
    left = left or loops_of(config.runtime_dir, name)
    if left:
        raise OperationError(f"{left[0].device} is left over from another {name}: {cure}")
    ghosts = ghost_swaps(all_remembered(config.runtime_dir))
    if ghosts and not config.unsafe:
        ghost = ghosts[0]
        raise OperationError(
            f"{ghost.device} is swap but {ghost.reason}: try swapoff {ghost.device}, else reboot"
            " (--unsafe goes on beside it)"
        )


def ghost_swaps(known: Collection[Remembered] = (), root: Path = proc.ROOT) -> list[GhostSwap]:
    """Return the swap areas on loop devices that nothing serves any more.

    Their pages may be lost, and swapoff may fail on them; only a reboot is sure to help.

    :param known: the instances that are known, living and dead
    """
    attached = {str(found.device): found for found in loop.devices(root)}
    mounted = mounts.entries(root)
    ghosts = []
    for entry in swap.entries(root):
        if not _LOOP_DEVICE.fullmatch(entry.path):
            continue
        below = attached.get(entry.path)
        owner = next((one for one in known if below and one.has(below, mounted, root)), None)
        reason = _ghost_reason(entry, below, owner, mounted, root)
        if reason:
            ghosts.append(GhostSwap(Path(entry.path), below.backing_file if below else "", reason))
    return ghosts


def _ghost_reason(
    entry: SwapEntry,
    below: LoopDevice | None,
    owner: Remembered | None,
    mounted: list[MountEntry],
    root: Path,
) -> str:
    """Say why nothing serves *entry*, in one line; never asks a FUSE server."""
    if below is None:
        return "sysfs shows nothing attached to it"
    if below.deleted:
        return f"its backing file {below.backing_file} is deleted"
    path = Path(below.backing_file)
    if owner is not None and not owner.alive:
        return f"the daemon that served {path} is gone, and with it what it held in memory"
    if owner is None and not _is_served(below, mounted, root):
        return f"nothing is mounted that holds its backing file {path}"
    return f"its device node {entry.path} is deleted" if entry.deleted else ""


def _is_served(below: LoopDevice, mounted: list[MountEntry], root: Path) -> bool:
    """Whether the file below a loop device can be reached by its path; asks no FUSE server."""
    path = Path(below.backing_file)
    holders = [entry for entry in mounted if path.is_relative_to(entry.mountpoint)]
    holder = max(holders, key=lambda entry: len(entry.mountpoint.parts), default=None)
    if holder is not None and holder.fstype.startswith("fuse"):
        return True
    try:
        there = os.lstat(root / below.backing_file.lstrip("/"))
    except OSError:
        return False
    # Cut short by a lazy unmount, the path may be that of another file.
    found = loop.backing_id(below, root) if path.parent == Path("/") else None
    return found is None or found == FileId(there.st_dev, there.st_ino)

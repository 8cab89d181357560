"""What a monitor holds for its servers: region, lower tier, mount and lock. Make, find, let go.

Holding is all: nothing here knows when to fork, or what is in the region.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swapfs.config.backing import FileTierConfig
from swapfs.config.model import Config
from swapfs.config.paths import mount_source, swap_backing
from swapfs.config.tiers import TierConfig
from swapfs.errors import OperationError
from swapfs.host import instance_lock, loop, mounts, syscalls
from swapfs.region.layout import Region
from swapfs.region.stack_rows import ACTIVE, DRAINING, StackRow, read_rows, write_rows
from swapfs.tiers.file import FileTier
from swapfs.tiers.seal import ChecksumSeal, Seal
from swapfs.tiers.sector_tier import SectorTier
from swapfs.vlayer.stack import Level, Phase, Stack
from swapfs.wire.handover import Handover

log = logging.getLogger(__name__)


Held = tuple[StackRow, FileTier]
"""A tier, and how the region knows it."""


@dataclass(slots=True)
class Holdings:
    """What the monitor holds for the servers to come."""

    region: Region
    tiers: list[Held]
    fuse_fd: int
    lock_fd: int
    device: int | None = None
    """st_dev of the mount."""

    def stack(self) -> Stack:
        """Return the tiers below the pool, for one server, as the one before it left them."""
        phases = {
            row.number: Phase.DRAINING if row.state == DRAINING else Phase.ACTIVE
            for row in read_rows(self.region.stack)
        }
        return Stack(
            [
                Level(row.number, row.name, SectorTier(file), row.priority, phases[row.number])
                for row, file in self.tiers
            ]
        )

    def handover(self) -> Handover:
        """Return where another monitor finds it."""
        tier_fds = tuple(file.fd for _, file in self.tiers)
        return Handover(
            os.getpid(), self.region.fd, self.fuse_fd, self.lock_fd, tier_fds, self.device
        )


def lock_path(config: Config) -> Path:
    """Return the file whose lock is the life of the instance."""
    return config.runtime_dir / f"{config.name}.lock"


def lock_instance(config: Config) -> int:
    """Return a descriptor that holds the lock of the instance.

    :raises OperationError: another process holds it
    """
    fd = instance_lock.acquire(lock_path(config))
    if fd is None:
        raise OperationError(f"{config.name} is already up; take it down, or choose another --name")
    return fd


def open_tiers(config: Config, region: Region, fds: Sequence[int] | None = None) -> list[Held]:
    """Return the file tiers, and note in the region which they are.

    :param fds: of a monitor that had them open, in the order of the rows
    :raises SwapfsError: one cannot be opened, or is not the one that the region knows
    """
    described = [_row(number, tier) for number, tier in enumerate(config.all_tiers, 1)]
    if fds is None:
        write_rows(region.stack, described)
    elif [replace(row, state=ACTIVE) for row in read_rows(region.stack)] != described or (
        len(fds) != len(described)
    ):
        raise OperationError("the tiers of the running instance are not those that are described")
    return [
        (row, _open_tier(tier.file, region, fds[index] if fds is not None else None))
        for index, (row, tier) in enumerate(zip(described, config.all_tiers, strict=True))
    ]


def _row(number: int, tier: TierConfig) -> StackRow:
    file = tier.file
    place = f"{file.path}\0{file.size_bytes}\0{file.encryption}"
    digest = hashlib.sha256(place.encode(errors="surrogateescape")).digest()
    return StackRow(
        *(number, tier.kind, tier.name, tier.priority, digest),
        budget_hour_bytes=tier.budget.hour_bytes,
        budget_day_bytes=tier.budget.day_bytes,
        budget_exceeds=tier.budget_exceed,
    )


def _open_tier(file: FileTierConfig, region: Region, fd: int | None) -> FileTier:
    seal = _cipher(bytes(region.blob_key)) if file.encryption else ChecksumSeal()
    return FileTier(file.path, file.size_bytes, file.direct_io, seal=seal, fd=fd)


def _cipher(key: bytes) -> Seal:
    # Not imported above: 14 MiB of locked memory that is only here for instances that encrypt. A
    # server has it from us, by fork; it reads no library from a disk while it serves.
    from swapfs.tiers.aead import AeadSeal

    return AeadSeal(key)


def mount(config: Config) -> tuple[int, int | None]:
    """Mount the instance; return the descriptor that its requests come from, and its st_dev.

    :raises OperationError: that is not possible
    """
    mountpoint = config.mountpoint
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount(mount_source(config.name), str(mountpoint), "fuse.swapfs", flags, options)
    except OSError as error:
        what = error.filename or mountpoint  # /dev/fuse, or where it was to go
        raise OperationError(f"cannot mount {what}: {error.strerror}") from error
    mounted = mounts.at(mountpoint)
    return fd, mounted.device if mounted else None


def needed_by(config: Config, held: Holdings) -> str | None:
    """Return what would lose its pages if the mount went now, or None."""
    try:
        user = loop.find_user(swap_backing(config.mountpoint, held.device))
    except OperationError as error:
        return f"a loop device that may be there ({error})"
    return str(user.device) if user else None


def unmount(config: Config) -> None:
    """Take the mount away, if it is still there."""
    if mounts.at(config.mountpoint) is None:
        return
    try:
        syscalls.umount2(str(config.mountpoint), syscalls.MNT_DETACH)
    except OSError as error:
        log.error("umount %s: %s", config.mountpoint, error.strerror)

"""What a monitor holds for its servers: region, lower tier, mount and lock. Make, find, let go.

Holding is all: nothing here knows when to fork, or what is in the region.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from swapfs.config.current import current
from swapfs.config.model import Config
from swapfs.config.paths import mount_source, swap_backings
from swapfs.config.tiers import TierConfig
from swapfs.errors import OperationError
from swapfs.host import instance_lock, loop, mounts, syscalls
from swapfs.host.sha256 import sha256
from swapfs.region.export_rows import EVERY_TIER, ExportRow, forget_tier, read_exports
from swapfs.region.layout import Region
from swapfs.region.stack_rows import (
    ACTIVE,
    DRAINING,
    GONE,
    LEAVING,
    StackRow,
    clear_row,
    read_rows,
    write_row,
    write_rows,
)
from swapfs.server.open_tier import open_tier, take_over, tier_on
from swapfs.tiers.file import Known
from swapfs.units import PAGE_SIZE
from swapfs.vlayer.stack import Level, Phase, Stack
from swapfs.wire import handover
from swapfs.wire.handover import Handover
from swapfs.wire.link import Link

if TYPE_CHECKING:
    from swapfs.server.open_tier import Medium

log = logging.getLogger(__name__)


Held: TypeAlias = "tuple[StackRow, Medium]"
"""A tier, and how the region knew it when it came."""
_PHASES: Final = {ACTIVE: Phase.ACTIVE, DRAINING: Phase.DRAINING, LEAVING: Phase.LEAVING}


@dataclass(slots=True)
class Holdings:
    """What the monitor holds for the servers to come."""

    config: Config
    region: Region
    tiers: list[Held]
    fuse_fd: int
    lock_fd: int
    device: int | None = None
    """st_dev of the mount."""
    link: Link = field(default_factory=Link)

    def stack(self) -> Stack:
        """Return the tiers below the pool, for one server, as the one before it left them."""
        now = {row.number: row for row in read_rows(self.region.stack)}
        return Stack(
            [
                Level(
                    *(row.number, row.name, tier_on(file)),
                    now[row.number].priority,
                    _PHASES[now[row.number].state],
                )
                for row, file in self.tiers
                if now[row.number].state != GONE
            ]
        )

    def serve(self, operation: str, arguments: dict[str, Any], fd: int | None) -> Any:
        """Do what a server asks for (``wire.link``).

        :raises SwapfsError: it cannot be done
        """
        match operation:
            case "add":
                assert fd is not None
                self._add(**arguments, fd=fd)
            case "forget":
                self._forget(**arguments)
            case "open pool":
                self._open_pool(**arguments)
            case "close pool":
                self.region.close_arena(**arguments)
        return self.handover()

    def _add(self, number: int, tier: TierConfig, known: Known | None, fd: int) -> None:
        """Hold one more tier; with its row, words may name it from then on."""
        row = _row(number, tier)
        file = take_over(self.config, tier, self.region, fd, known)
        write_row(self.region.stack, row)
        self.tiers.append((row, file))
        self.tiers.sort(key=lambda held: held[0].number)
        self.config = current(self.config, self.region, tier)

    def _open_pool(self, start: int, end: int) -> None:
        """Have more of the pool locked, before anything is in it.

        :raises OperationError: the system does not give the memory
        """
        try:
            self.region.open_arena(start, end)
        except OSError as error:
            raise OperationError(f"the monitor cannot have it locked: {error.strerror}") from error

    def _forget(self, number: int) -> None:
        """Let a tier go that its server has left; that still has it open and closes it last."""
        for held in self.tiers:
            if held[0].number == number:
                self.tiers.remove(held)
                forget_tier(self.region.exports, number)
                clear_row(self.region.stack, number)
                held[1].close()
                self.config = current(self.config, self.region)
                break

    def handover(self) -> Handover:
        """Return where another monitor finds it."""
        tier_fds = tuple(file.fd for _, file in self.tiers)
        return Handover(
            os.getpid(), self.region.fd, self.fuse_fd, self.lock_fd, tier_fds, self.device
        )


def lock_path(config: Config) -> Path:
    """Return the file whose lock is the life of the instance."""
    return handover.lock_path(config.runtime_dir, config.name)


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
    if fds is None:
        described = [_row(number, tier) for number, tier in enumerate(config.all_tiers, 1)]
        write_rows(region.stack, described)
        return [
            (row, open_tier(config, tier, region))
            for row, tier in zip(described, config.all_tiers, strict=True)
        ]
    rows = read_rows(region.stack)
    if len(rows) != len(fds) or list(map(_identity, rows)) != [
        _identity(_row(row.number, tier)) for row, tier in zip(rows, config.all_tiers, strict=False)
    ]:
        raise OperationError(
            "the tiers of the running instance are not those that are described; if one was added "
            "or removed just now, try again"
        )
    return [
        (row, open_tier(config, tier, region, fd))
        for row, tier, fd in zip(rows, config.all_tiers, fds, strict=True)
    ]


def _identity(row: StackRow) -> tuple[str, str, bytes]:
    return row.kind, row.name, row.digest


def _row(number: int, tier: TierConfig) -> StackRow:
    file = tier.file
    place = f"{file.path}\0{file.size_bytes}\0{file.encryption}"
    if tier.far is not None:
        place += f"\0{tier.far.cluster}\0{tier.far.tls}"
    digest = sha256(place.encode(errors="surrogateescape"))
    return StackRow(
        *(number, tier.kind, tier.name, tier.priority, digest),
        budget_hour_bytes=tier.budget.hour_bytes,
        budget_day_bytes=tier.budget.day_bytes,
        budget_exceeds=tier.budget_exceed,
    )


def export_rows(config: Config) -> list[ExportRow]:
    """Return the rows of the swap files of an instance that begins."""
    numbers = {tier.name: number for number, tier in enumerate(config.all_tiers, 1)}
    rows, first_slot = [], 0
    for export in config.exports:
        tiers = EVERY_TIER
        if export.tiers is not None:
            tiers = sum(1 << numbers[name] for name in set(export.tiers))
        rows.append(
            ExportRow(
                *(export.name, first_slot, export.size_bytes // PAGE_SIZE),
                *(export.priority, export.quota_bytes, tiers),
            )
        )
        first_slot += export.span_bytes // PAGE_SIZE
    return rows


def require_same_exports(config: Config, region: Region) -> None:
    """Refuse to go on with swap files other than those that *region* has.

    :raises OperationError: *config* describes others
    """
    wanted = [(row.name, row.first_slot, row.slots) for row in export_rows(config)]
    if wanted != [(row.name, row.first_slot, row.slots) for row in read_exports(region.exports)]:
        raise OperationError("the exports of the running instance are not those described")


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
    backings = swap_backings(config.mountpoint, held.device, config.export_names)
    try:
        user = next(filter(None, map(loop.find_user, backings)), None)
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

"""Turning swap off, when others may do the same, and only if there is room for what comes back.

systemd, ``swapoff -a`` and another ``down`` do it too. Whoever comes second waits until the area
has left /proc/swaps. A swapoff that the OOM killer has ended is remembered, for trying again in the
same state would end others: it stays so until there is more room than there was.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swapfs.errors import OperationError
from swapfs.host import headroom, proc, swap
from swapfs.units import MiB, format_size

if TYPE_CHECKING:
    from swapfs.host.headroom import Room
    from swapfs.host.swap import SwapEntry

LOOK_AGAIN_S: Final = 1.0
"""A swapoff of somebody else's that fails is no event: so it is looked for."""
BETTER_BYTES: Final = 16 * MiB
"""So much more room there must be after a swapoff that was killed; less is chance."""
REFUSALS_MAX: Final = 600
"""After so many, a second each, it is not another swapoff of a full area that is slow to begin."""
STARVED_MAX: Final = 10
"""So many tries, a second each, may bring nothing back: who is killed for room is gone by then."""
CURES: Final = "end something, add another swap area, or go on regardless with --force"


def turn_off(device: Path, killed_note: Path, *, force: bool = False) -> bool:
    """Have swap off on *device* when this returns, whoever does it; False if it was off before.

    :param killed_note: where it is kept that the OOM killer ended a swapoff
    :param force: do not look whether there is room
    :raises OperationError: no room, or swapoff failed; swap is still on
    """
    kills, refusals, was_on = proc.oom_kills(), 0, False
    hunger = _Hunger()
    while (area := swap.find(device)) is not None:
        was_on = True
        if not swap.is_leaving(area, swap.entries()):
            if refusals and proc.oom_kills() > kills:
                raise OperationError(_after_kill(device, "another swapoff seems to have been"))
            if not force:
                _require_room(area, killed_note)
            try:
                if _swapoff(device, area, killed_note):
                    break
                refusals += 1
            except swap.NoMemory as error:
                hunger.note(device, area, error)
            if refusals > REFUSALS_MAX:
                raise OperationError(f"swapoff {device}: the kernel says it is no swap area")
        swap.wait_for_change(device, LOOK_AGAIN_S)
    killed_note.unlink(missing_ok=True)
    return was_on


class _Hunger:
    """Tries of swapoff that found no memory for a page: they are worth it while pages come back."""

    def __init__(self) -> None:
        self._least_bytes, self._tries = 0, 0

    def note(self, device: Path, area: SwapEntry, error: swap.NoMemory) -> None:
        """Count one that began with *area*.

        :raises OperationError: the last of them brought nothing back
        """
        if not self._tries or area.used_bytes < self._least_bytes:
            self._least_bytes, self._tries = area.used_bytes, 0
        self._tries += 1
        if self._tries > STARVED_MAX:
            raise OperationError(
                f"swapoff {device}: no memory for what comes back ({error}): raise the memory.max"
                " of the group that is at it (the kernel's log has its name), or end who is in it"
            ) from error


def _swapoff(device: Path, area: SwapEntry, killed_note: Path) -> bool:
    room = headroom.of_machine(area, swap.entries())
    try:
        return swap.swapoff(device)
    except swap.OomKilled as error:
        with contextlib.suppress(OSError):
            killed_note.write_text(f"{room.spare_bytes}\n")
        raise OperationError(_after_kill(device, "swapoff was")) from error


def _after_kill(device: Path, what: str) -> str:
    return (
        f"{device}: {what} ended by the kernel's OOM killer, as memory cannot hold what comes back;"
        f" nobody tries again by himself: {CURES}"
    )


def _require_room(area: SwapEntry, killed_note: Path) -> None:
    """Refuse if what is swapped does not fit, or did not when it was tried before.

    :raises OperationError: it does not; the line says how much is missing
    """
    areas = swap.entries()
    machine = headroom.of_machine(area, areas)
    if machine.spare_bytes < 0:
        raise OperationError(
            f"no room to turn swap off on {area.path}: {_figures(machine)} of memory and other "
            f"swap; {CURES}"
        )
    for group in headroom.of_groups(area, areas):
        if group.spare_bytes < 0:
            raise OperationError(
                f"no room to turn swap off on {area.path}: the kernel would kill in the cgroup "
                f"{group.group}: {_figures(group)} in it; raise its memory.max, or {CURES}"
            )
    spare_bytes = _spare_when_killed(killed_note)
    if spare_bytes is not None and machine.spare_bytes < spare_bytes + BETTER_BYTES:
        raise OperationError(
            f"the last swapoff of {area.path} was ended by the OOM killer, and there is no more "
            f"room than there was then: {CURES}"
        )


def _figures(room: Room) -> str:
    needed, free = format_size(room.needed_bytes), format_size(room.free_bytes)
    return f"{format_size(-room.spare_bytes)} is missing, as {needed} comes back and {free} is free"


def _spare_when_killed(killed_note: Path) -> int | None:
    try:
        return int(killed_note.read_text())
    except (OSError, ValueError):
        return None

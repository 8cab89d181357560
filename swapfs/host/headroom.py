"""Whether there is room for the pages that swapoff brings back.

swapoff itself does not look: it reads page by page until the OOM killer ends it or, where a cgroup
is at its limit, until that has killed in the group. What is counted here is what the kernel shows;
memory that others take meanwhile is nobody's to promise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swapfs.errors import OperationError
from swapfs.host.proc import ROOT, meminfo_bytes, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swapfs.host.swap import SwapEntry

CGROUPS: Final = "sys/fs/cgroup"
"""Where cgroup v2 is, and the hierarchies of v1, of which memory has one."""
_UNLIMITED_BYTES: Final = 1 << 62
"""cgroup v1 shows the largest number of whole pages where v2 says "max"."""


@dataclass(frozen=True, slots=True)
class Room:
    """What comes back, and what can take it: memory, and other swap areas.

    :param group: the cgroup that it is about; "" is the whole machine
    """

    needed_bytes: int
    free_bytes: int
    group: str = ""

    @property
    def spare_bytes(self) -> int:
        """What is left then; negative is missing."""
        return self.free_bytes - self.needed_bytes


def of_machine(area: SwapEntry, areas: Iterable[SwapEntry], root: Path = ROOT) -> Room:
    """Return the room of the whole machine for the pages on *area*, one of *areas*.

    :raises OperationError: /proc/meminfo cannot be read
    """
    others = [one for one in areas if one != area]
    found = meminfo_bytes("MemAvailable", "SwapCached", root=root)
    # A page in the swap cache is in memory already; whose it is is not told.
    cached = 0 if any(one.used_bytes for one in others) else found["SwapCached"]
    free_bytes = found["MemAvailable"] + _free(others)
    return Room(max(0, area.used_bytes - cached), free_bytes)


def of_groups(area: SwapEntry, areas: Iterable[SwapEntry], root: Path = ROOT) -> Iterator[Room]:
    """Yield the room of each cgroup that has a limit and pages that are swapped.

    What a group has on *area* is at least what other areas cannot hold of it. The memory
    controller is in one hierarchy, of version 2 or of version 1.
    """
    others = [one for one in areas if one != area]
    elsewhere_bytes = sum(one.used_bytes for one in others)
    top = root / CGROUPS / "memory"
    look, mark = _v1, "memory.limit_in_bytes"
    if not (top / mark).exists():
        top, look, mark = root / CGROUPS, _v2, "memory.swap.current"
    for path, _, files in os.walk(top):
        found = look(Path(path)) if mark in files else None
        back = min(area.used_bytes, found.swapped_bytes - elsewhere_bytes) if found else 0
        if found is None or back <= 0:
            continue
        free_swap = _free(others)
        if found.swap_limit_bytes is not None:
            free_swap = min(free_swap, max(0, found.swap_limit_bytes - found.swapped_bytes + back))
        left = max(0, found.limit_bytes - found.held_bytes)
        yield Room(back, left + free_swap, f"/{Path(path).relative_to(top)}")


@dataclass(frozen=True, slots=True)
class _Group:
    """A cgroup with a limit, all groups below it included.

    :param held_bytes: memory that the kernel cannot drop for pages
    :param swap_limit_bytes: of swap alone; None is none
    """

    swapped_bytes: int
    limit_bytes: int
    held_bytes: int
    swap_limit_bytes: int | None = None


def _v2(group: Path) -> _Group | None:
    """Return what cgroup v2 says of *group*; None if it has no limit, or nothing is swapped."""
    swapped, limit = _number(group, "swap.current"), _number(group, "max")
    if not swapped or limit is None:
        return None
    stat = _stat(group)
    droppable = sum(
        stat.get(name, 0) for name in ("active_file", "inactive_file", "slab_reclaimable")
    )
    held = (_number(group, "current") or 0) - droppable
    return _Group(swapped, limit, held, _number(group, "swap.max"))


def _v1(group: Path) -> _Group | None:
    """Return the same of cgroup v1, which may not account what is swapped (swapaccount=0).

    Its other limit, of memory and swap together, is the same before and after.
    """
    stat = _stat(group)
    swapped, limit = stat.get("total_swap", 0), _number(group, "limit_in_bytes")
    if not swapped or limit is None or limit >= _UNLIMITED_BYTES:
        return None
    droppable = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
    return _Group(swapped, limit, (_number(group, "usage_in_bytes") or 0) - droppable)


def _free(areas: Iterable[SwapEntry]) -> int:
    return sum(one.size_bytes - one.used_bytes for one in areas)


def _number(group: Path, name: str) -> int | None:
    """Return memory.*name* of *group*; None if there is none, or it is "max"."""
    try:
        return int(read_text(group / f"memory.{name}"))
    except (OperationError, ValueError):
        return None


def _stat(group: Path) -> dict[str, int]:
    """Return memory.stat of *group*; empty if it cannot be read."""
    try:
        lines = (line.split() for line in read_text(group / "memory.stat").splitlines())
        return {name: int(value) for name, value in lines}
    except (OperationError, ValueError):
        return {}

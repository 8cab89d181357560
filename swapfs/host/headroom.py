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
"""Where cgroup v2 is; v1 does not show what is swapped of a group beside its limit."""


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

    What a group has on *area* is at least what other areas cannot hold of it.
    """
    others = [one for one in areas if one != area]
    elsewhere_bytes = sum(one.used_bytes for one in others)
    for path, _, files in os.walk(root / CGROUPS):
        if "memory.swap.current" not in files:
            continue
        group = Path(path)
        swapped, limit = _number(group, "swap.current"), _number(group, "max")
        if not swapped or limit is None:
            continue
        back = min(area.used_bytes, swapped - elsewhere_bytes)
        if back <= 0:
            continue
        swap_limit = _number(group, "swap.max")
        free_swap = _free(others)
        if swap_limit is not None:
            free_swap = min(free_swap, max(0, swap_limit - swapped + back))
        in_memory = (_number(group, "current") or 0) - _reclaimable(group)
        name = f"/{group.relative_to(root / CGROUPS)}"
        yield Room(back, max(0, limit - in_memory) + free_swap, name)


def _free(areas: Iterable[SwapEntry]) -> int:
    return sum(one.size_bytes - one.used_bytes for one in areas)


def _number(group: Path, name: str) -> int | None:
    """Return memory.*name* of *group*; None if there is none, or it is "max"."""
    try:
        return int(read_text(group / f"memory.{name}"))
    except (OperationError, ValueError):
        return None


def _reclaimable(group: Path) -> int:
    """Return how much of the memory of *group* is files, which the kernel drops for pages."""
    try:
        lines = (line.split() for line in read_text(group / "memory.stat").splitlines())
        stat = {name: int(value) for name, value in lines}
    except (OperationError, ValueError):
        return 0
    return sum(stat.get(name, 0) for name in ("active_file", "inactive_file", "slab_reclaimable"))

"""Proactive reclaim: asking the kernel for memory of a cgroup that nobody will miss.

Every interval the pressure of the cgroup is looked at (PSI: the share of time in which some task
of it waited for memory), and if it is below the target some memory is asked for, the more the
further it is below. So a cgroup gives what it does not use to swap before memory is short.
Source: Weiner et al., "TMO: Transparent Memory Offloading in Datacenters", ASPLOS 2022, which runs
as senpai: bytes = current * ratio * max(0, 1 - pressure / target).
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.units import PAGE_SIZE

_SOME: Final = re.compile(r"^some .*\btotal=(\d+)", re.MULTILINE)
_US: Final = 1e6
_ENOUGH: Final = (errno.EAGAIN, errno.EINTR)
"""It could not get all that was asked for: there is no more to be had now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How hard it may press.

    :param psi_percent: no memory is asked for at this pressure or more
    :param ratio: share of the memory in use that one step may ask for, without any pressure
    :param step_bytes: and the most that it may ask for
    :param floor_bytes: memory that the cgroup keeps whatever its pressure
    """

    psi_percent: float = 0.1
    ratio: float = 0.0005
    step_bytes: int = 64 << 20
    floor_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One look: what was seen, what was asked for, and what it made of the memory in use."""

    pressure_percent: float
    current_bytes: int
    asked_bytes: int
    freed_bytes: int


class Cgroup:
    """The memory files of the cgroup (v2) in directory *path*.

    :raises OperationError: there is none, or the kernel has no memory.reclaim (5.19) or PSI
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("memory.current", "memory.pressure", "memory.reclaim"):
            if not (path / name).exists():
                raise OperationError(
                    f"{path / name}: it is not there: a cgroup of version 2 with memory control "
                    "has it, on a kernel from 5.19 on with PSI"
                )

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text()
        except OSError as error:
            raise OperationError(f"{self.path / name}: {error.strerror}") from error

    def current_bytes(self) -> int:
        """Return the memory in use."""
        text = self._read("memory.current")
        if not text.strip().isdecimal():
            raise OperationError(f"{self.path}/memory.current: not as the kernel writes it")
        return int(text)

    def stalled_us(self) -> int:
        """Return for how long some task has waited for memory, ever."""
        found = _SOME.search(self._read("memory.pressure"))
        if found is None:
            raise OperationError(f"{self.path}/memory.pressure: not as the kernel writes it")
        return int(found[1])

    def reclaim(self, size_bytes: int) -> None:
        """Have the kernel take *size_bytes*, or what there is; blocks.

        :raises OperationError: it may not be asked for
        """
        try:
            (self.path / "memory.reclaim").write_text(str(size_bytes))
        except OSError as error:
            if error.errno not in _ENOUGH:
                raise OperationError(f"{self.path}/memory.reclaim: {error.strerror}") from error


def wanted_bytes(bounds: Bounds, pressure_percent: float, current_bytes: int) -> int:
    """Return how much to ask for, whole pages."""
    ease = max(0.0, 1 - pressure_percent / bounds.psi_percent)
    wanted = int(current_bytes * bounds.ratio * ease)
    spare = max(0, current_bytes - bounds.floor_bytes)
    return min(wanted, bounds.step_bytes, spare) // PAGE_SIZE * PAGE_SIZE


def drive(
    cgroup: Cgroup,
    bounds: Bounds,
    wait: Callable[[float], bool],
    *,
    interval_s: float,
    seen: Callable[[Step], None] = lambda step: None,
    clock_s: Callable[[], float] = time.monotonic,
) -> int:
    """Press by *bounds*, every *interval_s*, until *wait* says True; return the bytes asked for.

    :param wait: sleeps for so many seconds, or until it is to end, and says whether it is
    :raises OperationError: the cgroup is gone, or may not be used
    """
    asked = 0
    before_us, before_s = cgroup.stalled_us(), clock_s()
    while not wait(interval_s):
        now_us, now_s = cgroup.stalled_us(), clock_s()
        passed_s = max(1e-3, now_s - before_s)
        pressure = 100 * (now_us - before_us) / _US / passed_s
        before_us, before_s = now_us, now_s
        current = cgroup.current_bytes()
        size = wanted_bytes(bounds, pressure, current)
        if size:
            cgroup.reclaim(size)
            asked += size
        freed = current - cgroup.current_bytes() if size else 0
        seen(Step(pressure, current, size, freed))
    return asked

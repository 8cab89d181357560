"""What the kernel counts, read before and after a piece of work: CPU, pages, sectors, tasks."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from deploy.vm.guest import lab

if TYPE_CHECKING:
    from types import TracebackType

DAEMON: Final = "swapfs.monitor"
"""In the command lines of the swap daemon's processes, and in no other."""
_HZ: Final = os.sysconf("SC_CLK_TCK")
_IDLE: Final = (3, 4)  # idle and iowait, of the fields of /proc/stat's first line
_VMSTAT: Final = ("pswpin", "pswpout", "zswpin", "zswpout", "pgmajfault")


@dataclass(frozen=True)
class Reading:
    """Everything at one moment."""

    seconds: float
    busy_s: float
    """CPU seconds of everybody on all CPUs: user, system and interrupts."""
    vmstat: Counter[str]
    tasks: Counter[str]
    """Ticks by `name user` and `name system`: kernel threads too, the daemon's by thread."""
    traffic: lab.Traffic


def read(device: str) -> Reading:
    """Read the counters; those of sectors from *device*."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    busy = sum(ticks for index, ticks in enumerate(fields) if index not in _IDLE)
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    vmstat = Counter({name: int(value) for name, value in lines if name in _VMSTAT})
    return Reading(time.monotonic(), busy / _HZ, vmstat, _tasks(), lab.traffic(device))


def _tasks() -> Counter[str]:
    found: Counter[str] = Counter()
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            daemon = DAEMON.encode() in (folder / "cmdline").read_bytes()
            stats = sorted(folder.glob("task/*/stat")) if daemon else [folder / "stat"]
            texts = [stat.read_text() for stat in stats]
        except OSError:  # it has ended
            continue
        for number, text in enumerate(texts):
            name = text[text.index("(") + 1 : text.rindex(")")].split("/")[0]
            if daemon:
                name = f"daemon {folder.name}, thread {number},"
            fields = text[text.rindex(")") + 2 :].split()
            found[f"{name} user"] += int(fields[11])
            found[f"{name} system"] += int(fields[12])
    return found


class Span:
    """What the counters rose by within `with`; tasks that ended meanwhile are not in it."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> Self:
        self._before = read(self._device)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        after, before = read(self._device), self._before
        self.seconds = after.seconds - before.seconds
        self.busy_s = after.busy_s - before.busy_s
        self.vmstat = after.vmstat - before.vmstat
        self.traffic = after.traffic - before.traffic
        ticks = after.tasks - before.tasks
        self.tasks = {name: round(n / _HZ, 2) for name, n in ticks.most_common() if n > 0}

    def daemon(self, kind: str) -> float:
        """Return the CPU seconds of the swap daemon; *kind* is "user" or "system"."""
        return sum(
            used
            for name, used in self.tasks.items()
            if name.startswith("daemon") and name.endswith(kind)
        )

"""What the kernel counted for another process: processor time by thread, bytes written."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def cpu_seconds(pid: int) -> dict[int, float]:
    """Return the processor time that each thread of *pid* has used so far."""
    used = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended after it was listed
            used[int(task.name)] = _seconds(task)
    return used


def busiest(pid: int, work: Callable[[], object]) -> int:
    """Return the thread of *pid* that used most processor time while *work* ran.

    Threads of a Python 3.11 process all have the same name, so one is known by what it does.
    """
    before = cpu_seconds(pid)
    work()
    after = cpu_seconds(pid)
    grown = {tid: used - before.get(tid, 0.0) for tid, used in after.items()}
    found = max(grown, key=lambda tid: grown[tid])
    if grown[found] < sum(grown.values()) * 0.6:
        raise RuntimeError(f"process {pid}: no thread stands out among {grown}")
    return found


def written_bytes(pid: int) -> int:
    """Return the bytes that *pid* has handed to the block layer so far."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes: "):
            return int(line.split()[1])
    raise RuntimeError("this kernel does not count a process's disk writes")


def _seconds(task: Path) -> float:
    """Nanoseconds from schedstat where the kernel has it, else ticks of 10 ms."""
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""What demotion has cost by the kernel's count: bytes and writes of the disk, CPU of a thread.

What reached the disk is not what swapfs says it wrote: for a file it is ``write_bytes`` of the
server in /proc/PID/io (what it handed to the block layer), for a block device its own ``stat``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from swapfs.units import SECTOR_SIZE
from tests.bench import subjects, threads

LOOK_EVERY_S: Final = 0.001
"""How often a block device's counters are read."""


@dataclass(frozen=True)
class Subject:
    """An instance with a file tier, and where its disk writes are counted."""

    name: str
    mounted: subjects.Mounted
    device: Path
    """The loop device on the swap file."""
    pid: int
    demoter: int
    """The thread of the server that demotes."""
    disk: Path | None
    """The block device that is the tier; None: the tier is a file."""


@dataclass(frozen=True)
class Reading:
    """Everything that is counted, at one moment."""

    at_s: float
    counters: dict[str, int]
    disk_bytes: int
    disk_writes: int
    """Of a block device; 0 for a file, where only bytes are counted."""
    demoter_s: float
    server_s: float

    @classmethod
    def of(cls, subject: Subject) -> Reading:
        """Read everything now."""
        used = threads.cpu_seconds(subject.pid)
        writes, written = (
            (0, threads.written_bytes(subject.pid))
            if subject.disk is None
            else device_writes(subject.disk)
        )
        return cls(
            time.monotonic(),
            subject.mounted.status()["counters"],
            written,
            writes,
            used[subject.demoter],
            sum(used.values()),
        )


@dataclass(frozen=True)
class Change:
    """What happened between two readings."""

    before: Reading
    after: Reading

    def count(self, *counters: str) -> int:
        """Return how much these counters rose, together."""
        return sum(self.after.counters[c] - self.before.counters[c] for c in counters)

    @property
    def seconds(self) -> float:
        """The time between."""
        return self.after.at_s - self.before.at_s

    @property
    def disk_bytes(self) -> int:
        """Bytes that reached the disk."""
        return self.after.disk_bytes - self.before.disk_bytes

    @property
    def disk_writes(self) -> int:
        """Requests that carried them, where they are counted."""
        return self.after.disk_writes - self.before.disk_writes

    @property
    def demoter_s(self) -> float:
        """Processor time of the demoting thread."""
        return self.after.demoter_s - self.before.demoter_s

    @property
    def server_s(self) -> float:
        """Processor time of the whole server."""
        return self.after.server_s - self.before.server_s


def device_writes(device: Path) -> tuple[int, int]:
    """Return the writes that a block device has completed, and their bytes."""
    fields = Path("/sys/block", device.name, "stat").read_text().split()
    return int(fields[4]), int(fields[6]) * SECTOR_SIZE


@dataclass
class _Watcher:
    """Reads a device's counters so often that it sees most writes one by one."""

    device: Path
    sizes: list[int] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        writes, written = device_writes(self.device)
        while not self.stop.wait(LOOK_EVERY_S):
            writes_now, written_now = device_writes(self.device)
            if count := writes_now - writes:
                self.sizes += [(written_now - written) // count] * count
            writes, written = writes_now, written_now


@contextmanager
def write_sizes(device: Path | None) -> Iterator[list[int]]:
    """Give a list that fills with the sizes of the writes to *device*."""
    if device is None:
        yield []
        return
    watcher = _Watcher(device)
    thread = threading.Thread(target=watcher.run)
    thread.start()
    try:
        yield watcher.sizes
    finally:
        watcher.stop.set()
        thread.join()

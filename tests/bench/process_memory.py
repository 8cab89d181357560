"""What a process holds in memory, as the kernel counts it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes that a process holds, or several together."""

    rss_bytes: int
    """Everything that it has mapped and that is present."""
    anonymous_bytes: int
    """Heap and stacks. A page that n processes share counts 1/n in each (PSS)."""
    shared_bytes: int
    """Shared memory, counted in the same way: for swapfs, its region and its buffers."""
    file_bytes: int
    """Programs and libraries, whoever else has them mapped."""
    page_table_bytes: int

    @property
    def total_bytes(self) -> int:
        """What the machine would gain if the process ended and nobody else used its files."""
        return self.anonymous_bytes + self.shared_bytes + self.file_bytes + self.page_table_bytes


def together(one: ProcessMemory, other: ProcessMemory) -> ProcessMemory:
    """Add up two processes of one program: its files count once."""
    # PSS of files would be simpler, but it falls with every Python that happens to run.
    return ProcessMemory(
        one.rss_bytes + other.rss_bytes,
        one.anonymous_bytes + other.anonymous_bytes,
        one.shared_bytes + other.shared_bytes,
        max(one.file_bytes, other.file_bytes),
        one.page_table_bytes + other.page_table_bytes,
    )


def memory_of(pid: int) -> ProcessMemory:
    """Return what process *pid* holds; needs the right to read its smaps."""
    process = Path(f"/proc/{pid}")
    shares, status = _values(process / "smaps_rollup"), _values(process / "status")
    return ProcessMemory(
        rss_bytes=shares["Rss"],
        anonymous_bytes=shares["Pss_Anon"],
        shared_bytes=shares["Pss_Shmem"],
        file_bytes=status["RssFile"],
        page_table_bytes=status["VmPTE"],
    )


def locked_bytes(pid: int) -> int:
    """Return what process *pid* has locked (VmLck): address space, whether present or not."""
    return _values(Path(f"/proc/{pid}/status"))["VmLck"]


def meminfo(name: str) -> int:
    """Return a value of /proc/meminfo in bytes."""
    return _values(Path("/proc/meminfo"))[name]


def _values(file: Path) -> dict[str, int]:
    found = re.findall(r"^(\w+):\s+(\d+) kB$", file.read_text(), re.MULTILINE)
    return {name: int(kib) << 10 for name, kib in found}

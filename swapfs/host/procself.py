"""What procfs says of this very process: threads, their flags, locked memory, heap.

Reads only, holds nothing open. Sizes are bytes, whatever unit the file has. Source:
Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class ProcSelf:
    """The files of ``/proc/self`` that the guards need.

    :param proc: where procfs is; tests pass a directory of their own
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._root = proc / "self"

    @property
    def oom_score_path(self) -> Path:
        """Where the OOM score adjustment is read and written."""
        return self._root / "oom_score_adj"

    def thread_ids(self) -> list[int]:
        """Return the kernel's ids of every thread; any of them may end at any time."""
        return sorted(int(entry.name) for entry in (self._root / "task").iterdir())

    def thread_flags(self) -> Iterator[tuple[int, int]]:
        """Yield each thread's id and PF_* flags (``stat`` field 9)."""
        for tid in self.thread_ids():
            try:
                text = (self._root / "task" / str(tid) / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended after it was listed
            # field 2, the name, may hold spaces and parentheses: count from its last ")"
            yield tid, int(text.rpartition(")")[2].split()[6])

    def status_bytes(self) -> dict[str, int]:
        """Return the sizes in ``status`` (VmLck, VmSwap, VmRSS, ...) in bytes."""
        sizes: dict[str, int] = {}
        for line in (self._root / "status").read_text().splitlines():
            key, _, value = line.partition(":")
            if value.endswith(" kB"):
                sizes[key] = int(value.split()[0]) * 1024
        return sizes

    def heap_bytes(self) -> int:
        """Return the size of the brk heap, all its mappings together."""
        total = 0
        with (self._root / "maps").open() as maps:
            for line in maps:
                if line.rstrip().endswith("[heap]"):
                    start, _, end = line.partition(" ")[0].partition("-")
                    total += int(end, 16) - int(start, 16)
        return total

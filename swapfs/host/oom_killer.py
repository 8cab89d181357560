"""Calling the kernel's OOM killer, and what tells whether memory is short; for when nothing moves.

All files are opened before, and read again through the same descriptors: to open one takes memory
that a machine which stands still has not got.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.host.guards import Guard
from swapfs.host.proc import ROOT

_KILL: Final = b"f"
"""moom_callback of drivers/tty/sysrq.c. Root may, whatever kernel.sysrq says."""
_SHORT_SHARE: Final = 32
"""With less than 1/32 of memory available it is short. MemAvailable is what can be had without
swap and above all watermarks; it was 0 where swap stood still."""
_SHORT_KIB_MAX: Final = 256 << 10
"""But never with more than this: what is left above the watermarks when nothing moves is next to
nothing, on a large machine too."""
_MEMINFO_BYTES: Final = 512
"""The lines that are looked at are the first three."""
_SWAPS_BYTES: Final = 8192
"""There may be 32 areas (MAX_SWAPFILES), a line each."""


class OomKiller(Guard):
    """The kernel's OOM killer can be called (``call``); set it before any request is served.

    Not required: where it cannot, swap that stands still waits for an administrator.
    """

    name = "oom_killer"
    cure = "run as root where /proc/sys and /proc/sysrq-trigger may be written to"
    required = False

    def __init__(self, root: Path = ROOT) -> None:
        self._path = root / "proc/sysrq-trigger"
        self._fd: int | None = None

    def set(self) -> None:  # noqa: D102
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)

    def check(self) -> tuple[bool, str]:  # noqa: D102
        if self._fd is None:
            return False, f"{self._path} cannot be written to"
        return True, f"{self._path} is open"

    def call(self) -> None:
        """Have the kernel end the process that the OOM killer would choose.

        :raises OSError: it cannot be called
        """
        if self._fd is None:
            raise OSError(f"{self._path} is not open")
        os.write(self._fd, _KILL)


class Memory:
    """Whether the machine's memory is short, at any moment.

    :raises OperationError: /proc/meminfo cannot be read
    """

    def __init__(self, root: Path = ROOT) -> None:
        path = root / "proc/meminfo"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.is_short()
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise OperationError(f"{path}: cannot be read: {error}") from error

    def is_short(self) -> bool:
        """Whether next to nothing is available."""
        lines = os.pread(self._fd, _MEMINFO_BYTES, 0).split(b"\n")[:3]
        parts = (line.partition(b":") for line in lines)
        found = {name: int(rest.split()[0]) for name, _, rest in parts}
        short_kib = min(found[b"MemTotal"] // _SHORT_SHARE, _SHORT_KIB_MAX)
        return found[b"MemAvailable"] < short_kib


class Swaps:
    """The kernel's swap areas, at any moment.

    :raises OperationError: /proc/swaps cannot be read
    """

    def __init__(self, root: Path = ROOT) -> None:
        path = root / "proc/swaps"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OperationError(f"{path}: {error.strerror}") from error

    def have_room(self, *, but: Collection[Path]) -> bool:
        """Whether any of them has a free page, *but* those on devices of these paths."""
        names = set(map(bytes, but))
        for line in os.pread(self._fd, _SWAPS_BYTES, 0).splitlines()[1:]:
            path, _kind, size, used, *_ = line.split()
            if path not in names and int(size) > int(used):
                return True
        return False


class HandedDown:
    """How many requests block device *device* has handed to its driver and not got back.

    :raises OSError: there is no such device
    """

    def __init__(self, device: Path, root: Path = ROOT) -> None:
        self.device = device
        path = root / "sys/block" / device.name / "inflight"
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def count(self) -> int:
        """Return how many there are now.

        :raises OSError: the device is gone
        """
        return sum(int(word) for word in os.pread(self._fd, 64, 0).split())

    def close(self) -> None:
        """Let go of the device."""
        os.close(self._fd)

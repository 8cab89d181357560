"""Swap areas: those that the kernel uses, making one, and turning it on and off.

What swapoff looks like from outside (mm/swapfile.c, 6.1 to 6.18): SWP_WRITEOK goes first, and from
then on every other swapoff of the area gets EINVAL, as if it were none. Its line in /proc/swaps
stays until the last page is back, and vanishes then; or swapoff fails, and all is as before. Only
the first is an event for poll(2). SwapTotal meanwhile counts of the area what is in use alone.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.host.proc import DELETED, ROOT, meminfo_bytes, oom_kills, read_text, unescape
from swapfs.host.run import ToolError, run
from swapfs.units import KiB

LABEL_BYTES_MAX: Final = 15
"""Longest label that mkswap stores whole (16 bytes with the terminating zero)."""
LABEL_PREFIX: Final = "swapfs:"
"""What the labels of all our areas begin with: udev rules and people know them by it."""


class OomKilled(OperationError):
    """A swapoff was ended by the OOM killer, which takes that process first; swap is on again."""


class NoMemory(OperationError):
    """A swapoff ended as a page had no memory to come back to; swap is on again, with less used.

    So it is where the cgroup of its owner is at its limit and all in it that could be killed were.
    """


@dataclass(frozen=True, slots=True)
class SwapEntry:
    """One line of /proc/swaps. *used_bytes* and *size_bytes* are what the kernel counts."""

    path: str
    kind: str
    size_bytes: int
    used_bytes: int
    priority: int
    deleted: bool


def entries(root: Path = ROOT) -> list[SwapEntry]:
    """Return the active swap areas; an empty list when the kernel has no swap support.

    :raises OperationError: they cannot be seen
    """
    try:
        lines = read_text(root / "proc/swaps").splitlines()[1:]
    except OperationError as error:
        if isinstance(error.__cause__, FileNotFoundError) and (root / "proc/self").is_dir():
            return []
        raise
    found = []
    for line in lines:
        path, kind, size_kib, used_kib, priority = line.split()[:5]
        path = unescape(path)
        found.append(
            SwapEntry(
                path=path.removesuffix(DELETED),
                kind=kind,
                size_bytes=int(size_kib) * KiB,
                used_bytes=int(used_kib) * KiB,
                priority=int(priority),
                deleted=path.endswith(DELETED),
            )
        )
    return found


def find(device: Path, root: Path = ROOT) -> SwapEntry | None:
    """Return the active swap area on *device*, or None."""
    return next((entry for entry in entries(root) if entry.path == str(device)), None)


def is_leaving(area: SwapEntry, areas: Iterable[SwapEntry], root: Path = ROOT) -> bool:
    """Whether somebody's swapoff of *area* seems to be under way.

    While another area is turned off it may be a yes in error; a no may be one if *area* is full,
    or changes at this moment.

    :param areas: all of them, *area* too, as they were just read
    :raises OperationError: /proc/meminfo cannot be read
    """
    listed = sum(one.size_bytes for one in areas)
    missing = listed - meminfo_bytes("SwapTotal", root=root)["SwapTotal"]
    return missing > 0 and missing >= area.size_bytes - area.used_bytes


def wait_for_change(device: Path, wait_s: float, root: Path = ROOT) -> None:
    """Wait until *device* is no swap area, another one comes or goes, or *wait_s* are over."""
    fd = os.open(root / "proc/swaps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Looked at with the file open: what happens from now on ends the wait.
        if find(device, root) is None:
            return
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        poll.poll(wait_s * 1000)
    finally:
        os.close(fd)


def mkswap(device: Path, name: str) -> None:
    """Write a swap header to *device*, labelled with *name*, cut to what the header holds.

    Without a UUID: nothing can ask for the area at the next boot, which will not find it.
    """
    label = f"{LABEL_PREFIX}{name}"[:LABEL_BYTES_MAX]
    run("mkswap", "-U", "clear", "-L", label, device)


def swapon(device: Path, priority: int, discard: bool = True) -> None:
    """Make the kernel swap on *device*; discard tells us of freed slots."""
    options = ["--discard"] if discard else []
    run("swapon", *options, "-p", str(priority), device)


def swapoff(device: Path, root: Path = ROOT) -> bool:
    """Stop swapping on *device*; return False if another swapoff is at it, or was faster.

    Takes as long as reading every page back; never cut short.

    :raises OomKilled: there was no memory for what came back
    :raises NoMemory: the same, for the page of a group at its limit
    :raises OperationError: it failed otherwise
    """
    killed_before = oom_kills(root)
    try:
        run("swapoff", device)
    except ToolError as error:
        # The kernel's EINVAL, and C is the locale: run.py.
        if error.status > 0 and error.said.endswith(os.strerror(errno.EINVAL)):
            return False
        if error.status == -signal.SIGKILL and oom_kills(root) > killed_before:
            raise OomKilled(f"swapoff {device}: ended by the kernel's OOM killer") from error
        if error.said.endswith(os.strerror(errno.ENOMEM)):
            raise NoMemory(str(error)) from error
        raise
    return True

"""Swap areas: those that the kernel uses, making one, and turning it on and off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.host.proc import DELETED, ROOT, read_text, unescape
from swapfs.host.run import run
from swapfs.units import KiB

LABEL_BYTES_MAX: Final = 15
"""Longest label that mkswap stores whole (16 bytes with the terminating zero)."""


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


def mkswap(device: Path, label: str) -> None:
    """Write a swap header to *device*; *label* is cut to what the header holds."""
    run("mkswap", "-L", label[:LABEL_BYTES_MAX], device)


def swapon(device: Path, priority: int, discard: bool = True) -> None:
    """Make the kernel swap on *device*; discard tells us of freed slots."""
    options = ["--discard"] if discard else []
    run("swapon", *options, "-p", str(priority), device)


def swapoff(device: Path) -> None:
    """Stop swapping on *device*. Takes as long as reading every page back; never cut short."""
    run("swapoff", device)

"""What procfs says of the machine and of a process, and how its text is read.

Functions take *root*, the directory that holds ``proc`` and ``sys``, so that tests can give
them a tree of their own.
"""

from __future__ import annotations

import functools
import re
import select
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.units import KiB

ROOT: Final = Path("/")
DELETED: Final = " (deleted)"
"""What the kernel appends to the path of a file that has no name any more (fs/d_path.c)."""

_OCTAL = re.compile(r"\\([0-7]{3})")


def unescape(text: str) -> str:
    r"""Return *text* with the kernel's octal escapes undone (``\040`` is a space)."""
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)


def memory_total_bytes(root: Path = ROOT) -> int:
    """Return MemTotal of /proc/meminfo in bytes.

    :raises OperationError: /proc/meminfo is missing or has no MemTotal
    """
    return meminfo_bytes("MemTotal", root=root)["MemTotal"]


def meminfo_bytes(*names: str, root: Path = ROOT) -> dict[str, int]:
    """Return the lines *names* of /proc/meminfo, read at one moment, in bytes.

    :raises OperationError: /proc/meminfo is missing or lacks one
    """
    lines = (line.partition(":") for line in read_text(root / "proc/meminfo").splitlines())
    found = {name: int(rest.split()[0]) * KiB for name, _, rest in lines if name in names}
    for name in names:
        if name not in found:
            raise OperationError(f"/proc/meminfo has no {name}")
    return found


def oom_kills(root: Path = ROOT) -> int:
    """Return how many processes the kernel's OOM killer has ended since the boot; 0 if unknown."""
    try:
        lines = (line.split() for line in read_text(root / "proc/vmstat").splitlines())
        return next((int(value) for name, value in lines if name == "oom_kill"), 0)
    except (OperationError, ValueError):
        return 0


def has_ended(pidfd: int, wait_s: float) -> bool:
    """Whether the process of *pidfd* has ended, or does within *wait_s*."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


@functools.cache
def boot() -> str | None:
    """Return what tells this boot from every other; None where procfs does not say."""
    try:
        return read_text(ROOT / "proc/sys/kernel/random/boot_id").strip()
    except OperationError:
        return None


def birth(pid: int, root: Path = ROOT) -> str | None:
    """Return what tells the process *pid* from every other that had or will have its number.

    The boot and the clock tick at which it started; None when there is none, or only a zombie.
    Needs no root, unless procfs is mounted with hidepid.
    """
    try:
        boot = read_text(root / "proc/sys/kernel/random/boot_id").strip()
        # fields 3 and 22; field 2, the name, may hold spaces and parentheses
        fields = read_text(root / f"proc/{pid}/stat").rpartition(")")[2].split()
    except OperationError:
        return None
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def births(*pids: int) -> dict[str, str]:
    """Return :func:`birth` of each of *pids* that lives, by its number, as JSON has it."""
    found = {str(pid): birth(pid) for pid in pids}
    return {pid: born for pid, born in found.items() if born is not None}


def read_text(path: Path) -> str:
    """Return what *path* holds.

    :raises OperationError: it cannot be read
    """
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OperationError(f"{path}: {error.strerror}") from error

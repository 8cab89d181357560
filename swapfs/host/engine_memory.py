"""Whether the memory of a process of this machine may be swapped out."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from swapfs.host import proc


def peer_of(path: Path, timeout_s: float) -> int:
    """Return the pid of who listens at the unix socket *path*, as it was when it began to.

    :raises OSError: nobody does
    """
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(timeout_s)
        asking.connect(str(path))
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def is_kept_out_of_swap(pid: int, root: Path = proc.ROOT) -> bool:
    """Whether a cgroup (v2) of process *pid* forbids it swap: ``memory.swap.max`` is 0."""
    try:
        lines = (root / "proc" / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        if line.startswith("0::"):
            return any(_forbids(group, root) for group in _up(line[3:], root))
    return False


def _up(name: str, root: Path) -> list[Path]:
    mounted = root / "sys/fs/cgroup"
    group = mounted / name.lstrip("/")
    return [group, *(each for each in group.parents if mounted in each.parents)]


def _forbids(group: Path, root: Path) -> bool:
    try:
        return (group / "memory.swap.max").read_text().strip() == "0"
    except OSError:
        return False

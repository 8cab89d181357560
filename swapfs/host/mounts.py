"""What is mounted where, as mountinfo says: no path inside a mount is touched.

So a server that hangs cannot hang who asks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from swapfs.host.proc import ROOT, read_text, unescape
from swapfs.host.run import run


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo, as far as swapfs needs it."""

    mountpoint: Path
    fstype: str
    source: str
    device: int
    """Its st_dev. os.stat would ask the file system, which may be the caller."""


def entries(root: Path = ROOT) -> list[MountEntry]:
    """Return the mounts of this process's mount namespace, oldest first."""
    found = []
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        # The optional fields before "-" vary in number (Documentation/filesystems/proc.rst 3.5).
        dash = fields.index("-", 6)
        fstype, source = fields[dash + 1], fields[dash + 2]
        major, _, minor = fields[2].partition(":")
        found.append(
            MountEntry(
                mountpoint=Path(unescape(fields[4])),
                fstype=unescape(fstype),
                source=unescape(source),
                device=os.makedev(int(major), int(minor)),
            )
        )
    return found


def at(mountpoint: Path, root: Path = ROOT) -> MountEntry | None:
    """Return the topmost mount on exactly *mountpoint*, or None."""
    found = [entry for entry in entries(root) if entry.mountpoint == mountpoint]
    return found[-1] if found else None


def umount(path: Path) -> None:
    """Unmount *path*; never lazily, which would leave a server that nobody can find."""
    run("umount", path)

"""What kind of file system a place is on: whether a backing file there can be relied on.

Asked of the kernel (statfs f_type) and not of mountinfo, whose paths may be those of another
mount namespace. Source: include/uapi/linux/magic.h, and fs/*/ for those that are not in it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from swapfs.host import syscalls

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_NOCOW_FL: Final = 0x00800000
"""Blocks are overwritten in place, and not compressed; include/uapi/linux/fs.h, chattr +C."""


class Kind(Enum):
    """What matters to a file that swap stands on."""

    PLAIN = "plain"
    """Allocated space is kept for the file; so it is taken to be on what is not known here."""
    MEMORY = "memory"
    """In memory: what is demoted there frees nothing, and may be swapped out to us."""
    REMOTE = "remote"
    """Another program or machine serves it, and may need memory to take a page."""
    OVERLAY = "overlay"
    """On a file system that cannot be seen from here."""
    COPYING = "copying"
    """Writes each block to a new place, so allocated space is no reservation."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The type of a file system, and what kind that is."""

    name: str
    kind: Kind


BTRFS: Final = FileSystem("btrfs", Kind.COPYING)
_KNOWN: Final = {
    0x01021994: FileSystem("tmpfs", Kind.MEMORY),  # devtmpfs has this number too
    0x858458F6: FileSystem("ramfs", Kind.MEMORY),
    0x958458F6: FileSystem("hugetlbfs", Kind.MEMORY),
    0x00006969: FileSystem("nfs", Kind.REMOTE),
    0xFF534D42: FileSystem("cifs", Kind.REMOTE),
    0xFE534D42: FileSystem("smb2", Kind.REMOTE),
    0x0000517B: FileSystem("smbfs", Kind.REMOTE),
    0x01021997: FileSystem("9p", Kind.REMOTE),
    0x00C36400: FileSystem("ceph", Kind.REMOTE),
    0x5346414F: FileSystem("afs", Kind.REMOTE),
    0x6B414653: FileSystem("afs", Kind.REMOTE),
    0x73757245: FileSystem("coda", Kind.REMOTE),
    0x65735546: FileSystem("fuse", Kind.REMOTE),  # virtiofs has this number too
    0x786F4256: FileSystem("vboxsf", Kind.REMOTE),
    0x794C7630: FileSystem("overlay", Kind.OVERLAY),
    0x9123683E: BTRFS,
    0xCA451A4E: FileSystem("bcachefs", Kind.COPYING),
    0x2FC12FC1: FileSystem("zfs", Kind.COPYING),
    0x00003434: FileSystem("nilfs2", Kind.COPYING),
}


def of(place: Path | int) -> FileSystem:
    """Return what the file or directory *place* is on; a descriptor will do.

    :raises OSError: it is not there, or may not be reached
    """
    if isinstance(place, int):
        number = syscalls.file_system_type(place)
    else:
        fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            number = syscalls.file_system_type(fd)
        finally:
            os.close(fd)
    return _KNOWN.get(number) or FileSystem(f"a file system of type {number:#x}", Kind.PLAIN)


def overwrites(fd: int) -> bool:
    """Whether the blocks of the file *fd*, on a file system that copies, are yet written in place.

    Only btrfs keeps to it; others have the flag at the most.
    """
    return of(fd) == BTRFS and bool(_flags(fd) & FS_NOCOW_FL)


def make_overwrite(fd: int) -> bool:
    """Have the blocks of the *empty* file *fd* written in place; whether they are, read back."""
    flags = _flags(fd)
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("q", flags | FS_NOCOW_FL))
    except OSError:
        return False
    return overwrites(fd)


def _flags(fd: int) -> int:
    """Return the inode flags of *fd*; 0 where the file system has none."""
    try:
        answer = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    except OSError:
        return 0
    return int(struct.unpack("i4x", answer)[0])

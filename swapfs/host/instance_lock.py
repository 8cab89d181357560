"""The lock file of an instance: who holds it, asked without taking it.

Two record locks of one byte each, fcntl(2). The instance's own belongs to the *open file* (an
OFD lock): monitor and servers share it by fork, a later monitor by pidfd_getfd(2), and it ends
with the last of them, whatever their pids were. The other keeps a second upgrade out; it belongs
to the process, so asking for its holder gives a pid.

Record locks and not flock(2): a flock can only be tried, so whoever asked held it for a moment,
and a daemon that started just then took itself for the second. Record locks of both kinds
conflict with each other, hence a byte for each.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

INSTANCE_BYTE: Final = 0
UPGRADE_BYTE: Final = 1
_FLOCK: Final = "hhqqi0q"
"""struct flock: l_type, l_whence, l_start, l_len, l_pid; include/uapi/asm-generic/fcntl.h."""


def acquire(path: Path) -> int | None:
    """Take the lock of the instance; return the descriptor that holds it, close-on-exec.

    None: somebody else has it. It is held until the last copy of the descriptor is closed.

    :raises OSError: the file cannot be made
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _record(INSTANCE_BYTE))
    except (BlockingIOError, PermissionError):  # fcntl(2): EAGAIN or EACCES
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def acquire_upgrade(fd: int) -> bool:
    """Take the lock of an upgrade for this process, on *fd* of the lock file; whether it could.

    It ends with the process, or when that closes any descriptor of the file.
    """
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, UPGRADE_BYTE)
    except OSError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether an instance holds the lock file at *path*. Takes nothing, and needs no root.

    :raises OSError: the file is there and cannot be opened
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return _holder(fd, INSTANCE_BYTE) is not None
    finally:
        os.close(fd)


def upgrader(fd: int) -> int | None:
    """Return the pid of the process that holds the lock of an upgrade, or None.

    0 is one of another pid namespace.

    :param fd: of the lock file
    """
    return _holder(fd, UPGRADE_BYTE)


def _holder(fd: int, byte: int) -> int | None:
    """Return the pid of what locks *byte*: -1 for an OFD lock, which has none; None if nothing."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _record(byte))
    kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
    return None if kind == fcntl.F_UNLCK else pid


def _record(byte: int) -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)

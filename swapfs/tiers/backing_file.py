"""Opening the place of a file tier: a file, made and allocated, or a block device.

What is there already is never harmed before it was looked at, and what is not there is made only
where it will last: a device that is missing is not replaced by a file of its name.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path
from typing import Final

from swapfs.errors import ConfigError, OperationError
from swapfs.host import filesystems
from swapfs.host.filesystems import Kind
from swapfs.tiers.blob import MAGIC
from swapfs.units import PAGE_SIZE, SECTOR_SIZE, KiB

_PAGE_SECTORS: Final = PAGE_SIZE // SECTOR_SIZE
_LOOKED_AT_BYTES: Final = 128 * KiB  # the superblocks of btrfs (64K) and ISO 9660 (32K) are in it
_DEVICES: Final = Path("/dev")
_CAUTIONS: Final = {
    Kind.MEMORY: "{path} is in memory ({name}): what is demoted there frees nothing",
    Kind.REMOTE: "{path} is on {name}: who serves that may need memory to take a page, and wait "
    "for ever",
    Kind.OVERLAY: "{path} is on overlay: what lies below it cannot be seen, nor whether the "
    "space allocated there is kept",
    Kind.COPYING: "{path} is on {name}, which writes each block to a new place, so that its space "
    "is not reserved: once that file system is full, writes fail until there is room again",
}


def open_backing(path: Path, size_bytes: int, direct_io: str) -> tuple[int, bool]:
    """Open *path* for a file tier; return (descriptor, whether direct I/O is on).

    A file is made (0600) or grown to *size_bytes* with its space allocated; a block device
    must be that large already. On failure nothing that was not there before is left.

    :param direct_io: ``auto``, ``on`` (fail without it) or ``off``
    :raises ConfigError: holds other data, too small, or not a file or block device
    :raises OperationError: the system refused to open or allocate it
    """
    existed = path.exists()
    flags = os.O_RDWR | os.O_CLOEXEC | _flags_for(path, existed)
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise OperationError(f"cannot open backing file {path}: {error.strerror}") from error
    try:
        _lock(fd, path)
        _require_ours(fd, path)
        _allocate(fd, path, size_bytes)
        direct = direct_io != "off" and _set_direct(fd)
        if direct_io == "on" and not direct:
            raise OperationError(f"{path}: no direct I/O here; use file-direct-io = 'auto'")
    except BaseException as error:
        os.close(fd)
        if not existed:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OperationError(f"cannot use backing file {path}: {error.strerror}") from error
        raise
    return fd, direct


def look(path: Path, size_bytes: int) -> None:
    """Check that ``open_backing`` would take what is at *path*; change nothing, take no lock.

    Whether it is in use is not asked, and a place that the caller may not read not looked into.

    :raises ConfigError: as ``open_backing``
    :raises OperationError: it cannot be read
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        return
    except OSError as error:
        raise OperationError(f"cannot open backing file {path}: {error.strerror}") from error
    try:
        _require_ours(fd, path)
        _require_size(fd, path, size_bytes)
    finally:
        os.close(fd)


def cautions(fd: int, path: Path) -> tuple[str, ...]:
    """Say what may go wrong because of where the backing file *fd* is; nothing for most."""
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return ()
    there = filesystems.of(fd)
    if there.kind not in _CAUTIONS or filesystems.overwrites(fd):
        return ()
    return (_CAUTIONS[there.kind].format(path=path, name=there.name),)


def _flags_for(path: Path, existed: bool) -> int:
    """Return the flags of open(2) that suit what *path* is.

    :raises ConfigError: it is a device that is not there
    """
    # O_EXCL on a block device: refuse one that is mounted or otherwise in use. Its lasting
    # names (/dev/disk/by-id, LVM) are links; a file's name must not be one.
    if path.is_block_device():
        return os.O_EXCL
    if existed:
        return os.O_NOFOLLOW
    if path.is_relative_to(_DEVICES):  # else it would be a file in memory, of the device's name
        raise ConfigError("file", f"there is no device {path}")
    return os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def _lock(fd: int, path: Path) -> None:
    """Refuse a place that another swapfs uses; the kernel lets go when the last server ends."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OperationError(f"{path} is in use by another swapfs") from error


def _require_ours(fd: int, path: Path) -> None:
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
        raise ConfigError("file", f"{path} is neither a regular file nor a block device")
    start = os.pread(fd, _LOOKED_AT_BYTES, 0)
    if start.strip(b"\0") and not start.startswith(MAGIC):
        raise ConfigError(
            "file", f"{path} holds data that is not swapfs's; remove or wipe it, or name another"
        )


def _require_size(fd: int, path: Path, size_bytes: int) -> None:
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return
    device_bytes = os.lseek(fd, 0, os.SEEK_END)
    if device_bytes < size_bytes:
        raise ConfigError("file", f"{path} has {device_bytes} bytes, not {size_bytes}")


def _allocate(fd: int, path: Path, size_bytes: int) -> None:
    """Give the file all its space now, so that no write of a page waits or fails for it."""
    _require_size(fd, path, size_bytes)
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return
    os.fchmod(fd, 0o600)
    try:
        _stop_copying(fd)
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        os.ftruncate(fd, status.st_size)
        raise OperationError(
            f"cannot allocate {size_bytes} bytes for {path}: {error.strerror}"
        ) from error


def _stop_copying(fd: int) -> None:
    """Have the file written in place where that is a choice; ``cautions`` tells if it is not.

    It must be empty for that. What it holds is of an instance that has ended, and of no use.
    """
    if filesystems.of(fd) == filesystems.BTRFS and not filesystems.overwrites(fd):
        os.ftruncate(fd, 0)
        filesystems.make_overwrite(fd)


def _set_direct(fd: int) -> bool:
    """Turn direct I/O on; False if the place refuses it, then it is off."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    with mmap.mmap(-1, PAGE_SIZE) as scratch:
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            os.preadv(fd, [scratch], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
            return False
    return True


def block_sectors(fd: int) -> int:
    """Return the sectors that a read must be aligned to: 1, or those of a 4 KiB block."""
    with mmap.mmap(-1, PAGE_SIZE) as scratch:
        try:
            os.preadv(fd, [memoryview(scratch)[:SECTOR_SIZE]], SECTOR_SIZE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return _PAGE_SECTORS
    return 1

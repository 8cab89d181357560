"""Linux and glibc calls that Python's standard library lacks, as thin ctypes wrappers.

Each wrapper makes one call and raises OSError with the call's name when it fails; none of them
knows why it is called. ctypes releases the GIL around every call.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

PR_SET_IO_FLUSHER: Final = 57
"""include/uapi/linux/prctl.h (Linux 5.6)."""

PF_MEMALLOC_NOIO: Final = 0x00080000
"""include/linux/sched.h: allocations of this thread start no I/O."""
PF_LOCAL_THROTTLE: Final = 0x00100000
"""include/linux/sched.h: throttled only against the device that this thread writes to."""
PF_IO_FLUSHER: Final = PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE
"""kernel/sys.c PR_IO_FLUSHER: the task flags that PR_SET_IO_FLUSHER sets."""

MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4
"""Lock pages as they are touched instead of touching all of them now."""

M_TRIM_THRESHOLD: Final = -1
M_TOP_PAD: Final = -2
M_MMAP_MAX: Final = -4
M_ARENA_MAX: Final = -8
"""mallopt parameters, glibc malloc.h."""

MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
"""mount(2) flags, include/uapi/linux/mount.h."""
MNT_DETACH: Final = 2
"""umount2(2) flag, include/linux/fs.h."""

# the same numbers on every architecture
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_PIDFD_GETFD: Final = 438

_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
"""include/uapi/linux/mount.h."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mlockall.argtypes = [ctypes.c_int]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.malloc.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]
_libc.free.restype = None
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.syscall.argtypes = [ctypes.c_long]  # the others: int, bytes and None as they are
_libc.syscall.restype = ctypes.c_long
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]


def _raise_if(failed: bool, call: str, path: str | None = None) -> None:
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)


def set_io_flusher(enabled: bool = True) -> None:
    """Mark the calling thread, and threads it creates later, as part of the block I/O path.

    :raises OSError: EPERM without CAP_SYS_RESOURCE, EINVAL before Linux 5.6
    Source: kernel/sys.c, prctl PR_SET_IO_FLUSHER
    """
    _raise_if(
        _libc.prctl(PR_SET_IO_FLUSHER, int(enabled), 0, 0, 0) != 0, "prctl(PR_SET_IO_FLUSHER)"
    )


def mlockall(flags: int) -> None:
    """Lock the process's mappings in memory; *flags* are MCL_*. Not inherited over fork.

    :raises OSError: EPERM or ENOMEM beyond RLIMIT_MEMLOCK without CAP_IPC_LOCK
    """
    _raise_if(_libc.mlockall(flags) != 0, "mlockall")


def munlockall() -> None:
    """Undo every lock of the process, ``mlockall`` and ``mlock`` alike."""
    _raise_if(_libc.munlockall() != 0, "munlockall")


def mlock(address: int, length_bytes: int) -> None:
    """Lock and populate the pages of ``[address, address + length_bytes)``.

    :raises OSError: EPERM or ENOMEM beyond RLIMIT_MEMLOCK, ENOMEM for an unmapped range
    """
    _raise_if(_libc.mlock(address, length_bytes) != 0, "mlock")


def mallopt(parameter: int, value: int) -> None:
    """Tune glibc's allocator; *parameter* is one of M_*.

    :raises OSError: glibc refused the value, or libc has no mallopt (musl)
    """
    if not hasattr(_libc, "mallopt") or _libc.mallopt(parameter, value) != 1:
        raise OSError(0, f"mallopt({parameter}, {value}): refused by libc")


def touch_heap(size_bytes: int) -> None:
    """Allocate *size_bytes* from the C heap, write every page of it, and free it again.

    :raises OSError: the allocation failed
    """
    address = _libc.malloc(size_bytes)
    if not address:
        raise OSError(0, f"malloc({size_bytes}): no memory")
    ctypes.memset(address, 0, size_bytes)
    _libc.free(address)


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """Call mount(2) directly, without /sbin/mount or fusermount.

    :raises OSError: with *target* as its filename
    """
    failed = _libc.mount(
        source.encode(), os.fsencode(target), fstype.encode(), flags, data.encode()
    )
    _raise_if(failed != 0, "mount", target)


def umount2(target: str, flags: int = 0) -> None:
    """Call umount2(2).

    :raises OSError: with *target* as its filename; EBUSY while it is in use
    """
    _raise_if(_libc.umount2(os.fsencode(target), flags) != 0, "umount2", target)


def file_system_type(fd: int) -> int:
    """Return the type of the file system that *fd* is on: f_type of statfs, 32 bits.

    :raises OSError: EIO, or ENOSYS of the file system
    """
    answer = ctypes.create_string_buffer(256)  # struct statfs is 120 bytes; f_type is the first
    _raise_if(_libc.fstatfs(fd, answer) != 0, "fstatfs")
    return ctypes.c_ulong.from_buffer(answer).value & 0xFFFFFFFF


def detached_mount(fstype: str) -> int:
    """Return a descriptor, close-on-exec, of the root of an *fstype* mounted nowhere.

    It is there as long as the descriptor, or one of a file in it, is open.

    :raises OSError: EPERM without CAP_SYS_ADMIN, ENODEV unknown, ENOSYS before Linux 5.2
    """
    context = int(_libc.syscall(_SYS_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC))
    _raise_if(context < 0, "fsopen")
    try:
        created = _libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        _raise_if(created != 0, "fsconfig")
        root = int(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0))
        _raise_if(root < 0, "fsmount")
    finally:
        os.close(context)
    return root


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Return a copy, close-on-exec, of descriptor *number* of the process behind *pidfd*.

    :raises OSError: EPERM without ptrace access, EBADF no such descriptor, ENOSYS before 5.6
    """
    fd = int(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0))
    _raise_if(fd < 0, "pidfd_getfd")
    return fd

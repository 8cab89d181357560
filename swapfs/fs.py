"""The FUSE face: one directory with the swap files, served by pyfuse3 under trio.

Only names and attributes are served here. Reads, writes and discards of the files never get
this far: the session loop answers them (``swap_file``). What a swap file must not suffer is
refused: it cannot be removed, renamed, resized or joined by another file.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, ParamSpec, TypeVar

from swapfs.config.paths import SWAP_FILE_NAME, SWAP_INODE
from swapfs.session import pyfuse3
from swapfs.units import PAGE_SIZE

log = logging.getLogger(__name__)

SWAP_NAME: Final = SWAP_FILE_NAME.encode()
_ROOT: Final = pyfuse3.ROOT_INODE
_CACHE_S: Final = 1e9
"""Seconds that the kernel may keep names and attributes, which never change: for ever. Who asks a
loop device for its file (LOOP_GET_STATUS64) asks that file's server for its attributes once they
are too old: one that hangs, or the very process that asks."""

P = ParamSpec("P")
T = TypeVar("T")


def never_fatal(
    handler: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Answer EIO when *handler* has a bug: any other exception would end the mount."""

    @functools.wraps(handler)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception:
            namespace = args[0]
            assert isinstance(namespace, Namespace)
            namespace.on_bug()
            log.exception("request %s failed", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return wrapped


def _refuse(number: int) -> Any:
    async def refused(*args: object, **kwargs: object) -> None:
        raise pyfuse3.FUSEError(number)

    return refused


class Namespace(pyfuse3.Operations):
    """The directory that holds the swap files.

    :param files: name and size of each, in the order of their inodes
    :param on_bug: called when a handler raised what it should not
    """

    def __init__(self, files: Sequence[tuple[str, int]], on_bug: Callable[[], None]) -> None:
        super().__init__()
        self._inodes = {name.encode(): SWAP_INODE + i for i, (name, _) in enumerate(files)}
        self._sizes = {SWAP_INODE + i: size for i, (_, size) in enumerate(files)}
        self.on_bug = on_bug
        self._born_ns = time.time_ns()

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = _CACHE_S
        entry.st_uid = entry.st_gid = 0
        entry.st_blksize = PAGE_SIZE
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._born_ns
        if inode == _ROOT:
            entry.st_mode, entry.st_nlink, entry.st_size = stat.S_IFDIR | 0o700, 2, 0
        elif inode in self._sizes:
            entry.st_mode, entry.st_nlink = stat.S_IFREG | 0o600, 1
            entry.st_size = self._sizes[inode]
            entry.st_blocks = entry.st_size // 512  # no holes, as swapon wants of a file
        else:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return entry

    @never_fatal
    async def lookup(self, parent_inode: int, name: bytes, ctx: object = None) -> Any:  # noqa: D102
        if parent_inode == _ROOT and name in self._inodes:
            return self._attributes(self._inodes[name])
        if parent_inode == _ROOT and name in (b".", b".."):
            return self._attributes(_ROOT)
        raise pyfuse3.FUSEError(errno.ENOENT)

    @never_fatal
    async def getattr(self, inode: int, ctx: object = None) -> Any:  # noqa: D102
        return self._attributes(inode)

    @never_fatal
    async def setattr(  # noqa: D102
        self, inode: int, attr: Any, fields: Any, fh: object, ctx: object
    ) -> Any:
        resized = fields.update_size and attr.st_size != self._sizes.get(inode)
        if resized or fields.update_mode or fields.update_uid or fields.update_gid:
            raise pyfuse3.FUSEError(errno.EPERM)
        return self._attributes(inode)

    @never_fatal
    async def open(self, inode: int, flags: int, ctx: object) -> Any:  # noqa: D102
        if inode not in self._sizes:
            raise pyfuse3.FUSEError(errno.EISDIR)
        if flags & os.O_TRUNC:  # the kernel would take the file for empty from then on
            raise pyfuse3.FUSEError(errno.EPERM)
        # direct_io: the page cache would hold every swapped page a second time.
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    @never_fatal
    async def opendir(self, inode: int, ctx: object) -> int:  # noqa: D102
        if inode != _ROOT:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return int(_ROOT)

    @never_fatal
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:  # noqa: D102
        for number, (name, inode) in enumerate(self._inodes.items(), 1):
            if number > start_id and not pyfuse3.readdir_reply(
                token, name, self._attributes(inode), number
            ):
                break  # no more fit into the answer

    @never_fatal
    async def statfs(self, ctx: object) -> Any:  # noqa: D102
        # loop takes the discard granularity from f_bsize: without it there are no discards. The
        # files have all their blocks, and each may be written at any time: nothing here can run
        # out, so a monitor of file systems has nothing to alarm of, nor a share to divide by 0.
        # How full pool and tiers are is in the metrics.
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = PAGE_SIZE
        blocks = sum(self._sizes.values()) // PAGE_SIZE
        answer.f_blocks = answer.f_bfree = answer.f_bavail = blocks
        answer.f_files = answer.f_ffree = answer.f_favail = 0  # as who has none to count says
        answer.f_namemax = max(map(len, self._inodes))
        return answer

    @never_fatal
    async def access(self, inode: int, mode: int, ctx: object) -> bool:  # noqa: D102
        return not mode & os.X_OK or inode == _ROOT

    async def flush(self, fh: int) -> None:
        """Nothing to do: a write is answered when it is done."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Nothing to do: a write is answered when it is done."""

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing to do."""

    async def release(self, fh: int) -> None:
        """Nothing to do."""

    async def releasedir(self, fh: int) -> None:
        """Nothing to do."""

    async def forget(self, inode_list: object) -> None:
        """Nothing to do: inodes are not counted."""

    create = mknod = mkdir = symlink = link = _refuse(errno.EPERM)
    unlink = rmdir = rename = _refuse(errno.EPERM)
    readlink = _refuse(errno.EINVAL)
    setxattr = _refuse(errno.EOPNOTSUPP)
    getxattr = _refuse(errno.EOPNOTSUPP)
    listxattr = _refuse(errno.EOPNOTSUPP)
    removexattr = _refuse(errno.EOPNOTSUPP)
    read = write = _refuse(errno.EIO)  # the session loop serves these

"""The kernel's end of a FUSE connection: whether it is open, and what may be set there."""

from __future__ import annotations

import functools
import os
import select
from typing import IO

from swapfs.errors import OperationError
from swapfs.host import syscalls


def is_closed(fuse_fd: int) -> bool:
    """Whether the kernel has ended the FUSE connection of *fuse_fd*: unmounted, or aborted."""
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


class FuseControl:
    """The numbers that the kernel lets be set for the FUSE connection of the mount *device*.

    fusectl need not be mounted on /sys/fs/fuse/connections. What cannot be done raises
    OperationError. Source: Documentation/filesystems/fuse/fuse.rst, "Control filesystem".

    :param device: st_dev of the mount, whose minor number names the connection
    """

    def __init__(self, device: int | None) -> None:
        self._device = device

    @functools.cached_property
    def _directory(self) -> int:
        if self._device is None:
            raise OperationError("fusectl: the number of the connection is not known")
        connections = syscalls.detached_mount("fusectl")
        try:
            number = str(os.minor(self._device))
            return os.open(number, os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=connections)
        finally:
            os.close(connections)

    def get(self, name: str) -> int:
        """Return the value of *name*."""
        try:
            with self._open(name, os.O_RDONLY) as file:
                return int(file.read())
        except OSError as error:
            raise self._failed(name, error) from error

    def set(self, name: str, value: int) -> None:
        """Make *value* that of *name*."""
        try:
            with self._open(name, os.O_WRONLY) as file:
                file.write(b"%d\n" % value)
        except OSError as error:
            raise self._failed(name, error) from error

    def _open(self, name: str, flags: int) -> IO[bytes]:
        descriptor = os.open(name, flags | os.O_CLOEXEC, dir_fd=self._directory)
        return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "wb", buffering=0)

    @staticmethod
    def _failed(name: str, error: OSError) -> OperationError:
        return OperationError(f"fusectl {name}: {error.strerror}")

"""The guards on what the kernel puts between us and swap: the loop device, the FUSE connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swapfs.host.guards import Guard

if TYPE_CHECKING:
    from swapfs.host.loop import LoopDevice

    FindLoop = Callable[[], LoopDevice | None]


class LoopDeviceGuard(Guard):
    """Reports what whoever attached the loop device chose; sets nothing.

    :param find: returns the device on the swap file, None if there is none
    """

    what: str

    def __init__(self, find: FindLoop) -> None:
        self._find = find

    def set(self) -> None:  # noqa: D102
        pass

    def check(self) -> tuple[bool, str]:  # noqa: D102
        attached = self._find()
        if attached is None:
            return True, "no loop device is attached"
        holds = self.holds(attached)
        return holds, f"{attached.device}: {self.what} {'on' if holds else 'off'}"

    def holds(self, attached: LoopDevice) -> bool:
        """Whether *attached* is as it should be."""
        raise NotImplementedError


class DirectIo(LoopDeviceGuard):
    """The loop device bypasses the page cache; else every page would be held twice."""

    name = "direct_io"
    cure = "attach the loop device with losetup --direct-io=on"
    what = "direct I/O"

    def holds(self, attached: LoopDevice) -> bool:  # noqa: D102
        return attached.direct_io


class Discard(LoopDeviceGuard):
    """The loop device passes discards on; else freed slots would never come back."""

    name = "discard"
    cure = "use a kernel whose loop driver offers discard on FUSE files"
    what = "discard"

    def holds(self, attached: LoopDevice) -> bool:  # noqa: D102
        return attached.discard_bytes_max > 0


class MaxBackground(Guard):
    """Lets the kernel have *requests* under way at a time instead of 12.

    All I/O of a loop device with direct I/O is background to FUSE. Without this, 12 reads that
    wait for a disk keep every other request from being sent, of pages in memory too. Not
    required: nothing goes wrong while disks answer.

    :param put: sets the number; may raise OperationError
    :param get: reads it back; may raise OperationError
    """

    name = "max_background"
    cure = "run with CAP_SYS_ADMIN, on Linux 5.2 or later"
    required = False

    def __init__(self, requests: int, put: Callable[[int], None], get: Callable[[], int]) -> None:
        self._requests = requests
        self._put = put
        self._get = get

    def set(self) -> None:  # noqa: D102
        self._put(self._requests)

    def check(self) -> tuple[bool, str]:  # noqa: D102
        found = self._get()
        return found >= self._requests, f"{found} requests under way at the most"

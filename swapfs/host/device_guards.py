"""The guards on what the kernel puts between us and swap: the loop device, the FUSE connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swapfs.errors import OperationError
from swapfs.host.guards import Guard
from swapfs.host.proc import ROOT, read_text

if TYPE_CHECKING:
    from swapfs.host.loop import LoopDevice

    FindLoops = Callable[[], Sequence[LoopDevice]]


class LoopDeviceGuard(Guard):
    """Reports what whoever attached the loop device chose; sets nothing.

    :param find: returns the devices on the swap files
    """

    what: str

    def __init__(self, find: FindLoops) -> None:
        self._find = find

    def set(self) -> None:  # noqa: D102
        pass

    def check(self) -> tuple[bool, str]:  # noqa: D102
        held = {str(attached.device): self.holds(attached) for attached in self._find()}
        if not held:
            return True, "no loop device is attached"
        told = (
            f"{device}: {self.what} {'on' if holds else 'off'}" for device, holds in held.items()
        )
        return all(held.values()), ", ".join(told)

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


class RequestTimeout(Guard):
    """The kernel ends no connection because an answer takes its time (Linux 6.15 and later).

    With fs.fuse.default_request_timeout, or max_request_timeout, it aborts the whole connection
    when one request is older: a disk that hangs, or a server that is held until somebody mends
    it, would cost every page. It sets nothing, for that is the machine's. What holds for a mount is
    decided at its FUSE_INIT (fs/fuse/inode.c, init_server_timeout); a change after that is the
    next mount's, and shown too, as this one's could not be made again.
    """

    name = "request_timeout"
    cure = "sysctl -w fs.fuse.default_request_timeout=0 fs.fuse.max_request_timeout=0, then mount"
    settings: Final = ("default_request_timeout", "max_request_timeout")

    def __init__(self, root: Path = ROOT) -> None:
        self._directory = root / "proc/sys/fs/fuse"
        self._at_start: dict[str, int] = {}

    def set(self) -> None:  # noqa: D102
        self._at_start = self._limits()

    def check(self) -> tuple[bool, str]:  # noqa: D102
        now, then = self._limits(), self._at_start
        if then:
            return False, f"{_listed(then)}: an answer later than that ends the whole connection"
        if now:
            return False, f"{_listed(now)} since: not for this mount, but for the next one"
        return True, "the kernel waits for every answer"

    def _limits(self) -> dict[str, int]:
        """Return what is limited, in seconds; a kernel that cannot limit has no such files."""
        found = {}
        for name in self.settings:
            path = self._directory / name
            if not path.exists():
                continue
            try:
                found[name] = int(read_text(path))
            except ValueError as error:
                raise OperationError(f"{path}: not a number") from error
        return {name: seconds for name, seconds in found.items() if seconds}


def _listed(limits: dict[str, int]) -> str:
    return ", ".join(f"fs.fuse.{name} is {seconds} s" for name, seconds in limits.items())

"""Loop devices: which are attached and to what, attaching one, and letting go of it.

A path does not tell which file a device stands on: sysfs cuts it short to ``/swap`` after a lazy
unmount, and shows a path of another mount namespace as if it were here. Device and inode number
do (LOOP_GET_STATUS64). Two things about asking for them: it needs the right to open the device,
and the kernel asks the file system in turn (vfs_getattr in drivers/block/loop.c), which may hang.
So only devices whose path ends as the file's does are asked, for a limited time, and the text
decides where there is no answer. Our own file system lets the kernel keep attributes for ever,
so it is not asked, and the answer comes although the server hangs or is dead (tried on 6.18).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.host import swap
from swapfs.host.proc import DELETED, ROOT, read_text
from swapfs.host.run import run

DETACH_WAIT_S: Final = 5.0
ASK_WAIT_S: Final = 1.0
LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64_BYTES: Final = 232
"""struct loop_info64, which begins with lo_device and lo_inode; include/uapi/linux/loop.h."""


@dataclass(frozen=True, slots=True)
class FileId:
    """Which file it is, whatever its path: st_dev and st_ino."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Backing:
    """A file that loop devices may stand on.

    :param path: where it is, or was while it was mounted
    :param file: which it is; None if that is not known
    """

    path: Path
    file: FileId | None


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """One attached loop device, as sysfs shows it."""

    device: Path
    backing_file: str
    deleted: bool
    direct_io: bool
    discard_bytes_max: int
    sector_bytes: int
    sequence: int = 0
    """Of this attachment: no other until the next boot has it (diskseq, Linux 5.15); else 0."""


def devices(root: Path = ROOT) -> list[LoopDevice]:
    """Return the attached loop devices in the order of their numbers.

    :raises OperationError: they cannot be seen
    """
    found = []
    blocks = root / "sys/block"
    if not blocks.is_dir():
        raise OperationError(f"{blocks} is not there, so loop devices cannot be seen: mount sysfs")
    for block in sorted(blocks.glob("loop*"), key=_number):
        try:
            backing = read_text(block / "loop/backing_file").rstrip("\n")
            found.append(
                LoopDevice(
                    device=Path("/dev") / block.name,
                    backing_file=backing.removesuffix(DELETED),
                    deleted=backing.endswith(DELETED),
                    direct_io=read_text(block / "loop/dio").strip() == "1",
                    discard_bytes_max=int(read_text(block / "queue/discard_max_bytes")),
                    sector_bytes=int(read_text(block / "queue/logical_block_size")),
                    sequence=_sequence(block),
                )
            )
        except OperationError:
            continue  # not attached, or detached while we looked
    return found


def find(backing: Backing, root: Path = ROOT) -> LoopDevice | None:
    """Return the first loop device on *backing*, or None."""
    return next((loop for loop in devices(root) if stands_on(loop, backing, root)), None)


def find_all(backings: Sequence[Backing], root: Path = ROOT) -> list[LoopDevice]:
    """Return the first loop device on each of *backings* that has one."""
    there = devices(root)
    on_each = (
        next((loop for loop in there if stands_on(loop, backing, root)), None)
        for backing in backings
    )
    return [found for found in on_each if found is not None]


def find_user(backing: Backing, root: Path = ROOT) -> LoopDevice | None:
    """Return a loop device that stands on *backing*, or may: one that gives no answer.

    For questions where a yes in error does no harm.
    """
    return next(
        (loop for loop in devices(root) if stands_on(loop, backing, root) is not False), None
    )


def stands_on(loop: LoopDevice, backing: Backing, root: Path = ROOT) -> bool | None:
    """Whether *loop* stands on *backing*; None if nothing tells."""
    if Path(loop.backing_file).name != backing.path.name:
        return False
    found = backing_id(loop, root) if backing.file else None
    if found is not None:
        return found == backing.file
    if loop.backing_file == str(backing.path):
        return True
    return None if loop.backing_file == f"/{backing.path.name}" else False


def stands_in(loop: LoopDevice, mountpoint: Path, device: int, root: Path = ROOT) -> bool:
    """Whether *loop* stands on a file, whatever its name, of the mount *device* on *mountpoint*."""
    if Path(loop.backing_file).parent != mountpoint:
        return False
    found = backing_id(loop, root)
    return found is None or found.device == device


def backing_id(loop: LoopDevice, root: Path = ROOT) -> FileId | None:
    """Return which file *loop* stands on; None without the right to ask, or without an answer.

    An answer is kept for as long as the device stays attached, so that a daemon that looks every
    second asks once. A question that gets none within ASK_WAIT_S stays open and is not asked twice.
    """
    node = root / str(loop.device).lstrip("/")
    question = _questions.get(node)
    asked_before = question is not None and question.sequence == loop.sequence != 0
    if question is None or not asked_before:
        question = _questions[node] = _Question(node, loop.sequence)
    answer = question.answer(0.0 if asked_before else ASK_WAIT_S)
    if answer is None and question.is_over:
        _questions.pop(node, None)  # refused: the next one may be allowed
    return answer


def read_backing_id(node: Path) -> FileId:
    """Ask the kernel which file the loop device *node* stands on; may hang with its file system.

    :raises OSError: no right to open it, nothing attached, or the file system cannot tell
    """
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = bytearray(_LOOP_INFO64_BYTES)
        fcntl.ioctl(fd, LOOP_GET_STATUS64, status)
    finally:
        os.close(fd)
    return FileId(*struct.unpack_from("QQ", status))


class _Question:
    """Which file the device *node* stands on, asked in a thread that may never come back."""

    def __init__(self, node: Path, sequence: int) -> None:
        self.sequence = sequence
        self._node = node
        self._found: FileId | None = None
        self._thread = threading.Thread(target=self._ask, name="loop status", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread to be had: no answer
            self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def answer(self, wait_s: float) -> FileId | None:
        if self._thread.is_alive():
            self._thread.join(wait_s)
        return self._found

    def _ask(self) -> None:
        with contextlib.suppress(OSError):
            self._found = read_backing_id(self._node)


_questions: Final[dict[Path, _Question]] = {}
"""The last one by device."""


def attach(
    backing: Path, sector_size: int = 4096, direct_io: bool = True, root: Path = ROOT
) -> LoopDevice:
    """Attach a free loop device to *backing* and check in sysfs that it is as asked (I8).

    :raises OperationError: losetup failed, or direct I/O, discard or the sector size is not
        as asked for; nothing stays attached
    """
    dio = "on" if direct_io else "off"
    shown = run(
        "losetup", "--show", "-f", f"--sector-size={sector_size}", f"--direct-io={dio}", backing
    )
    device = Path(shown.strip())
    try:
        loop = next((loop for loop in devices(root) if loop.device == device), None)
        problem = _problem(loop, sector_size, direct_io)
    except OperationError as error:
        loop, problem = None, str(error)
    if loop is None or problem:
        failure = OperationError(f"loop device {device} on {backing}: {problem}")
        try:
            detach(device, root)
        except OperationError as error:
            failure.add_note(f"and it stays attached: {error}")
        raise failure
    return loop


def detach(device: Path, root: Path = ROOT) -> None:
    """Detach *device* and wait until the kernel has really let go of its backing file.

    ``losetup -d`` on a device that is in use succeeds and detaches at the last close, which
    with swap on it would be never: so this refuses first and looks afterwards.

    :raises OperationError: swap is on it, losetup failed, or something else holds it
    """
    if swap.find(device, root) is not None:
        raise OperationError(f"losetup -d {device}: swap is on it")
    block = root / "sys/block" / device.name
    node, sequence = root / str(device).lstrip("/"), _sequence(block)
    if not _is_attached(block, node):
        return  # somebody asked for it before; its last user was the swap area
    try:
        run("losetup", "-d", device)
    except OperationError:
        # Marked before (losetup -D), it goes with its last user, and that has just happened.
        if _is_attached(block, node) and _sequence(block) == sequence:
            raise
    deadline = time.monotonic() + DETACH_WAIT_S
    while _is_attached(block, node) and _sequence(block) == sequence:
        # udev opens a loop device for a moment after each change.
        if time.monotonic() >= deadline:
            raise OperationError(f"losetup -d {device}: another process holds it open")
        time.sleep(0.02)


def _is_attached(block: Path, node: Path) -> bool:
    """Whether the device stands on something: as sysfs says, or the device itself without that."""
    if block.is_dir():
        return (block / "loop/backing_file").exists()
    try:
        read_backing_id(node)
    except OSError as error:
        return error.errno not in (errno.ENXIO, errno.ENOENT)
    return True


def _sequence(block: Path) -> int:
    try:
        return int(read_text(block / "diskseq"))
    except (OperationError, ValueError):
        return 0


def _number(block: Path) -> int:
    digits = block.name.removeprefix("loop")
    return int(digits) if digits.isdigit() else 0


def _problem(loop: LoopDevice | None, sector_size: int, direct_io: bool) -> str | None:
    if loop is None:
        return "sysfs does not show it as attached"
    if loop.direct_io != direct_io:
        return f"direct I/O is {'on' if loop.direct_io else 'off'} though losetup was told not"
    if loop.discard_bytes_max == 0:
        return "it offers no discard, so freed slots would never come back"
    if loop.sector_bytes != sector_size:
        return f"its sectors have {loop.sector_bytes} bytes instead of {sector_size}"
    return None

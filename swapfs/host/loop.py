"""Loop devices: which are attached and to what, attaching one, and letting go of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.host import swap
from swapfs.host.proc import DELETED, ROOT, read_text
from swapfs.host.run import run

DETACH_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """One attached loop device, as sysfs shows it."""

    device: Path
    backing_file: str
    deleted: bool
    direct_io: bool
    discard_bytes_max: int
    sector_bytes: int


def devices(root: Path = ROOT) -> list[LoopDevice]:
    """Return the attached loop devices in the order of their numbers."""
    found = []
    for block in sorted((root / "sys/block").glob("loop*"), key=_number):
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
                )
            )
        except OperationError:
            continue  # not attached, or detached while we looked
    return found


def find(backing: Path, root: Path = ROOT) -> LoopDevice | None:
    """Return the first loop device on *backing*, or None."""
    return next((loop for loop in devices(root) if loop.backing_file == str(backing)), None)


def find_user(backing: Path, root: Path = ROOT) -> LoopDevice | None:
    """Return a loop device that may stand on *backing*, or None.

    After a lazy unmount the kernel shows its path cut short to the name, which another file may
    have too: for questions where a yes in error does no harm.
    """
    attached = devices(root)
    paths = (str(backing), f"/{backing.name}")
    return next((loop for path in paths for loop in attached if loop.backing_file == path), None)


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
    loop = next((loop for loop in devices(root) if loop.device == device), None)
    problem = _problem(loop, sector_size, direct_io)
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
    attached = root / "sys/block" / device.name / "loop/backing_file"
    if not attached.exists():
        return  # somebody asked for it before; its last user was the swap area
    run("losetup", "-d", device)
    deadline = time.monotonic() + DETACH_WAIT_S
    while attached.exists():
        # udev opens a loop device for a moment after each change.
        if time.monotonic() >= deadline:
            raise OperationError(f"losetup -d {device}: another process holds it open")
        time.sleep(0.02)


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

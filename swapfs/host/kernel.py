"""The kernel's side of the swap file: what /proc and /sys say, and the tools that change it.

Functions that read take *root*, the directory that holds ``proc`` and ``sys``, so that tests
can give them a tree of their own. Functions that change something run one util-linux tool
each, without a shell, and raise :class:`OperationError` with one line. Nothing here touches
a path inside a FUSE mount: a server that hangs must not hang ``status`` or ``down``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from swapfs.errors import OperationError
from swapfs.host import syscalls
from swapfs.units import KiB

ROOT: Final = Path("/")
DELETED: Final = " (deleted)"
"""What the kernel appends to the path of a file that has no name any more (fs/d_path.c)."""
SWAP_LABEL_BYTES_MAX: Final = 15
"""Longest label that mkswap stores whole (16 bytes with the terminating zero)."""
DETACH_WAIT_S: Final = 5.0

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class SwapEntry:
    """One line of /proc/swaps. *used_bytes* and *size_bytes* are what the kernel counts."""

    path: str
    kind: str
    size_bytes: int
    used_bytes: int
    priority: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo, as far as swapfs needs it."""

    mountpoint: Path
    fstype: str
    source: str
    device: int
    """Its st_dev. os.stat would ask the file system, which may be the caller."""


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """One attached loop device, as sysfs shows it."""

    device: Path
    backing_file: str
    deleted: bool
    direct_io: bool
    discard_bytes_max: int
    sector_bytes: int


def unescape(text: str) -> str:
    r"""Return *text* with the kernel's octal escapes undone (``\040`` is a space)."""
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)


def memory_total_bytes(root: Path = ROOT) -> int:
    """Return MemTotal of /proc/meminfo in bytes.

    :raises OperationError: /proc/meminfo is missing or has no MemTotal
    """
    for line in _read_text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * KiB
    raise OperationError("/proc/meminfo has no MemTotal")


def swaps(root: Path = ROOT) -> list[SwapEntry]:
    """Return the active swap areas; an empty list when the kernel has no swap support."""
    try:
        lines = _read_text(root / "proc/swaps").splitlines()[1:]
    except OperationError:
        return []
    entries = []
    for line in lines:
        path, kind, size_kib, used_kib, priority = line.split()[:5]
        path = unescape(path)
        entries.append(
            SwapEntry(
                path=path.removesuffix(DELETED),
                kind=kind,
                size_bytes=int(size_kib) * KiB,
                used_bytes=int(used_kib) * KiB,
                priority=int(priority),
                deleted=path.endswith(DELETED),
            )
        )
    return entries


def find_swap(device: Path, root: Path = ROOT) -> SwapEntry | None:
    """Return the active swap area on *device*, or None."""
    return next((entry for entry in swaps(root) if entry.path == str(device)), None)


def mounts(root: Path = ROOT) -> list[MountEntry]:
    """Return the mounts of this process's mount namespace, oldest first."""
    entries = []
    for line in _read_text(root / "proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        # The optional fields before "-" vary in number (Documentation/filesystems/proc.rst 3.5).
        dash = fields.index("-", 6)
        fstype, source = fields[dash + 1], fields[dash + 2]
        major, _, minor = fields[2].partition(":")
        entries.append(
            MountEntry(
                mountpoint=Path(unescape(fields[4])),
                fstype=unescape(fstype),
                source=unescape(source),
                device=os.makedev(int(major), int(minor)),
            )
        )
    return entries


def mount_at(mountpoint: Path, root: Path = ROOT) -> MountEntry | None:
    """Return the topmost mount on exactly *mountpoint*, or None."""
    found = [entry for entry in mounts(root) if entry.mountpoint == mountpoint]
    return found[-1] if found else None


def has_ended(pidfd: int, wait_s: float) -> bool:
    """Whether the process of *pidfd* has ended, or does within *wait_s*."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


def is_fuse_closed(fuse_fd: int) -> bool:
    """Whether the kernel has ended the FUSE connection of *fuse_fd*: unmounted, or aborted."""
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


class FuseControl:
    """The numbers that the kernel lets be set for the FUSE connection on *mountpoint*.

    fusectl need not be mounted on /sys/fs/fuse/connections. What cannot be done raises
    OperationError. Once used it finds the connection though it may be unmounted.
    Source: Documentation/filesystems/fuse/fuse.rst, "Control filesystem".
    """

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint

    @functools.cached_property
    def _directory(self) -> int:
        mounted = mount_at(self._mountpoint)
        if mounted is None:
            raise OperationError(f"{self._mountpoint}: nothing is mounted here")
        connections = syscalls.detached_mount("fusectl")
        try:
            number = str(os.minor(mounted.device))
            return os.open(number, os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=connections)
        finally:
            os.close(connections)

    def get(self, name: str) -> int:
        """Return the value of *name*."""
        with self._open(name, "r") as file:
            return int(file.read())

    def set(self, name: str, value: int) -> None:
        """Make *value* that of *name*."""
        with self._open(name, "w") as file:
            file.write(f"{value}\n")

    @contextlib.contextmanager
    def _open(self, name: str, mode: str) -> Iterator[IO[str]]:
        flags = {"r": os.O_RDONLY, "w": os.O_WRONLY}[mode] | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(name, flags, dir_fd=self._directory), mode) as file:
                yield file
        except OSError as error:
            raise OperationError(f"fusectl {name}: {error.strerror}") from error


def loops(root: Path = ROOT) -> list[LoopDevice]:
    """Return the attached loop devices in the order of their numbers."""
    found = []
    for block in sorted((root / "sys/block").glob("loop*"), key=_loop_number):
        try:
            backing = _read_text(block / "loop/backing_file").rstrip("\n")
            found.append(
                LoopDevice(
                    device=Path("/dev") / block.name,
                    backing_file=backing.removesuffix(DELETED),
                    deleted=backing.endswith(DELETED),
                    direct_io=_read_text(block / "loop/dio").strip() == "1",
                    discard_bytes_max=int(_read_text(block / "queue/discard_max_bytes")),
                    sector_bytes=int(_read_text(block / "queue/logical_block_size")),
                )
            )
        except OperationError:
            continue  # not attached, or detached while we looked
    return found


def find_loop(backing: Path, root: Path = ROOT) -> LoopDevice | None:
    """Return the first loop device on *backing*, or None."""
    return next((loop for loop in loops(root) if loop.backing_file == str(backing)), None)


def find_user(backing: Path, root: Path = ROOT) -> LoopDevice | None:
    """Return a loop device that may stand on *backing*, or None.

    After a lazy unmount the kernel shows its path cut short to the name, which another file may
    have too: for questions where a yes in error does no harm.
    """
    attached = loops(root)
    paths = (str(backing), f"/{backing.name}")
    return next((loop for path in paths for loop in attached if loop.backing_file == path), None)


def attach_loop(
    backing: Path, sector_size: int = 4096, direct_io: bool = True, root: Path = ROOT
) -> LoopDevice:
    """Attach a free loop device to *backing* and check in sysfs that it is as asked (I8).

    :raises OperationError: losetup failed, or direct I/O, discard or the sector size is not
        as asked for; nothing stays attached
    """
    dio = "on" if direct_io else "off"
    shown = _run(
        "losetup", "--show", "-f", f"--sector-size={sector_size}", f"--direct-io={dio}", backing
    )
    device = Path(shown.strip())
    loop = next((loop for loop in loops(root) if loop.device == device), None)
    problem = _loop_problem(loop, sector_size, direct_io)
    if loop is None or problem:
        failure = OperationError(f"loop device {device} on {backing}: {problem}")
        try:
            detach_loop(device, root)
        except OperationError as error:
            failure.add_note(f"and it stays attached: {error}")
        raise failure
    return loop


def detach_loop(device: Path, root: Path = ROOT) -> None:
    """Detach *device* and wait until the kernel has really let go of its backing file.

    ``losetup -d`` on a device that is in use succeeds and detaches at the last close, which
    with swap on it would be never: so this refuses first and looks afterwards.

    :raises OperationError: swap is on it, losetup failed, or something else holds it
    """
    if find_swap(device, root) is not None:
        raise OperationError(f"losetup -d {device}: swap is on it")
    attached = root / "sys/block" / device.name / "loop/backing_file"
    if not attached.exists():
        return  # somebody asked for it before; its last user was the swap area
    _run("losetup", "-d", device)
    deadline = time.monotonic() + DETACH_WAIT_S
    while attached.exists():
        # udev opens a loop device for a moment after each change.
        if time.monotonic() >= deadline:
            raise OperationError(f"losetup -d {device}: another process holds it open")
        time.sleep(0.02)


def mkswap(device: Path, label: str) -> None:
    """Write a swap header to *device*; *label* is cut to what the header holds."""
    _run("mkswap", "-L", label[:SWAP_LABEL_BYTES_MAX], device)


def swapon(device: Path, priority: int, discard: bool = True) -> None:
    """Make the kernel swap on *device*; discard tells us of freed slots."""
    options = ["--discard"] if discard else []
    _run("swapon", *options, "-p", str(priority), device)


def swapoff(device: Path) -> None:
    """Stop swapping on *device*. Takes as long as reading every page back; never cut short."""
    _run("swapoff", device)


def umount(path: Path) -> None:
    """Unmount *path*; never lazily, which would leave a server that nobody can find."""
    _run("umount", path)


def _run(*command: str | Path) -> str:
    """Run *command*, return its standard output; raise OperationError with one line."""
    words = [str(word) for word in command]
    # su without "-" leaves the sbin directories out of PATH.
    path = os.pathsep.join([os.environ.get("PATH", "/usr/bin:/bin"), "/usr/sbin", "/sbin"])
    environment = {**os.environ, "LC_ALL": "C", "PATH": path}
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
    except OSError as error:
        raise OperationError(f"{words[0]}: cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = "; ".join(done.stderr.split("\n")).strip("; ") or f"exit code {done.returncode}"
        raise OperationError(f"{' '.join(words)}: {said}")
    return done.stdout


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OperationError(f"{path}: {error.strerror}") from error


def _loop_number(block: Path) -> int:
    digits = block.name.removeprefix("loop")
    return int(digits) if digits.isdigit() else 0


def _loop_problem(loop: LoopDevice | None, sector_size: int, direct_io: bool) -> str | None:
    if loop is None:
        return "sysfs does not show it as attached"
    if loop.direct_io != direct_io:
        return f"direct I/O is {'on' if loop.direct_io else 'off'} though losetup was told not"
    if loop.discard_bytes_max == 0:
        return "it offers no discard, so freed slots would never come back"
    if loop.sector_bytes != sector_size:
        return f"its sectors have {loop.sector_bytes} bytes instead of {sector_size}"
    return None

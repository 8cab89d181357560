"""The backing file as the user writes it, ``PATH[:SIZE]``, checked against what is there.

Creates and changes nothing.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swapfs.config import values
from swapfs.errors import ConfigError
from swapfs.host import filesystems
from swapfs.host.filesystems import Kind
from swapfs.units import FILE_BYTES_MAX, PAGE_SIZE, MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

FILE_BYTES_MIN: Final = 3 * MiB  # one segment, and two that cleaning needs
_DEVICES: Final = Path("/dev")
_UNFIT: Final = {
    Kind.MEMORY: "what is in memory frees none",
    Kind.REMOTE: "who serves it may need memory to take a page, and wait for swap itself",
}
DIRECT_IO: Final = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class FileTierConfig:
    """The backing file or block device of the file tier."""

    path: Path
    size_bytes: int
    direct_io: str = "auto"  # one of DIRECT_IO
    encryption: bool = True


def fit_file(
    where: str, text: str, direct_io: str, *, encryption: bool, unsafe: bool = False
) -> FileTierConfig:
    """Return the file tier ``PATH[:SIZE]`` that *text* describes; it fits on this machine.

    :param unsafe: take a place that may deadlock
    :raises ConfigError: it cannot be the backing store, or there is no room for it
    """
    path, size_bytes = _split_file(where, text)
    return fit_place(where, path, size_bytes, direct_io, encryption=encryption, unsafe=unsafe)


def fit_place(
    where: str,
    path: Path,
    size_bytes: int | None,
    direct_io: str,
    *,
    encryption: bool,
    unsafe: bool = False,
) -> FileTierConfig:
    """Return the file tier of *size_bytes* (None: all that is there) at *path*.

    :raises ConfigError: as ``fit_file``
    """
    present_bytes, missing_bytes = _measure(where, path, size_bytes)
    if size_bytes is None:
        size_bytes = present_bytes // PAGE_SIZE * PAGE_SIZE
    if size_bytes < FILE_BYTES_MIN:
        least = format_size(FILE_BYTES_MIN)
        raise ConfigError(where, f"{path}: {format_size(size_bytes)} is too small (least: {least})")
    if size_bytes > FILE_BYTES_MAX:
        has, most = values.exact_size(size_bytes), format_size(FILE_BYTES_MAX)
        problem = f"{path}: {has} is too large (most: {most}; write {path}:{most})"
        raise ConfigError(where, problem)
    if missing_bytes > 0:
        free_bytes = _free_bytes(where, path)
        if missing_bytes > free_bytes:
            wants, has = format_size(missing_bytes), format_size(free_bytes)
            raise ConfigError(where, f"{path}: {wants} more needed, its file system has {has} free")
    if not unsafe:
        _refuse_unfit_place(where, path)
    return FileTierConfig(path, size_bytes, direct_io, encryption)


def show_file(file: FileTierConfig | None, show_size: Callable[[int], object]) -> str | None:
    """Return *file* as :func:`fit_file` reads it; *show_size* writes a size."""
    return f"{file.path}:{show_size(file.size_bytes)}" if file else None


def _split_file(where: str, text: str) -> tuple[Path, int | None]:
    """Split ``PATH:SIZE``; colons in PATH are fine, and so is a missing size."""
    head, colon, tail = text.rpartition(":")
    if not colon or os.path.exists(text) or "/" in tail:
        return values.parse_path(where, text), None
    return values.parse_path(where, head), values.parse_paged_size(where, tail, 0)


def _measure(where: str, path: Path, size_bytes: int | None) -> tuple[int, int]:
    """Return the bytes that *path* has now and those that its file system must still give.

    :raises ConfigError: *path* cannot be the backing store
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, _size_of_new(where, path, size_bytes)
    except OSError as error:
        raise ConfigError(where, f"{path}: {error.strerror}") from error
    if stat.S_ISREG(found.st_mode):
        if path.is_symlink():
            raise ConfigError(where, f"{path} is a link to a file: name {path.resolve()} instead")
        return found.st_size, (size_bytes or found.st_size) - found.st_blocks * 512
    if not stat.S_ISBLK(found.st_mode):
        raise ConfigError(where, f"{path} is neither a file nor a block device")
    device_bytes = _block_device_bytes(where, path)
    if size_bytes is not None and size_bytes > device_bytes:
        has = format_size(device_bytes)
        raise ConfigError(where, f"{path} has only {has}, {format_size(size_bytes)} asked for")
    return device_bytes, 0


def _size_of_new(where: str, path: Path, size_bytes: int | None) -> int:
    """Return the size of the file that is to be made at *path*.

    :raises ConfigError: there can be none, or its size is not known
    """
    if path.is_symlink():
        raise ConfigError(where, f"{path} is a link to what is not there")
    if path.is_relative_to(_DEVICES):
        raise ConfigError(where, f"there is no device {path}")
    if not path.parent.is_dir():
        raise ConfigError(where, f"{path}: there is no directory {path.parent}")
    if size_bytes is None:
        raise ConfigError(where, f"{path} does not exist: write {path}:SIZE")
    return size_bytes


def _refuse_unfit_place(where: str, path: Path) -> None:
    """Refuse a file where taking a page may need memory, as there is none when it matters.

    :raises ConfigError: it is in memory, or another program or machine serves it
    """
    try:
        if path.is_block_device():
            return
        there = filesystems.of(path if path.exists() else path.parent)
    except OSError as error:
        raise ConfigError(where, f"{path}: {error.strerror}") from error
    problem = _UNFIT.get(there.kind)
    if problem:
        what = f"{path} is on {there.name}: {problem}"
        raise ConfigError(where, f"{what}; name a place on a disk (--unsafe goes on)")


def _block_device_bytes(where: str, path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.lseek(descriptor, 0, os.SEEK_END)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(where, f"{path}: {error.strerror}") from error


def _free_bytes(where: str, path: Path) -> int:
    try:
        found = os.statvfs(path.parent)
    except OSError as error:
        raise ConfigError(where, f"{path}: {error.strerror}") from error
    return found.f_bavail * found.f_frsize

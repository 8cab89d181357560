"""Whether values fit this machine and each other: the ``fit`` of the options that need one.

Each takes where the value was given, the value, and the draft of all options; see ``option.Fit``.
Creates and changes nothing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from swapfs.config.backing import FileTierConfig, fit_file
from swapfs.config.option import Draft
from swapfs.config.paths import default_mountpoint, mount_source
from swapfs.errors import ConfigError
from swapfs.host import mounts, proc
from swapfs.units import format_size

SOCKET_PATH_BYTES_MAX: Final = 107
"""Of sun_path in struct sockaddr_un (include/uapi/linux/un.h), without the terminating zero."""
MIN_FREE_SHARE_MAX: Final = 4
"""A reserve above one part in so many of the memory would starve the machine at once."""


def fit_pool(where: str, pool_bytes: int, draft: Draft) -> int:
    """Return *pool_bytes* if the machine has as much memory.

    :raises ConfigError: it has less
    """
    memory_bytes = proc.memory_total_bytes(draft.root)
    if pool_bytes > memory_bytes:
        has = format_size(memory_bytes)
        problem = f"{format_size(pool_bytes)} is more than this machine's memory of {has}"
        raise ConfigError(where, problem)
    return pool_bytes


def fit_pool_max(where: str, most_bytes: int, draft: Draft) -> int:
    """Return *most_bytes* (0: as the pool) if it is no less than the pool, and fits.

    :raises ConfigError: it is, or the machine has less
    """
    if most_bytes in (0, draft.values["pool"]):
        return 0
    if most_bytes < draft.values["pool"]:
        has = format_size(draft.values["pool"])
        raise ConfigError(where, f"{format_size(most_bytes)} is less than the pool of {has}")
    return fit_pool(where, most_bytes, draft)


def fit_min_free(where: str, reserve_bytes: int | None, draft: Draft) -> int | None:
    """Return *reserve_bytes* (None: auto) if enough memory is left beside it.

    :raises ConfigError: it is more than a quarter of the machine's memory
    """
    if reserve_bytes:
        most_bytes = proc.memory_total_bytes(draft.root) // MIN_FREE_SHARE_MAX
        if reserve_bytes > most_bytes:
            wants, most = format_size(reserve_bytes), format_size(most_bytes)
            raise ConfigError(where, f"{wants} is too much for this machine (most: {most})")
    return reserve_bytes


def fit_low_watermark(where: str, low: int, draft: Draft) -> int:
    """Return *low* if it is below the high watermark.

    :raises ConfigError: it is not; names the one of the two that was given
    """
    high = draft.values["high-watermark"]
    if low >= high:
        where = draft.where.get("low-watermark") or draft.where.get("high-watermark", where)
        raise ConfigError(where, f"the low watermark ({low}) must be below the high one ({high})")
    return low


def fit_runtime_dir(where: str, runtime_dir: Path, draft: Draft) -> Path:
    """Return *runtime_dir* without symbolic links.

    The kernel shows real paths, of mounts and of what loop devices stand on.

    :raises ConfigError: a socket could not have its name there
    """
    found = runtime_dir.resolve()
    over = len(os.fsencode(found / f"{draft.values['name']}.sock")) - SOCKET_PATH_BYTES_MAX
    if over > 0:
        problem = f"{found} is {over} bytes too long to have the socket of the instance in it"
        raise ConfigError(where, problem)
    return found


def fit_log_dir(where: str, log_dir: Path | None, draft: Draft) -> Path:
    """Return *log_dir* (None: the runtime directory, which `up` makes) without symbolic links.

    :raises ConfigError: it is not a directory
    """
    runtime_dir: Path = draft.values["runtime-dir"]
    if log_dir in (None, runtime_dir):
        return runtime_dir
    return _directory(where, log_dir)


def _directory(where: str, path: Path) -> Path:
    """Return *path* without symbolic links.

    :raises ConfigError: it is not a directory
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(where, f"{path}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise ConfigError(where, f"{path} is not a directory")
    return path.resolve()


def fit_mountpoint(where: str, mountpoint: Path | None, draft: Draft) -> Path:
    """Return where to mount: *mountpoint*, without symbolic links, or the default place.

    :raises ConfigError: it is not a directory, or something else is mounted on it
    """
    name, root = draft.values["name"], draft.root
    default = default_mountpoint(draft.values["runtime-dir"], name)
    if mountpoint is None or mountpoint == default:
        _is_busy(where, default, name, root)  # `up` makes it
        return default
    # /proc first: a mount whose server is gone or hangs must not be touched.
    if not _is_busy(where, mountpoint, name, root):
        mountpoint = _directory(where, mountpoint)
        _is_busy(where, mountpoint, name, root)
    return mountpoint


def fit_file_tier(where: str, text: str | None, draft: Draft) -> FileTierConfig | None:
    """Return the file tier ``PATH[:SIZE]`` that *text* describes, with its other options.

    :raises ConfigError: it cannot be the backing store, or there is no room for it
    """
    if text is None:
        return None
    direct_io, encryption = draft.values["file-direct-io"], draft.values["file-encryption"]
    unsafe = draft.values["unsafe"]
    return fit_file(where, text, direct_io, encryption=encryption, unsafe=unsafe)


def fit_to_file(where: str, value: object, draft: Draft) -> object:
    """Return *value* of an option of the file tier, if there is one or nothing was given.

    :raises ConfigError: it was given for nothing
    """
    if draft.values["file"] is None and where in draft.where.values():
        raise ConfigError(where, "there is no file to use it on")
    return value


def _is_busy(where: str, path: Path, name: str, root: Path) -> bool:
    """Whether this very instance is mounted on *path* already, which up and mount refuse."""
    mounted = mounts.at(path, root)
    if mounted is None:
        return False
    if mounted.source != mount_source(name):
        what = f"{mounted.source} ({mounted.fstype})"
        raise ConfigError(where, f"{path} is busy: {what} is mounted there")
    return True

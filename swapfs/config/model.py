"""What the user asked for: command line and TOML file, checked against this machine.

The command line and the file have the same keys; the command line wins, then the file, then
the defaults of :class:`Config`. Every mistake is a :class:`ConfigError` of one line. Knows
nothing of how the values are used; creates and changes nothing.
"""

from __future__ import annotations

import difflib
import json
import stat
import tomllib
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from swapfs.config import values
from swapfs.config.backing import FileTierConfig, parse_file
from swapfs.errors import ConfigError
from swapfs.host import mounts, proc
from swapfs.host.loop import Backing, FileId
from swapfs.units import PAGE_SIZE, KiB, MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Given = dict[str, tuple[str, object]]  # key -> (where it was given, value)

T = TypeVar("T")

POOL_BYTES_MIN: Final = 4 * MiB
POOL_GRAIN_BYTES: Final = 64 * KiB
MIN_FREE_SHARE_MAX: Final = 4
"""A reserve above one part in so many of the memory would starve the machine at once."""
KEYS: Final = (
    "name",
    "mountpoint",
    "size",
    "pool",
    "overcommit",
    "file",
    "file-direct-io",
    "file-encryption",
    "metrics",
    "high-watermark",
    "low-watermark",
    "promote",
    "priority",
    "min-free",
    "unsafe",
    "runtime-dir",
)


SWAP_FILE_NAME: Final = "swap"
"""The one file that a mount shows."""
SWAP_INODE: Final = 2
"""... and its inode number there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One instance, all values checked; sizes in bytes.

    ``min_free_bytes`` is 0 for "off" and None for "auto", which ``up`` resolves (reserve.py).
    """

    name: str = "swapfs"
    mountpoint: Path
    size_bytes: int
    pool_bytes: int
    overcommit: float = 1.0
    file: FileTierConfig | None = None
    metrics: tuple[str, int] | None = None
    high_watermark_percent: int = 90
    low_watermark_percent: int = 80
    promote: bool = False
    priority: int = 100
    min_free_bytes: int | None = None
    unsafe: bool = False
    runtime_dir: Path = Path("/run/swapfs")

    @property
    def swap_file(self) -> Path:
        """The file that the kernel swaps on, through a loop device."""
        return self.mountpoint / SWAP_FILE_NAME

    @property
    def file_bytes(self) -> int:
        """Size of the backing file, 0 without one."""
        return self.file.size_bytes if self.file else 0


def load(
    cli_values: Mapping[str, object], config_file: Path | None = None, root: Path = proc.ROOT
) -> Config:
    """Return the configuration that *cli_values* over *config_file* make.

    :param cli_values: by key of :data:`KEYS`; None means not given
    :param root: holds the proc that is asked for memory and mounts
    :raises ConfigError: the first value that is wrong, or does not fit this machine
    """
    given = _merge(cli_values, config_file)
    name = _take(given, "name", values.parse_name, "swapfs")
    # The kernel shows real paths, of mounts and of what loop devices stand on.
    runtime_dir = _take(given, "runtime-dir", values.parse_path, Path("/run/swapfs")).resolve()
    mountpoint = default_mountpoint(runtime_dir, name)
    if _take(given, "mountpoint", values.parse_path, mountpoint) == mountpoint:
        _is_busy("mountpoint", mountpoint, name, root)  # `up` makes it
    else:
        mountpoint = _mountpoint(*given["mountpoint"], name, root)
    size_bytes = _take(given, "size", values.parse_virtual_size, None)
    pool_bytes = _take(given, "pool", lambda where, value: _pool_size(where, value, root), None)
    if size_bytes is None or pool_bytes is None:
        key, example = ("size", "1G") if size_bytes is None else ("pool", "256M")
        raise ConfigError(
            key, f"missing: give --{key} {example}, or {key} = {json.dumps(example)} in --config"
        )
    reserve_bytes = _take(
        given, "min-free", lambda where, value: _reserve(where, value, root), None
    )
    high = _take(given, "high-watermark", values.parse_percent, 90)
    low = _take(given, "low-watermark", values.parse_percent, 80)
    if low >= high:
        where = given.get("low-watermark", given.get("high-watermark", ("low-watermark", 0)))[0]
        raise ConfigError(where, f"the low watermark ({low}) must be below the high one ({high})")
    return Config(
        name=name,
        mountpoint=mountpoint,
        size_bytes=size_bytes,
        pool_bytes=pool_bytes,
        overcommit=_take(given, "overcommit", values.parse_ratio, 1.0),
        file=_file_tier(given),
        metrics=_take(given, "metrics", values.parse_address, None),
        high_watermark_percent=high,
        low_watermark_percent=low,
        promote=_take(given, "promote", values.parse_flag, False),
        priority=_take(given, "priority", values.parse_priority, 100),
        min_free_bytes=reserve_bytes,
        unsafe=_take(given, "unsafe", values.parse_flag, False),
        runtime_dir=runtime_dir,
    )


def default_mountpoint(runtime_dir: Path, name: str) -> Path:
    """Return where instance *name* is mounted unless the user says otherwise."""
    return runtime_dir / name / "mnt"


def mount_source(name: str) -> str:
    """Return what mountinfo shows as the source of instance *name*'s mount."""
    return f"swapfs:{name}"


def swap_backing(mountpoint: Path, device: int | None) -> Backing:
    """Return which file loop devices stand on: the swap file of the mount on *mountpoint*.

    :param device: st_dev of that mount, None if it is not known any more
    """
    file = None if device is None else FileId(device, SWAP_INODE)
    return Backing(mountpoint / SWAP_FILE_NAME, file)


def check_room(config: Config, room_bytes: int) -> None:
    """Check that every page the kernel may write has a place (I6).

    :param room_bytes: uncompressed bytes that pool and file together can always hold
    :raises ConfigError: the size is larger than the overcommit ratio times the room
    """
    # The ratio as the user wrote it: 3.3 and not the binary number just below it.
    allowed_bytes = int(Fraction(str(config.overcommit)) * room_bytes)
    if config.size_bytes <= allowed_bytes:
        return
    cures = ["enlarge --file" if config.file else "add --file PATH:SIZE"]
    allowed_bytes -= allowed_bytes % PAGE_SIZE
    if allowed_bytes >= values.SIZE_BYTES_MIN:
        cures.append(f"lower --size to {values.exact_size(allowed_bytes)}")
    if room_bytes > 0:
        tenths = ceil(Fraction(config.size_bytes * 10, room_bytes))
        ratio = f"{tenths // 10}.{tenths % 10}"
        cures.append(f"take the risk of refused writes with --overcommit {ratio}")
    times = "" if config.overcommit == 1 else f"{config.overcommit:g} times "
    raise ConfigError(
        "size",
        f"{values.exact_size(config.size_bytes)} is more than {times}the guaranteed room of "
        f"{format_size(room_bytes)} for incompressible pages: {', or '.join(cures)}",
    )


def describe(config: Config, as_json: bool = False) -> str:
    """Return *config* as TOML that :func:`load` reads back, or as JSON with bytes as numbers."""
    shown = int if as_json else values.exact_size
    by_key: dict[str, Any] = {
        "name": config.name,
        "mountpoint": str(config.mountpoint),
        "size": shown(config.size_bytes),
        "pool": shown(config.pool_bytes),
        "overcommit": config.overcommit,
        "metrics": values.format_address(config.metrics) if config.metrics else "off",
        "high-watermark": config.high_watermark_percent,
        "low-watermark": config.low_watermark_percent,
        "promote": config.promote,
        "priority": config.priority,
        "min-free": values.format_reserve(config.min_free_bytes, shown),
        "unsafe": config.unsafe,
        "runtime-dir": str(config.runtime_dir),
    }
    if config.file:
        by_key["file"] = f"{config.file.path}:{shown(config.file.size_bytes)}"
        by_key["file-direct-io"] = config.file.direct_io
        by_key["file-encryption"] = config.file.encryption
    if as_json:
        return json.dumps(by_key, indent=2)
    # JSON's strings, numbers and booleans are TOML's too.
    return "\n".join(f"{key} = {json.dumps(by_key[key], ensure_ascii=False)}" for key in by_key)


def _merge(cli_values: Mapping[str, object], config_file: Path | None) -> Given:
    given: Given = {}
    for key, value in _read_toml(config_file).items():
        if key not in KEYS:
            close = difflib.get_close_matches(key.replace("_", "-").lower(), KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(KEYS)}"
            raise ConfigError(f"{config_file}: {values.one_line(key)}", f"unknown key ({hint})")
        given[key] = (f"{config_file}: {key}", value)
    for key, value in cli_values.items():
        if key not in KEYS:
            raise ConfigError(key, "unknown option")
        if value is not None:
            given[key] = (key if key == "mountpoint" else f"--{key}", value)
    return given


def _read_toml(config_file: Path | None) -> dict[str, Any]:
    if config_file is None:
        return {}
    try:
        return tomllib.loads(config_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(config_file), error.strerror or str(error)) from error
    except RecursionError as error:
        raise ConfigError(
            str(config_file), "not TOML that anybody wrote: nested too deep"
        ) from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(str(config_file), f"not TOML: {values.one_line(str(error))}") from error


def _take(given: Given, key: str, parse: Callable[[str, object], T], default: T) -> T:
    return parse(*given[key]) if key in given else default


def _pool_size(where: str, value: object, root: Path) -> int:
    pool_bytes = values.parse_size(where, value) // POOL_GRAIN_BYTES * POOL_GRAIN_BYTES
    if pool_bytes < POOL_BYTES_MIN:
        least = format_size(POOL_BYTES_MIN)
        raise ConfigError(where, f"{format_size(pool_bytes)} is too small (least: {least})")
    memory_bytes = proc.memory_total_bytes(root)
    if pool_bytes > memory_bytes:
        has = format_size(memory_bytes)
        problem = f"{format_size(pool_bytes)} is more than this machine's memory of {has}"
        raise ConfigError(where, problem)
    return pool_bytes


def _reserve(where: str, value: object, root: Path) -> int | None:
    reserve_bytes = values.parse_reserve(where, value)
    if reserve_bytes:
        most_bytes = proc.memory_total_bytes(root) // MIN_FREE_SHARE_MAX
        if reserve_bytes > most_bytes:
            wants, most = format_size(reserve_bytes), format_size(most_bytes)
            raise ConfigError(where, f"{wants} is too much for this machine (most: {most})")
    return reserve_bytes


def _mountpoint(where: str, value: object, name: str, root: Path) -> Path:
    path = values.parse_path(where, value)
    # /proc first: a mount whose server is gone or hangs must not be touched.
    if not _is_busy(where, path, name, root):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise ConfigError(where, f"{path}: {error.strerror}") from error
        if not stat.S_ISDIR(mode):
            raise ConfigError(where, f"{path} is not a directory")
        path = path.resolve()
        _is_busy(where, path, name, root)
    return path


def _is_busy(where: str, path: Path, name: str, root: Path) -> bool:
    """Whether this very instance is mounted on *path* already, which up and mount refuse."""
    mounted = mounts.at(path, root)
    if mounted is None:
        return False
    if mounted.source != f"swapfs:{name}":
        what = f"{mounted.source} ({mounted.fstype})"
        raise ConfigError(where, f"{path} is busy: {what} is mounted there")
    return True


def _file_tier(given: Given) -> FileTierConfig | None:
    direct_io = _take(given, "file-direct-io", values.parse_direct_io, "auto")
    encryption = _take(given, "file-encryption", values.parse_flag, True)
    if "file" in given:
        return parse_file(*given["file"], direct_io, encryption=encryption)
    for key in ("file-direct-io", "file-encryption"):
        if key in given:
            raise ConfigError(given[key][0], "there is no file to use it on")
    return None

"""The files that configure an instance: one, and the drop-ins beside it, of two directories.

For ``/etc/swapfs/NAME.toml``, in this order, and of each key the last one counts:

1. that file; where it is missing, ``/usr/lib/swapfs/NAME.toml``, which a package may bring;
2. ``NAME.toml.d/*.toml`` of both directories, by file name. Of two with the same name only the one
   in /etc is read, so a link to /dev/null there takes back what a package says.

A file elsewhere has the drop-ins beside it and nothing else. The order is that of systemd's units
(systemd.unit(5)). Reads files and knows nothing of what the keys mean.
"""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swapfs.config import paths, values
from swapfs.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Layer:
    """One file, and what it says."""

    path: Path
    keys: dict[str, Any]


def read(config_file: Path) -> list[Layer]:
    """Return what configures the instance of *config_file*; a later layer overrules.

    :raises ConfigError: a file cannot be read, or is not TOML
    """
    main, directories = config_file, [_beside(config_file)]
    vendor = _vendor(config_file)
    if vendor is not None:
        directories.insert(0, _beside(vendor))
        if not config_file.exists() and vendor.exists():
            main = vendor
    drop_ins = _drop_ins(directories)
    for path in drop_ins:
        _refuse_special(path)
    return [Layer(path, _read_toml(path)) for path in (main, *drop_ins)]


def _beside(config_file: Path) -> Path:
    return config_file.with_name(f"{config_file.name}.d")


def _vendor(config_file: Path) -> Path | None:
    """Return the place of a package's file for the same instance, if it may have one."""
    place = config_file.absolute()
    return paths.VENDOR_DIR / place.name if place.parent == paths.CONFIG_DIR else None


def _drop_ins(directories: list[Path]) -> list[Path]:
    """Return the drop-ins in *directories*, of which a later one hides names of the earlier."""
    by_name: dict[str, Path] = {}
    for directory in directories:
        try:
            found = list(directory.iterdir()) if directory.exists() else []
        except OSError as error:
            raise ConfigError(str(directory), error.strerror or str(error)) from error
        by_name |= {
            path.name: path
            for path in found
            if path.suffix == ".toml" and not path.name.startswith(".")
        }
    return [by_name[name] for name in sorted(by_name)]


def _refuse_special(path: Path) -> None:
    """Refuse what may never end, or never begin, to be read; the main file may be a pipe.

    :raises ConfigError: *path* is a FIFO, a socket, or a device other than /dev/null
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(str(path), error.strerror or str(error)) from error
    is_null = stat.S_ISCHR(found.st_mode) and found.st_rdev == os.stat(os.devnull).st_rdev
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or is_null):
        raise ConfigError(str(path), "is not a file; remove it, or give it another ending")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(str(path), error.strerror or str(error)) from error
    except RecursionError as error:
        raise ConfigError(str(path), "not TOML that anybody wrote: nested too deep") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(str(path), f"not TOML: {values.one_line(str(error))}") from error

"""Where an instance is to be found: names that several processes must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from swapfs.host.loop import Backing, FileId

CONFIG_DIR: Final = Path("/etc/swapfs")
"""Holds the administrator's NAME.toml, and NAME.toml.d/ with drop-ins."""
VENDOR_DIR: Final = Path("/usr/lib/swapfs")
"""Holds the same of whoever packages swapfs: it counts where the administrator has none."""
SWAP_FILE_NAME: Final = "swap"
"""The one file that a mount shows."""
SWAP_INODE: Final = 2
"""... and its inode number there."""


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

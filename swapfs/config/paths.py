"""Where an instance is to be found: names that several processes must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from swapfs.host.loop import Backing, FileId

CONFIG_DIR: Final = Path("/etc/swapfs")
"""Holds the administrator's NAME.toml, and NAME.toml.d/ with drop-ins."""
VENDOR_DIR: Final = Path("/usr/lib/swapfs")
"""Holds the same of whoever packages swapfs: it counts where the administrator has none."""
SWAP_FILE_NAME: Final = "swap"
"""The first file that a mount shows; it may be the only one."""
SWAP_INODE: Final = 2
"""... and its inode number there; those of others follow, in their order."""


def default_mountpoint(runtime_dir: Path, name: str) -> Path:
    """Return where instance *name* is mounted unless the user says otherwise."""
    return runtime_dir / name / "mnt"


def mount_source(name: str) -> str:
    """Return what mountinfo shows as the source of instance *name*'s mount."""
    return f"swapfs:{name}"


def swap_backing(mountpoint: Path, device: int | None) -> Backing:
    """Return which file loop devices stand on: the first of the mount on *mountpoint*.

    :param device: st_dev of that mount, None if it is not known any more
    """
    (backing,) = swap_backings(mountpoint, device)
    return backing


def swap_backings(
    mountpoint: Path, device: int | None, names: Sequence[str] = (SWAP_FILE_NAME,)
) -> list[Backing]:
    """Return likewise the files *names* of a mount, in the order of their inodes."""
    return [
        Backing(mountpoint / name, None if device is None else FileId(device, inode))
        for inode, name in enumerate(names, SWAP_INODE)
    ]

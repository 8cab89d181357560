"""What the kernel swaps on, one at a time: swapfs, zram, zswap over a swapfile, a swapfile.

All are of one size, are the only swap there is, and are told of freed slots (`swapon --discard`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.vm.guest import lab
from tests.bench import names
from tests.bench.jobs.samples import SWAPFS_DISK

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager

SWAP_DISK: Final = "/dev/disk/by-id/virtio-data0"
"""An ext4 with the swapfile."""
TIER_DISK: Final = "/dev/disk/by-id/virtio-data1"
"""The file tier of swapfs."""
_MOUNT: Final = Path("/swapdisk")
_SWAPFILE: Final = _MOUNT / "swapfile"
_ZRAM: Final = "/dev/zram0"
_ZRAM_SYS: Final = Path("/sys/block/zram0")
_ZSWAP: Final = Path("/sys/module/zswap/parameters")
_SNAPSHOT_BOUND_S: Final = 30
_DISK_SHARE: Final = 20
"""Of the size to the pool, with a disk below: most of what is measured is on the disk then."""
_TABLE_MIB: Final = 8
"""Beyond the size, so that the pool has room for the table and every page incompressible."""


@dataclass(frozen=True)
class Backend:
    """A swap that can be switched on: `on(size_mib)` is a context that yields its device.

    The device is the one whose sector counters see the swap traffic.
    """

    subject: str
    prepare: Callable[[int], None]
    """Does once what need not be done in every turn; LabError if it is not to be had here."""
    on: Callable[[int], AbstractContextManager[str]]
    in_memory: bool = False
    """Pages stay in front of the device, which sees only what did not compress (zswap)."""


def _nothing(_: int) -> None:
    pass


# ---- swapfs ----


def _has_loop() -> bool:
    return bool((lab.snapshot() or {}).get("loop"))


@contextmanager
def _swapfs(*arguments: str) -> Iterator[str]:
    lab.up(*arguments)
    try:
        if not lab.wait_for("a status with the loop device", _has_loop, _SNAPSHOT_BOUND_S):
            raise lab.LabError("swapfs is up but its status names no loop device")
        yield (lab.snapshot() or {})["loop"]
    finally:
        lab.down()


def _swapfs_pool(size_mib: int) -> AbstractContextManager[str]:
    return _swapfs("--size", f"{size_mib}M", "--pool", f"{size_mib + _TABLE_MIB}M")


def _swapfs_disk(size_mib: int) -> AbstractContextManager[str]:
    pool_mib = size_mib // _DISK_SHARE
    return _swapfs("--size", f"{size_mib}M", "--pool", f"{pool_mib}M", "--file", TIER_DISK)


# ---- zram ----


def _load_zram(_: int) -> None:
    lab.must("modprobe", "zram", "num_devices=1")
    (_ZRAM_SYS / "comp_algorithm").write_text("lz4")


@contextmanager
def _zram(size_mib: int) -> Iterator[str]:
    (_ZRAM_SYS / "comp_algorithm").write_text("lz4")
    (_ZRAM_SYS / "disksize").write_text(f"{size_mib}M")
    try:
        lab.must("mkswap", _ZRAM)
        with _swap_on(_ZRAM):
            yield _ZRAM
    finally:
        (_ZRAM_SYS / "reset").write_text("1")


# ---- a swapfile, and zswap in front of it ----


def _make_swapfile(size_mib: int) -> None:
    if _SWAPFILE.exists():
        return
    # virtio disks call themselves rotating, and the kernel swaps on those by other rules
    rotational = Path("/sys/block", Path(SWAP_DISK).resolve().name, "queue/rotational")
    rotational.write_text("0")
    lab.must("mkfs.ext4", "-q", "-F", SWAP_DISK)
    _MOUNT.mkdir(exist_ok=True)
    lab.must("mount", SWAP_DISK, str(_MOUNT))
    lab.must("fallocate", "-l", f"{size_mib}M", str(_SWAPFILE))
    _SWAPFILE.chmod(0o600)
    lab.must("mkswap", str(_SWAPFILE))


@contextmanager
def _swapfile(_: int) -> Iterator[str]:
    with _swap_on(str(_SWAPFILE)):
        yield SWAP_DISK


def _load_zswap(size_mib: int) -> None:
    lab.must("modprobe", "lz4")
    _make_swapfile(size_mib)
    with _zswap(size_mib):
        pass


@contextmanager
def _zswap(size_mib: int) -> Iterator[str]:
    wanted = {"compressor": "lz4", "zpool": "zsmalloc", "enabled": "Y"}
    for name, value in wanted.items():
        if (_ZSWAP / name).exists():  # newer kernels have no choice of zpool
            (_ZSWAP / name).write_text(value)
            found = (_ZSWAP / name).read_text().strip()
            if found != value:
                raise lab.LabError(f"zswap's {name} is {found}, not {value}")
    try:
        with _swapfile(size_mib) as device:
            yield device
    finally:
        (_ZSWAP / "enabled").write_text("N")


@contextmanager
def _swap_on(place: str) -> Iterator[None]:
    lab.must("swapon", "--discard", place)
    try:
        yield
    finally:
        lab.must("swapoff", place)


BACKENDS: Final = (
    Backend(names.SWAPFS, _nothing, _swapfs_pool),
    Backend(SWAPFS_DISK, _nothing, _swapfs_disk),
    Backend(names.ZRAM, _load_zram, _zram),
    Backend(names.ZSWAP, _load_zswap, _zswap, in_memory=True),
    Backend(names.SWAPFILE, _make_swapfile, _swapfile),
)


def choose(subjects: Collection[str], size_mib: int) -> tuple[list[Backend], list[list[str]]]:
    """Return those of *subjects* that this kernel has, and the others, each with the reason."""
    chosen, skipped = [], []
    for backend in BACKENDS:
        if backend.subject not in subjects:
            continue
        try:
            backend.prepare(size_mib)
        except (lab.LabError, OSError) as error:
            skipped.append([backend.subject, str(error)])
            lab.say(f"no {backend.subject}: {error}")
        else:
            chosen.append(backend)
    return chosen, skipped

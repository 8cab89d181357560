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
from tests.bench.jobs.site import Site, guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager

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
    """A swap that can be switched on: `on(site, size_mib)` is a context that yields its device.

    The device is the one whose sector counters see the swap traffic.
    """

    subject: str
    prepare: Callable[[Site, int], None]
    """Does once what need not be done in every turn; LabError if it is not to be had here."""
    on: Callable[[Site, int], AbstractContextManager[str]]
    in_memory: bool = False
    """Pages stay in front of the device, which sees only what did not compress (zswap)."""


def _nothing(_site: Site, _size_mib: int) -> None:
    pass


# ---- swapfs ----


def _has_loop() -> bool:
    return bool((lab.snapshot() or {}).get("loop"))


@contextmanager
def _swapfs(site: Site, *arguments: str) -> Iterator[str]:
    lab.up(*site.up, *arguments)
    try:
        with guarded(site):
            try:
                if not lab.wait_for("a status with its loop", _has_loop, _SNAPSHOT_BOUND_S):
                    raise lab.LabError("swapfs is up but its status names no loop device")
                yield (lab.snapshot() or {})["loop"]
            finally:
                lab.down()  # within the guard: swapoff reads every page back
    finally:
        if lab.snapshot() is not None:
            lab.down()


def _swapfs_pool(site: Site, size_mib: int) -> AbstractContextManager[str]:
    return _swapfs(site, "--size", f"{size_mib}M", "--pool", f"{size_mib + _TABLE_MIB}M")


def _swapfs_disk(site: Site, size_mib: int) -> AbstractContextManager[str]:
    pool_mib = size_mib // _DISK_SHARE
    return _swapfs(site, "--size", f"{size_mib}M", "--pool", f"{pool_mib}M", "--file", site.tier)


# ---- zram ----


def _load_zram(_site: Site, _size_mib: int) -> None:
    if not _ZRAM_SYS.exists():
        lab.must("modprobe", "zram", "num_devices=1")
    if int((_ZRAM_SYS / "disksize").read_text()):
        raise lab.LabError(f"{_ZRAM} is in use")
    (_ZRAM_SYS / "comp_algorithm").write_text("lz4")


@contextmanager
def _zram(_site: Site, size_mib: int) -> Iterator[str]:
    (_ZRAM_SYS / "comp_algorithm").write_text("lz4")
    (_ZRAM_SYS / "disksize").write_text(f"{size_mib}M")
    try:
        lab.must("mkswap", _ZRAM)
        with _swap_on(_ZRAM):
            yield _ZRAM
    finally:
        (_ZRAM_SYS / "reset").write_text("1")


# ---- a swapfile, and zswap in front of it ----


def _make_swapfile(site: Site, size_mib: int) -> None:
    if site.swapfile.exists():
        return
    site.prepare()
    lab.must("fallocate", "-l", f"{size_mib}M", str(site.swapfile))
    site.swapfile.chmod(0o600)
    lab.must("mkswap", str(site.swapfile))


@contextmanager
def _swapfile(site: Site, _size_mib: int) -> Iterator[str]:
    with _swap_on(str(site.swapfile)):
        yield site.disk


def _load_zswap(site: Site, size_mib: int) -> None:
    if not site.native:  # a module of a machine that somebody uses is not ours to load
        lab.must("modprobe", "lz4")
    # zswap may take a compressor that the kernel's crypto does not have, and refuse it next time
    if "name         : lz4\n" not in Path("/proc/crypto").read_text():
        raise lab.LabError("the kernel has no lz4 for zswap")
    _make_swapfile(site, size_mib)
    with _zswap(site, size_mib):
        pass


@contextmanager
def _zswap(site: Site, size_mib: int) -> Iterator[str]:
    wanted = {"compressor": "lz4", "zpool": "zsmalloc", "enabled": "Y"}
    before = {name: _zswap_says(name) for name in wanted if (_ZSWAP / name).exists()}
    try:
        for name in before:  # newer kernels have no choice of zpool
            (_ZSWAP / name).write_text(wanted[name])
            if (found := _zswap_says(name)) != wanted[name]:
                raise lab.LabError(f"zswap's {name} is {found}, not {wanted[name]}")
        with _swapfile(site, size_mib) as device:
            yield device
    finally:
        for name, value in before.items():
            (_ZSWAP / name).write_text(value)


def _zswap_says(name: str) -> str:
    return (_ZSWAP / name).read_text().strip()


@contextmanager
def _swap_on(place: str) -> Iterator[None]:
    lab.must("swapon", "--discard", place)
    try:
        yield
    finally:
        lab.must("swapoff", place)


BACKENDS: Final = (
    Backend(names.SWAPFS, _nothing, _swapfs_pool),
    Backend(names.SWAPFS_DISK, _nothing, _swapfs_disk),
    Backend(names.ZRAM, _load_zram, _zram),
    Backend(names.ZSWAP, _load_zswap, _zswap, in_memory=True),
    Backend(names.SWAPFILE, _make_swapfile, _swapfile),
)


def choose(
    site: Site, subjects: Collection[str], size_mib: int
) -> tuple[list[Backend], list[list[str]]]:
    """Return those of *subjects* that this kernel has, and the others, each with the reason."""
    chosen, skipped = [], []
    for backend in BACKENDS:
        if backend.subject not in subjects:
            continue
        try:
            backend.prepare(site, size_mib)
        except (lab.LabError, OSError) as error:
            skipped.append([backend.subject, str(error)])
            lab.say(f"no {backend.subject}: {error}")
        else:
            chosen.append(backend)
    return chosen, skipped

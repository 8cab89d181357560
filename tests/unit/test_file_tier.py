"""The file tier on real files."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
from pathlib import Path

import pytest

from swapfs.errors import ConfigError, OperationError, TierIOError, TierNoSpace
from swapfs.host import syscalls
from swapfs.testing.pages import page
from swapfs.tiers import sector_ref
from swapfs.tiers.blob import Batch, check_blob
from swapfs.tiers.file import FileTier
from swapfs.tiers.seal import ChecksumSeal
from swapfs.tiers.segments import SEGMENT_SECTORS
from swapfs.units import FILE_BYTES_MAX, SECTOR_SIZE, MiB, PSector

SIZE = 4 * MiB


def _aligned(size: int = MiB + 8192) -> memoryview:
    return memoryview(mmap.mmap(-1, size))


def _batch(seed: int, count: int) -> Batch:
    batch = Batch(_aligned(MiB), ChecksumSeal())
    for number in range(count):
        payload = page("random", seed + number)[: 100 + number * 397 % 3997]
        batch.add(number, payload, 1, seed + number)
    return batch


@pytest.mark.parametrize("direct_io", ["auto", "off"])
def test_what_is_written_is_read_back(tmp_path: Path, direct_io: str) -> None:
    tier = FileTier(tmp_path / "back", SIZE, direct_io)
    assert os.stat(tmp_path / "back").st_mode & 0o777 == 0o600
    scratch = _aligned()
    for seed in (0, 1000):
        batch = _batch(seed, 100)
        extent = tier.allocate(SEGMENT_SECTORS)
        tier.write(extent, batch)
        for item in batch.items:
            view = tier.read(PSector(extent.sector + item.start_sector), item.sectors, scratch)
            ref = sector_ref.encode(0, item.length, item.checksum)
            payload, sequence = check_blob(view, item.slot, 1, ref, tier.seal)
            assert sequence == seed + item.slot
            assert payload == page("random", seed + item.slot)[: item.length]
        whole = tier.read(extent.sector, batch.sectors, scratch)
        assert whole == batch.view[: batch.sectors * SECTOR_SIZE]
    assert tier.stats().used_bytes == 2 * batch.sectors * SECTOR_SIZE
    tier.close()


def test_blocks_of_4_kib_are_read_whole(tmp_path: Path) -> None:
    tier = FileTier(tmp_path / "back", SIZE, "off")
    batch = _batch(3, 60)
    extent = tier.allocate(SEGMENT_SECTORS)
    tier.write(extent, batch)
    tier.block_sectors = 8
    scratch = _aligned()
    for item in batch.items:
        view = tier.read(PSector(extent.sector + item.start_sector), item.sectors, scratch)
        start = item.start_sector * SECTOR_SIZE
        assert view == batch.view[start : start + item.sectors * SECTOR_SIZE]
    tier.close()


def test_the_file_is_allocated_and_reused(tmp_path: Path) -> None:
    path = tmp_path / "back"
    tier = FileTier(path, SIZE)
    assert path.stat().st_size == SIZE
    assert path.stat().st_blocks * 512 >= SIZE
    tier.write(tier.allocate(SEGMENT_SECTORS), _batch(1, 3))
    tier.close()
    again = FileTier(path, 6 * MiB)
    assert path.stat().st_size == 6 * MiB
    again.close()


@pytest.mark.parametrize("where", [0, 1024, 32 * 1024, 64 * 1024 + 64])
def test_foreign_data_is_refused_and_kept(tmp_path: Path, where: int) -> None:
    path = tmp_path / "photos"
    content = bytes(where) + b"precious" + bytes(100)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds data that is not swapfs's"):
        FileTier(path, SIZE)
    assert path.read_bytes() == content


def test_a_file_in_use_is_refused(tmp_path: Path) -> None:
    tier = FileTier(tmp_path / "back", SIZE)
    with pytest.raises(OperationError, match="in use by another swapfs"):
        FileTier(tmp_path / "back", SIZE)
    tier.close()
    FileTier(tmp_path / "back", SIZE).close()


def test_a_failure_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(fd: int, offset: int, length: int) -> None:
        os.ftruncate(fd, 123)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(OperationError, match="No space left"):
        FileTier(tmp_path / "new", SIZE)
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").write_bytes(bytes(4096))
    with pytest.raises(OperationError, match="No space left"):
        FileTier(tmp_path / "old", SIZE)
    assert (tmp_path / "old").read_bytes() == bytes(4096)


def test_a_place_that_the_system_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(OperationError, match=r"backing file .*/tier: Operation not permitted"):
        FileTier(tmp_path / "tier", 8 * MiB)
    assert not (tmp_path / "tier").exists()


def test_sizes_that_cannot_work_are_refused(tmp_path: Path) -> None:
    for size in (2 * MiB, FILE_BYTES_MAX + MiB):
        with pytest.raises(ConfigError, match="bytes are too"):
            FileTier(tmp_path / "back", size)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("kind", ["directory", "missing", "symlink", "fifo"])
def test_places_that_are_no_file_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "back"
    if kind == "directory":
        path.mkdir()
    elif kind == "missing":
        path = tmp_path / "nowhere" / "back"
    elif kind == "symlink":
        path.symlink_to(tmp_path / "target")
    else:
        os.mkfifo(path)
    with pytest.raises((OperationError, ConfigError)):
        FileTier(path, SIZE)


def test_direct_io_that_is_insisted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = fcntl.fcntl

    def refuse(fd: int, command: int, flags: int = 0) -> object:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "made to fail")
        return allowed(fd, command, flags)

    monkeypatch.setattr("fcntl.fcntl", refuse)
    with pytest.raises(OperationError, match="no direct I/O"):
        FileTier(tmp_path / "back", SIZE, "on")
    assert not (tmp_path / "back").exists()
    tier = FileTier(tmp_path / "back", SIZE, "auto")
    assert not tier.stats().direct_io
    tier.close()


def test_short_and_failed_transfers_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = FileTier(tmp_path / "back", SIZE, "off")
    extent = tier.allocate(SEGMENT_SECTORS)
    os.truncate(tmp_path / "back", 1000)
    with pytest.raises(TierIOError, match="1000 of 4096 bytes"):
        tier.read(PSector(0), 8, _aligned())
    answers = iter((512, 0))
    monkeypatch.setattr(os, "pwritev", lambda *_: next(answers))
    with pytest.raises(TierIOError, match="512 of"):
        tier.write(extent, _batch(1, 5))

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwritev", broken)
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(TierIOError, match="Input/output error"):
        tier.write(extent, _batch(1, 5))
    with pytest.raises(TierIOError, match="Input/output error"):
        tier.read(PSector(0), 8, _aligned())
    assert tier.stats().used_bytes == extent.sectors * SECTOR_SIZE, "it is still the caller's"
    tier.mark_bad(extent)
    assert tier.stats().bad_bytes == extent.sectors * SECTOR_SIZE
    tier.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("before", [0, 512])
def test_no_space_is_told_from_a_broken_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, before: int
) -> None:
    """The kernel writes what it has room for, and says why only when asked for the rest."""
    tier = FileTier(tmp_path / "back", SIZE, "off")
    extent = tier.allocate(SEGMENT_SECTORS)
    asked: list[int] = []

    def full(fd: int, views: list[memoryview], offset: int) -> int:
        asked.append(offset)
        if before and len(asked) == 1:
            return before
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(TierNoSpace, match=os.strerror(number)):
        tier.write(extent, _batch(1, 5))
    assert asked == ([0, before] if before else [0])
    tier.close()


def test_a_limit_of_the_caller_is_no_broken_disk(tmp_path: Path) -> None:
    tier = FileTier(tmp_path / "back", SIZE, "off")
    extent = tier.allocate(SEGMENT_SECTORS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(TierNoSpace, match="File too large"):
            tier.write(extent, _batch(1, 5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tier.write(extent, _batch(1, 5))
    tier.close()


def test_a_device_that_is_not_there_becomes_no_file() -> None:
    missing = Path("/dev/swapfs-not-there")
    with pytest.raises(ConfigError, match="there is no device /dev/swapfs-not-there"):
        FileTier(missing, SIZE)
    assert not missing.exists()


@pytest.mark.parametrize(
    ("magic", "says"),
    [
        (0xEF53, None),
        (0x01021994, "in memory"),
        (0x6969, "on nfs: who serves that may need memory"),
        (0x794C7630, "on overlay: what lies below it cannot be seen"),
        (0x2FC12FC1, "on zfs, which writes each block to a new place"),
        (0x9123683E, "on btrfs, which writes each block to a new place"),  # no flag on this disk
    ],
)
def test_a_place_that_may_fail_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magic: int, says: str | None
) -> None:
    monkeypatch.setattr(syscalls, "file_system_type", lambda fd: magic)

    def no_flags(*_: object) -> bytes:
        raise OSError(errno.ENOTTY, "made to fail")

    monkeypatch.setattr("fcntl.ioctl", no_flags)
    for _ in range(2):  # made, and found
        tier = FileTier(tmp_path / "back", SIZE)
        found = tier.stats().cautions
        if says is None:
            assert found == ()
        else:
            (caution,) = found
            assert str(tmp_path / "back") in caution
            assert says in caution
        tier.close()

"""The mount is one directory with one file, and nothing about it can be changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.fuse.instance import Instance, Start, check, errno_of, punch, run

SIZE = 64 << 20
PAGE = 4096


@pytest.fixture(scope="module")
def instance(start_module: Start) -> Instance:
    return start_module("64M", "96M")


def test_one_file_owned_by_root(instance: Instance) -> None:
    assert os.listdir(instance.mountpoint) == ["swap"]
    found = instance.swap.stat()
    assert stat.S_ISREG(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (found.st_uid, found.st_gid, found.st_nlink) == (0, 0, 1)
    assert found.st_size == SIZE
    assert found.st_blocks * 512 == SIZE, "swapon refuses a file with holes"
    root = instance.mountpoint.stat()
    assert stat.S_ISDIR(root.st_mode)
    assert stat.S_IMODE(root.st_mode) == 0o700


def test_statfs_has_the_block_size_that_loop_needs(instance: Instance) -> None:
    found = os.statvfs(instance.mountpoint)
    assert found.f_bsize == PAGE
    assert found.f_blocks == SIZE // PAGE
    assert found.f_bfree == SIZE // PAGE


def test_df_sees_nothing_that_could_run_out(instance: Instance) -> None:
    fd = instance.open()
    os.pwrite(fd, os.urandom(SIZE // 2), 0)
    os.close(fd)
    shown = check("df", "--output=pcent,itotal,iused", instance.mountpoint)
    assert shown.split()[-3:] == ["0%", "0", "0"]


def test_unknown_names_do_not_exist(instance: Instance) -> None:
    for name in ("other", "swap2", "SWAP", "swap.tmp", "x" * 255):
        assert errno_of(os.stat, instance.mountpoint / name) == "ENOENT", name
    assert errno_of(os.open, instance.mountpoint / "other", os.O_RDONLY) == "ENOENT"


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("create", "EPERM"),
        ("mkdir", "EPERM"),
        ("mkfifo", "EPERM"),
        ("symlink", "EPERM"),
        ("link", "EPERM"),
        ("unlink", "EPERM"),
        ("rename", "EPERM"),
        ("rename over", "EPERM"),
        ("truncate shorter", "EPERM"),
        ("truncate longer", "EPERM"),
        ("chmod", "EPERM"),
        ("chown", "EPERM"),
        ("setxattr", "ENOTSUP"),
        ("readlink", "EINVAL"),
        ("listdir of the file", "ENOTDIR"),
        ("write to the directory", "EISDIR"),
    ],
)
def test_what_a_swap_file_must_not_suffer_is_refused(
    instance: Instance, what: str, expected: str, tmp_path: Path
) -> None:
    mnt, swap = instance.mountpoint, instance.swap
    calls = {
        "create": lambda: os.open(mnt / "new", os.O_CREAT | os.O_WRONLY),
        "mkdir": lambda: os.mkdir(mnt / "new"),
        "mkfifo": lambda: os.mkfifo(mnt / "new"),
        "symlink": lambda: os.symlink("swap", mnt / "new"),
        "link": lambda: os.link(swap, mnt / "new"),
        "unlink": lambda: os.unlink(swap),
        "rename": lambda: os.rename(swap, mnt / "new"),
        "rename over": lambda: os.rename(mnt / "swap", mnt / "swap2"),
        "truncate shorter": lambda: os.truncate(swap, SIZE - PAGE),
        "truncate longer": lambda: os.truncate(swap, SIZE + PAGE),
        "chmod": lambda: os.chmod(swap, 0o644),
        "chown": lambda: os.chown(swap, 1000, 1000),
        "setxattr": lambda: os.setxattr(swap, "user.a", b"b"),
        "readlink": lambda: os.readlink(swap),
        "listdir of the file": lambda: os.listdir(swap),
        "write to the directory": lambda: os.open(mnt, os.O_RDWR),
    }
    before = instance.swap.stat()
    assert errno_of(calls[what]) == expected
    after = instance.swap.stat()
    assert os.listdir(mnt) == ["swap"]
    assert (after.st_mode, after.st_size, after.st_uid) == (before.st_mode, SIZE, before.st_uid)
    assert instance.counters()["handler_errors"] == 0


def test_others_cannot_open_it(instance: Instance) -> None:
    done = run("setpriv", "--reuid=65534", "--clear-groups", "cat", instance.swap)
    assert done.returncode != 0
    assert "denied" in done.stderr


def test_truncate_to_its_own_size_keeps_the_data(instance: Instance) -> None:
    fd = instance.open()
    try:
        os.pwrite(fd, b"kept" * 1024, 0)
        os.ftruncate(fd, SIZE)
        assert os.pread(fd, PAGE, 0) == b"kept" * 1024
    finally:
        os.close(fd)


def test_opening_with_o_trunc_does_not_empty_it(instance: Instance) -> None:
    fd = instance.open()
    try:
        os.pwrite(fd, b"kept" * 1024, 0)
        refused = errno_of(instance.open, os.O_WRONLY | os.O_TRUNC)
        assert refused == "EPERM"
        assert os.pread(fd, PAGE, 0) == b"kept" * 1024
    finally:
        os.close(fd)


def test_sync_calls_succeed(instance: Instance) -> None:
    fd = instance.open()
    try:
        os.pwrite(fd, b"x" * PAGE, 0)
        os.fsync(fd)
        os.fdatasync(fd)
    finally:
        os.close(fd)  # flush
    check("sync", "--file-system", instance.swap)


def test_writes_end_at_the_end(instance: Instance) -> None:
    fd = instance.open()
    punch(fd, 0, SIZE)
    try:
        assert errno_of(os.pwrite, fd, b"x" * PAGE, SIZE) == "EFBIG"
        assert errno_of(os.pwrite, fd, b"x", SIZE + (1 << 40)) == "EFBIG"
        assert os.pwrite(fd, b"y" * 2 * PAGE, SIZE - PAGE) == PAGE, "a short write"
        assert os.pwrite(fd, b"z" * 100, SIZE - 10) == 10
        assert os.pread(fd, 2 * PAGE, SIZE - PAGE) == b"y" * (PAGE - 10) + b"z" * 10
        assert instance.swap.stat().st_size == SIZE
        punch(fd, SIZE - PAGE, PAGE)
        slots = instance.status()["slots"]
        assert sum(slots.values()) == slots["empty"] == SIZE // PAGE, "nothing beyond the end"
    finally:
        os.close(fd)


def test_reads_end_at_the_end(instance: Instance) -> None:
    fd = instance.open()
    try:
        assert os.pread(fd, PAGE, SIZE) == b""
        assert os.pread(fd, PAGE, SIZE + (1 << 40)) == b""
        assert os.pread(fd, 3 * PAGE, SIZE - PAGE) == bytes(PAGE)
        assert os.pread(fd, 100, SIZE - 10) == bytes(10)
        assert os.lseek(fd, 0, os.SEEK_END) == SIZE
    finally:
        os.close(fd)


def test_a_foreground_mount_ends_with_its_unmount(make_instance: Start) -> None:
    instance = make_instance()
    instance.mount_in_foreground("--size", "64M", "--pool", "96M")
    assert instance.foreground is not None
    assert instance.foreground.poll() is None
    check("umount", instance.mountpoint)
    out, err = instance.foreground.communicate(timeout=30)
    assert instance.foreground.returncode == 0, (out, err)
    instance.assert_gone()


def test_down_leaves_nothing(start: Start) -> None:
    instance = start("64M", "96M")
    loop = instance.attach_loop()
    instance.down()
    assert loop.name not in check("losetup", "--list", "--noheadings", "--output", "NAME")

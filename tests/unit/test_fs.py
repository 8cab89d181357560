"""The namespace's handlers, called as pyfuse3 calls them."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import stat
from typing import Any

import pytest

from swapfs.config.paths import SWAP_INODE
from swapfs.fs import SWAP_NAME, Namespace
from swapfs.session import pyfuse3

SIZE = 1 << 20
ROOT = pyfuse3.ROOT_INODE
CTX = None


class Bugs:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def bugs() -> Bugs:
    return Bugs()


@pytest.fixture
def names(bugs: Bugs) -> Namespace:
    return Namespace([("swap", SIZE)], bugs)


class Fields:
    """The fields of a SETATTR that are to be set."""

    def __init__(self, *wanted: str) -> None:
        self.wanted = {f"update_{name}" for name in wanted}

    def __getattr__(self, name: str) -> bool:
        return name in self.wanted


async def errno_of(call: Any) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await call
    number: int = caught.value.errno
    return number


async def test_lookup(names: Namespace) -> None:
    found = await names.lookup(ROOT, SWAP_NAME, CTX)
    assert (found.st_ino, found.st_size, found.st_mode) == (SWAP_INODE, SIZE, stat.S_IFREG | 0o600)
    assert (await names.lookup(ROOT, b"..", CTX)).st_ino == ROOT
    for parent, name in ((ROOT, b"swap2"), (ROOT, b""), (SWAP_INODE, SWAP_NAME), (ROOT, b"\xff")):
        assert await errno_of(names.lookup(parent, name, CTX)) == errno.ENOENT


async def test_getattr(names: Namespace) -> None:
    found = await names.getattr(SWAP_INODE, CTX)
    assert (found.st_uid, found.st_gid, found.st_nlink) == (0, 0, 1)
    assert found.st_blocks * 512 == SIZE
    assert stat.S_ISDIR((await names.getattr(ROOT, CTX)).st_mode)
    assert await errno_of(names.getattr(99, CTX)) == errno.ENOENT


@pytest.mark.parametrize("field", ["mode", "uid", "gid"])
async def test_attributes_that_stay(names: Namespace, field: str) -> None:
    attr = pyfuse3.EntryAttributes()
    call = names.setattr(SWAP_INODE, attr, Fields(field), None, CTX)
    assert await errno_of(call) == errno.EPERM


async def test_the_size_stays(names: Namespace) -> None:
    attr = pyfuse3.EntryAttributes()
    for size in (0, SIZE - 1, SIZE + 4096):
        attr.st_size = size
        call = names.setattr(SWAP_INODE, attr, Fields("size"), None, CTX)
        assert await errno_of(call) == errno.EPERM
    attr.st_size = SIZE
    assert (await names.setattr(SWAP_INODE, attr, Fields("size"), None, CTX)).st_size == SIZE
    assert (await names.setattr(SWAP_INODE, attr, Fields("mtime"), None, CTX)).st_size == SIZE


async def test_open(names: Namespace) -> None:
    opened = await names.open(SWAP_INODE, os.O_RDWR, CTX)
    assert opened.direct_io, "else the page cache holds every page a second time"
    assert await errno_of(names.open(SWAP_INODE, os.O_RDWR | os.O_TRUNC, CTX)) == errno.EPERM
    assert await errno_of(names.open(ROOT, os.O_RDWR, CTX)) == errno.EISDIR
    assert await names.opendir(ROOT, CTX) == ROOT
    assert await errno_of(names.opendir(SWAP_INODE, CTX)) == errno.ENOTDIR


async def test_readdir(names: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[bytes, int]] = []

    def reply(token: object, name: bytes, attr: Any, next_id: int) -> bool:
        said.append((name, next_id))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    await names.readdir(ROOT, 0, None)
    await names.readdir(ROOT, 1, None)
    assert said == [(b"swap", 1)]


async def test_several_files(bugs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Namespace([("swap", SIZE), ("batch", 2 * SIZE)], bugs)
    found = await names.lookup(ROOT, b"batch", CTX)
    assert (found.st_ino, found.st_size) == (SWAP_INODE + 1, 2 * SIZE)
    assert (await names.getattr(SWAP_INODE + 1, CTX)).st_size == 2 * SIZE
    assert (await names.open(SWAP_INODE + 1, os.O_RDWR, CTX)).fh == SWAP_INODE + 1
    assert await errno_of(names.getattr(SWAP_INODE + 2, CTX)) == errno.ENOENT
    assert (await names.statfs(CTX)).f_blocks == 3 * SIZE // 4096
    said: list[tuple[bytes, int]] = []

    def reply(token: object, name: bytes, attr: Any, next_id: int) -> bool:
        said.append((name, next_id))
        return len(said) != 2  # the second does not fit

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    await names.readdir(ROOT, 0, None)
    await names.readdir(ROOT, 1, None)
    await names.readdir(ROOT, 2, None)
    assert said == [(b"swap", 1), (b"batch", 2), (b"batch", 2)]


async def test_statfs(names: Namespace) -> None:
    found = await names.statfs(CTX)
    assert (found.f_bsize, found.f_blocks) == (4096, SIZE // 4096)
    assert found.f_bfree == found.f_bavail == found.f_blocks, "nothing that df would alarm of"
    assert found.f_files == found.f_ffree == found.f_favail == 0


async def test_access(names: Namespace) -> None:
    assert await names.access(SWAP_INODE, os.R_OK | os.W_OK, CTX)
    assert not await names.access(SWAP_INODE, os.X_OK, CTX)
    assert await names.access(ROOT, os.X_OK, CTX)


async def test_calls_with_nothing_to_do(names: Namespace) -> None:
    await names.flush(SWAP_INODE)
    await names.fsync(SWAP_INODE, True)
    await names.fsyncdir(ROOT, False)
    await names.release(SWAP_INODE)
    await names.releasedir(ROOT)
    await names.forget([(SWAP_INODE, 1)])


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (handler, errno.EPERM)
        for handler in ("create", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename")
    ]
    + [(handler, errno.EIO) for handler in ("read", "write")]
    + [(handler, errno.EOPNOTSUPP) for handler in ("setxattr", "getxattr", "listxattr")]
    + [("removexattr", errno.EOPNOTSUPP), ("readlink", errno.EINVAL)],
)
async def test_refused(names: Namespace, handler: str, expected: int) -> None:
    assert await errno_of(getattr(names, handler)(ROOT, b"swap", CTX)) == expected


async def test_a_bug_is_eio_logged_and_counted(
    bugs: Bugs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug() -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(pyfuse3, "StatvfsData", bug)
    with caplog.at_level(logging.ERROR):
        assert await errno_of(Namespace([("swap", SIZE)], bugs).statfs(CTX)) == errno.EIO
    assert "ZeroDivisionError: planted" in caplog.text
    assert bugs.count == 1


def test_no_operation_of_pyfuse3_is_left_to_its_default() -> None:
    """A default raises ENOSYS, after which the kernel does not ask again: decide each one."""
    theirs = {
        name for name, _ in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction)
    }
    ours = set(vars(Namespace))
    # poll is new in pyfuse3 3.5; after ENOSYS the kernel says itself: always ready
    assert (theirs | {"poll"}) - ours == {"poll"}

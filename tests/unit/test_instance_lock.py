"""Who holds an instance's lock: asked without taking it, kept over fork and hand-over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfs.host import instance_lock, syscalls

UPGRADES = """
import os, sys
from swapfs.host import instance_lock
assert instance_lock.acquire_upgrade(os.open(sys.argv[1], os.O_RDWR))
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.lock"


def acquire(path: Path) -> int:
    fd = instance_lock.acquire(path)
    assert fd is not None
    return fd


def test_only_one_holds_it_until_it_is_closed(path: Path) -> None:
    assert not instance_lock.is_held(path)
    fd = acquire(path)
    assert instance_lock.is_held(path)
    assert instance_lock.acquire(path) is None
    os.close(fd)
    assert not instance_lock.is_held(path)
    os.close(acquire(path))


def test_an_instance_may_start_while_somebody_asks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    close = os.close
    started: list[int | None] = []

    def start_then_close(fd: int) -> None:
        monkeypatch.setattr(os, "close", close)
        started.append(instance_lock.acquire(path))
        close(fd)

    monkeypatch.setattr(os, "close", start_then_close)
    instance_lock.is_held(path)
    (fd,) = started
    assert fd is not None, "who asked was in the way"
    assert instance_lock.is_held(path)
    os.close(fd)


def test_it_lives_on_in_a_child_and_in_a_copy_of_the_descriptor(path: Path) -> None:
    fd = acquire(path)
    keeper = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(keeper, stdin=subprocess.PIPE, pass_fds=(fd,)) as child:
        pidfd = os.pidfd_open(child.pid)
        taken = syscalls.pidfd_getfd(pidfd, fd)
        os.close(pidfd)
        os.close(fd)
        assert instance_lock.is_held(path), "the child has it still"
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
    assert instance_lock.is_held(path), "so has the copy"
    os.close(taken)
    assert not instance_lock.is_held(path)


@pytest.fixture
def upgrading(path: Path) -> Iterator[subprocess.Popen[str]]:
    path.touch()
    with subprocess.Popen(
        [sys.executable, "-c", UPGRADES, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield process


def test_an_upgrade_has_a_lock_of_its_own_and_a_pid(
    path: Path, upgrading: subprocess.Popen[str]
) -> None:
    assert not instance_lock.is_held(path)
    fd = acquire(path)
    assert instance_lock.upgrader(fd) == upgrading.pid
    assert not instance_lock.acquire_upgrade(fd)
    assert upgrading.stdin is not None
    upgrading.stdin.close()
    upgrading.wait()
    assert instance_lock.upgrader(fd) is None
    assert instance_lock.acquire_upgrade(fd)
    other = os.open(path, os.O_RDONLY)
    os.close(other)  # ends the upgrade's lock, as POSIX has it, and not the instance's
    assert instance_lock.is_held(path)
    os.close(fd)


def test_no_lock_file_is_no_instance(path: Path) -> None:
    assert not instance_lock.is_held(path)
    assert not path.exists()

"""A disk that does not answer: who needs it waits, nobody else does.

The disk is a loop device on another instance, whose server is stopped for a while.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from swapfs.testing.pages import page as make_page
from tests.fuse.instance import Instance, Start, run, wait_until

PAGE = 4096
ON_DISK = 256
READERS = 40
"""More than the 12 requests that a FUSE connection has under way unless it is told otherwise."""
WAIT_S = 20


def page(slot: int) -> bytes:
    """Return what *slot* holds."""
    return make_page("random", slot)


class Disk:
    """A block device that the instance behind it serves."""

    def __init__(self, instance: Instance) -> None:
        self.path = instance.attach_loop()
        self._server = int(instance.status()["server_pid"])

    def hang(self) -> None:
        """Answer nothing from now on."""
        os.kill(self._server, signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer what has come meanwhile, and what comes."""
        os.kill(self._server, signal.SIGCONT)


@pytest.fixture
def disk(start: Start) -> Iterator[Disk]:
    """A disk that answers again when the test is over."""
    disk = Disk(start("64M", "96M"))
    yield disk
    disk.go_on()


@pytest.fixture
def instance(start: Start, disk: Disk) -> Instance:
    """An instance with pages 0 to ON_DISK - 1 on the disk and as many in memory behind them."""
    instance = start("32M", "8M", None, "--file", f"{disk.path}:64M", "--no-promote")
    with open(instance.open(), "r+b", buffering=0) as swap:
        for slot in range(ON_DISK):
            os.pwrite(swap.fileno(), page(slot), slot * PAGE)
        moved = 0
        while moved < ON_DISK:
            moved += instance.demote(ON_DISK - moved)
        for slot in range(ON_DISK, 2 * ON_DISK):
            os.pwrite(swap.fileno(), page(slot), slot * PAGE)
    return instance


def _read(fd: int, slot: int, good: list[int]) -> None:
    with mmap.mmap(-1, PAGE) as buffer:
        os.preadv(fd, [buffer], slot * PAGE)
        if buffer[:] == page(slot):
            good.append(slot)


def test_pages_in_memory_are_read_while_many_wait_for_the_disk(
    instance: Instance, disk: Disk
) -> None:
    device = os.open(instance.attach_loop(), os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    from_disk: list[int] = []
    from_memory: list[int] = []
    # Far enough from one another that no read of the disk serves two of them.
    slots = range(0, ON_DISK, ON_DISK // READERS)
    disk.hang()
    readers = [threading.Thread(target=_read, args=(device, s, from_disk)) for s in slots]
    in_memory = threading.Thread(target=_read, args=(device, ON_DISK, from_memory))
    try:
        for reader in readers:
            reader.start()
        wait_until(
            lambda: instance.status()["requests_in_flight"] >= len(readers), "all to wait", WAIT_S
        )
        in_memory.start()
        in_memory.join(WAIT_S)
        answered = not in_memory.is_alive()
    finally:
        disk.go_on()
        for thread in (*readers, in_memory):
            if thread.ident is not None:
                thread.join()
        os.close(device)
        instance.detach_loops()
    assert answered
    assert [g["ok"] for g in instance.status()["guards"] if g["name"] == "max_background"] == [True]
    assert from_memory == [ON_DISK]
    assert sorted(from_disk) == list(slots)


def test_a_smaller_pool_is_given_up_while_the_disk_hangs(instance: Instance, disk: Disk) -> None:
    """Else it would wait for ever, and with it every upgrade and every change of a tier."""
    slots = range(2 * ON_DISK, 2 * ON_DISK + 1200)
    with open(instance.open(), "r+b", buffering=0) as swap:
        for slot in slots:
            os.pwrite(swap.fileno(), page(slot), slot * PAGE)
    disk.hang()
    try:
        done = instance.cli("resize", "--pool", "4M", "--force")
        assert done.returncode == 1
        assert "a tier does not answer; it is as it was" in done.stderr
        assert done.stderr.count("\n") == 1
        where = ("--runtime-dir", str(instance.runtime_dir))
        done = run(*instance.command, "tier", "set", "file", "priority=3", instance.name, *where)
        assert done.returncode == 0, done.stderr
    finally:
        disk.go_on()
    done = instance.cli("resize", "--pool", "4M", "--force")
    assert done.returncode == 0, done.stderr
    with open(instance.open(), "rb", buffering=0) as swap:
        for slot in slots:
            assert os.pread(swap.fileno(), PAGE, slot * PAGE) == page(slot)

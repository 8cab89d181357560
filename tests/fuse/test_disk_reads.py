"""Pages on a disk, read through the mount: in order, at random, and over the death of a server."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import pytest

from swapfs.testing.pages import page
from tests.fuse.instance import Instance, Start, wait_until
from tests.fuse.test_recovery import recovered

PAGE = 4096
SLOTS = 2048
RUN = 8
"""What the kernel reads at once when it swaps in (vm.page-cluster 3)."""
KINDS = ("heap", "text", "random")


def content(slot: int) -> bytes:
    return page(KINDS[slot % len(KINDS)], slot)


@pytest.fixture
def instance(start: Start) -> Iterator[Instance]:
    """An instance whose pages are all on the disk."""
    instance = start("32M", "16M", "64M")
    with open(instance.open(), "r+b", buffering=0) as swap:
        for slot in range(SLOTS):
            os.pwrite(swap.fileno(), content(slot), slot * PAGE)
    moved = 0
    while moved < SLOTS:
        moved += instance.demote(SLOTS - moved)
    yield instance
    instance.detach_loops()


def read_in_order(fd: int) -> None:
    for slot in range(0, SLOTS, RUN):
        wanted = b"".join(content(at) for at in range(slot, slot + RUN))
        assert os.pread(fd, RUN * PAGE, slot * PAGE) == wanted


def test_pages_read_in_order_take_few_reads_of_the_disk(instance: Instance) -> None:
    fd = instance.open()
    before = instance.counters()
    read_in_order(fd)
    os.close(fd)
    after = instance.counters()
    pages = after["read_file_pages"] - before["read_file_pages"]
    reads = after["file_read_ops"] - before["file_read_ops"]
    assert pages == SLOTS
    assert 0 < reads < SLOTS // RUN // 3
    assert after["read_ahead_pages"] > SLOTS // 2
    assert after["read_bytes"] - before["read_bytes"] == SLOTS * PAGE
    assert instance.status()["requests_in_flight"] == 0


def test_a_server_that_dies_over_it_costs_no_page(instance: Instance) -> None:
    fd, rng = instance.open(), random.Random(3)
    for _ in range(3):
        first = instance.status()["server_pid"]
        read_in_order(fd)
        os.kill(first, signal.SIGKILL)
        for slot in rng.sample(range(SLOTS), 50):
            assert os.pread(fd, PAGE, slot * PAGE) == content(slot)
        wait_until(lambda first=first: recovered(instance, first), "another server")
    read_in_order(fd)
    os.close(fd)


def test_what_is_written_meanwhile_is_read(instance: Instance) -> None:
    fd, rng = instance.open(), random.Random(5)
    new: dict[int, bytes] = {}
    for slot in range(SLOTS):
        changed = min(SLOTS - 1, slot + rng.randrange(1, 80))
        new[changed] = page("heap", SLOTS + slot)
        os.pwrite(fd, new[changed], changed * PAGE)
        if slot % 100 == 0:
            instance.demote(100)
        assert os.pread(fd, PAGE, slot * PAGE) == new.get(slot, content(slot)), slot
    os.close(fd)

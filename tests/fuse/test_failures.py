"""Each failure to start is one line and an exit code, and leaves nothing; no bug ends a mount."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swapfs.host import loop, mounts, proc
from swapfs.testing.pages import page
from swapfs.tiers import sector_ref
from swapfs.units import CLUSTER_SLOTS, SECTOR_SIZE
from swapfs.vlayer.entry import is_below, ref_of
from tests.fuse.instance import (
    Instance,
    Start,
    check,
    errno_of,
    fallocate,
    processes_of,
    punch,
    run,
    wait_until,
)

PAGE = 4096
PART = 512
"""Of a page: such a read goes through Python, wherever the page is."""
SIZES = ("--size", "64M", "--pool", "96M")


@pytest.fixture
def others() -> Iterator[list[Callable[[], object]]]:
    """Things to take down again after the test."""
    undo: list[Callable[[], object]] = []
    yield undo
    for step in reversed(undo):
        step()


def traces(directory: Path) -> list[str]:
    """Return the mounts below *directory* and the loop devices on files below it."""
    found = [str(entry.mountpoint) for entry in mounts.entries()]
    found += [loop.backing_file for loop in loop.devices()]
    return [path for path in found if path.startswith(f"{directory}/")]


def assert_refused(instance: Instance, code: int, says: str, *options: object) -> None:
    """Check that mounting fails with one line that contains *says* and leaves nothing."""
    before = traces(instance.directory)
    files = sorted(path for path in instance.directory.iterdir() if path.is_file())
    done = run(*instance.mount_command(*options))
    assert (done.returncode, done.stdout) == (code, ""), done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("swapfs: ")
    assert says in lines[0]
    assert traces(instance.directory) == before
    assert processes_of(instance.runtime_dir) == []
    assert sorted(path for path in instance.directory.iterdir() if path.is_file()) == files
    assert not (instance.runtime_dir / f"{instance.name}.sock").exists()
    assert not (instance.runtime_dir / f"{instance.name}.json").exists()


def test_backing_directory_is_missing(make_instance: Start) -> None:
    instance = make_instance()
    file = f"{instance.directory}/missing/x:64M"
    assert_refused(instance, 2, "no directory", *SIZES, "--file", file)


def test_backing_file_holds_something_else(make_instance: Start) -> None:
    instance = make_instance()
    instance.backing.write_bytes(b"letters to a friend" * 1000)
    before = instance.backing.read_bytes()
    assert_refused(instance, 2, "not swapfs", *SIZES, "--file", f"{instance.backing}:64M")
    assert instance.backing.read_bytes() == before


def test_backing_file_has_no_room(make_instance: Start, others: list[Callable[[], object]]) -> None:
    instance = make_instance()
    small = instance.directory / "small"
    small.mkdir()
    check("mount", "-t", "tmpfs", "-o", "size=16M", "none", small)
    others.append(lambda: check("umount", small))
    assert_refused(instance, 2, "free", *SIZES, "--file", f"{small}/backing:64M")
    assert list(small.iterdir()) == []


def test_metrics_port_is_taken(make_instance: Start) -> None:
    instance = make_instance()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = f"{instance.backing}:64M"
        options = (*SIZES, "--metrics", f"127.0.0.1:{port}", "--file", file)
        assert_refused(instance, 1, str(port), *options)
    instance.mount(*SIZES, "--file", file)


def test_mount_point_is_missing(make_instance: Start) -> None:
    instance = make_instance()
    instance.mountpoint.rmdir()
    assert_refused(instance, 2, str(instance.mountpoint), *SIZES)


def test_mount_point_is_busy(make_instance: Start, others: list[Callable[[], object]]) -> None:
    instance = make_instance()
    check("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", instance.mountpoint)
    others.append(lambda: check("umount", instance.mountpoint))
    assert_refused(instance, 2, "busy", *SIZES)


def test_mount_point_is_a_file(make_instance: Start) -> None:
    instance = make_instance()
    instance.mountpoint.rmdir()
    instance.mountpoint.touch()
    assert_refused(instance, 2, "not a directory", *SIZES)


def test_second_instance_of_the_same_name(start: Start) -> None:
    instance = start("64M", "96M")
    status = instance.status()
    done = run(*instance.mount_command(*SIZES))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert instance.status()["server_pid"] == status["server_pid"]


def test_second_instance_on_the_same_backing_file(start: Start, make_instance: Start) -> None:
    first, second = start("64M", "96M", "64M"), make_instance()
    fd = first.open()
    os.pwrite(fd, page("heap", 1), 0)
    first.demote(1)
    file = f"{first.backing}:64M"
    assert_refused(second, 1, "in use", *SIZES, "--file", file)
    assert first.backing.exists()
    assert os.pread(fd, PAGE, 0) == page("heap", 1)
    os.close(fd)


def test_pool_is_larger_than_memory(make_instance: Start) -> None:
    pool = proc.memory_total_bytes() * 2
    assert_refused(make_instance(), 2, "memory", "--size", "64M", "--pool", pool // PAGE * PAGE)


def test_size_is_larger_than_the_room(make_instance: Start) -> None:
    instance = make_instance()
    file = f"{instance.backing}:64M"
    assert_refused(instance, 2, "--overcommit", "--size", "1G", "--pool", "64M", "--file", file)


def test_sizes_that_are_none(make_instance: Start) -> None:
    assert_refused(make_instance(), 2, "size", "--size", "4097", "--pool", "96M")
    assert_refused(make_instance(), 2, "size", "--size", "many", "--pool", "96M")
    assert_refused(make_instance(), 2, "pool", "--size", "64M", "--pool", "1")


def test_unknown_option(make_instance: Start) -> None:
    assert_refused(make_instance(), 2, "--bogus", *SIZES, "--bogus")


def test_foreground_failures_are_one_line_too(make_instance: Start) -> None:
    instance = make_instance()
    instance.backing.write_bytes(b"letters to a friend" * 1000)
    file = f"{instance.backing}:64M"
    assert_refused(instance, 2, "not swapfs", *SIZES, "--file", file, "--foreground")


# ---- bugs in handlers, put there by a module that every Python process imports at its start ----

BUGS = """
import sys

if "swapfs.monitor" in sys.orig_argv:
    from swapfs.session import pyfuse3
    from swapfs.vlayer.fetch import Fetcher
    from swapfs.vlayer.layer import VirtualSlotLayer

    def faulty(owner, name, slot_wanted):
        right = getattr(owner, name)

        def wrong(self, slot, *rest, **options):
            if slot == slot_wanted:
                raise RuntimeError(f"planted in {name}")
            return right(self, slot, *rest, **options)

        setattr(owner, name, wrong)

    faulty(VirtualSlotLayer, "load_run", 13)
    faulty(VirtualSlotLayer, "store_run", 14)
    faulty(VirtualSlotLayer, "patch", 15)
    faulty(VirtualSlotLayer, "discard_run", 16)
    faulty(Fetcher, "load", 17)

    def no_answer():
        raise RuntimeError("planted in statfs")

    pyfuse3.StatvfsData = no_answer
"""


@pytest.fixture
def buggy(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(BUGS)
    monkeypatch.setenv("PYTHONPATH", str(hook), prepend=os.pathsep)
    instance = start("64M", "96M", "64M")
    monkeypatch.undo()
    return instance


def test_a_bug_in_a_handler_is_one_eio(buggy: Instance) -> None:
    fd = buggy.open()
    try:
        data = b"".join(page("heap", number) for number in range(13))
        assert os.pwrite(fd, data, 0) == len(data)
        os.pwrite(fd, page("heap", 17), 17 * PAGE)
        buggy.demote(100)
        calls: dict[str, Callable[[], object]] = {
            "read": lambda: os.pread(fd, PART, 13 * PAGE),
            "write": lambda: os.pwrite(fd, data[:PAGE], 14 * PAGE),
            "partial write": lambda: os.pwrite(fd, b"x", 15 * PAGE),
            "discard": lambda: punch(fd, 16 * PAGE, PAGE),
            "read from the file": lambda: os.pread(fd, PART, 17 * PAGE),
            "statfs": lambda: os.statvfs(buggy.mountpoint),
        }
        server = buggy.status()["server_pid"]
        for number, (what, call) in enumerate(calls.items(), 1):
            assert errno_of(call) == "EIO", what
            assert buggy.counters()["handler_errors"] == number, what
        for where in ("load_run", "store_run", "patch", "discard_run", "load", "statfs"):
            said = f"planted in {where}\n"
            wait_until(lambda said=said: said in buggy.log(), f"{said!r} in the log")
        assert buggy.log().count("Traceback") == len(calls)
        assert os.pread(fd, len(data), 0) == data, "everything else is served on"
        assert buggy.status()["server_pid"] == server
        assert buggy.status()["requests_in_flight"] == 0
    finally:
        os.close(fd)


def test_bugs_under_load_end_nothing(buggy: Instance) -> None:
    """Requests that fail beside requests that do not, from several threads."""
    fd = buggy.open()
    wrong: list[str] = []

    def good(slot: int) -> None:
        for version in range(200):
            data = page("heap", slot * 1000 + version % 5)
            os.pwrite(fd, data, slot * PAGE)
            if os.pread(fd, PAGE, slot * PAGE) != data:
                wrong.append(f"slot {slot}")

    def bad() -> None:
        answers = {errno_of(os.pread, fd, PART, 13 * PAGE) for _ in range(100)}
        wrong.extend(answers - {"EIO"})

    threads = [threading.Thread(target=good, args=(slot,)) for slot in (100, 200, 300)]
    threads.append(threading.Thread(target=bad))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    assert wrong == []
    assert buggy.counters()["handler_errors"] == 100


def test_no_room_anywhere_refuses_the_write_and_keeps_the_rest(start: Start) -> None:
    instance = start("256M", "4M", None, "--overcommit", 1000)
    fd = instance.open()
    written = 0
    try:
        while errno_of(os.pwrite, fd, page("random", written), written * PAGE) == "":
            written += 1
            assert written < 1024, "4 MiB hold no more than 1024 random pages"
        assert errno_of(os.pwrite, fd, page("random", 0), written * PAGE) == "ENOSPC"
        assert written > 800
        for slot in range(written):
            assert os.pread(fd, PAGE, slot * PAGE) == page("random", slot)
        assert os.pread(fd, PAGE, written * PAGE) == bytes(PAGE)
        counters = instance.counters()
        assert counters["failed_write_no_room"] == 2
        punch(fd, 0, 64 * PAGE)
        assert os.pwrite(fd, page("random", 1), written * PAGE) == PAGE
    finally:
        os.close(fd)


def test_a_damaged_blob_is_eio_for_its_slot_only(start: Start) -> None:
    """Bytes that rot in the backing file: never wrong data, never zeros (I4)."""
    instance = start("64M", "16M", "128M", "--file-direct-io", "off")
    fd = instance.open()
    pages = [page("random", number) for number in range(64)]
    try:
        os.pwrite(fd, b"".join(pages), 0)
        assert instance.demote(64) == 64
        with instance.backing.open("r+b") as backing:
            backing.seek(sector_of(instance, 32) * SECTOR_SIZE + 100)
            backing.write(b"rotten")
        assert errno_of(os.pread, fd, PAGE, 32 * PAGE) == "EIO"
        for slot in (*range(32), *range(33, 64)):
            assert os.pread(fd, PAGE, slot * PAGE) == pages[slot], slot
        assert os.pread(fd, 64 * PAGE, 0) == b"".join(pages[:32]), "short, up to the damage"
        counters = instance.counters()
        assert counters["failed_read_checksum"] >= 1
        assert counters["handler_errors"] == 0
        os.pwrite(fd, pages[0], 32 * PAGE)
        assert os.pread(fd, PAGE, 32 * PAGE) == pages[0], "a write mends it"
    finally:
        os.close(fd)


def sector_of(instance: Instance, slot: int) -> int:
    """Return the sector of the backing file where the blob of *slot* begins."""
    region = instance.region()
    try:
        cluster, index = divmod(slot, CLUSTER_SLOTS)
        table_page = region.directory[cluster] - 1
        word = region.arena_words[table_page * CLUSTER_SLOTS + index]
    finally:
        region.close()
    assert is_below(word)
    return sector_ref.sector(ref_of(word))


def test_fallocate_of_a_read_only_descriptor_is_refused(start: Start) -> None:
    instance = start("64M", "96M")
    fd = instance.open(os.O_RDONLY)
    try:
        assert errno_of(fallocate, fd, 3, 0, PAGE) == "EBADF"
        assert errno_of(os.pwrite, fd, b"x", 0) == "EBADF"
    finally:
        os.close(fd)

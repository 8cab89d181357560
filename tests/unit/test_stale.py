"""Telling what a dead instance left from what a living one uses, on fake /proc and /sys trees."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from swapfs.command import stale
from swapfs.command.stale import Remembered
from swapfs.host import instance_lock, loop, mounts, proc
from swapfs.host.loop import FileId
from swapfs.wire import state_file

MOUNTED = "40 27 0:9 / {} rw - fuse.swapfs swapfs:{} rw\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/block").mkdir(parents=True)
    (tmp_path / "proc/swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")
    mounts = "27 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + MOUNTED.format("/run/live", "x")
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    (tmp_path / "var").mkdir()
    (tmp_path / "var/swap").touch()
    return tmp_path


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, FileId]:
    """What the kernel answers by the name of the device."""
    files: dict[str, FileId] = {}
    monkeypatch.setattr(loop, "read_backing_id", lambda node: files[node.name])
    return files


def add_loop(root: Path, number: int, backing: str, sequence: int = 0) -> None:
    block = root / f"sys/block/loop{number}"
    (block / "loop").mkdir(parents=True)
    (block / "queue").mkdir()
    (block / "loop/backing_file").write_text(backing + "\n")
    for name in ("loop/dio", "queue/discard_max_bytes", "queue/logical_block_size"):
        (block / name).write_text("1\n")
    (block / "diskseq").write_text(f"{sequence}\n")


def add_swap(root: Path, path: str) -> None:
    with (root / "proc/swaps").open("a") as swaps:
        swaps.write(f"{path} partition 4 0 1\n")


@pytest.mark.parametrize("backing", ["/run/live/swap", "/var/swap"])
def test_a_served_swap_area_is_no_ghost(root: Path, backing: str) -> None:
    add_loop(root, 7, backing)
    add_swap(root, "/dev/loop7")
    assert stale.ghost_swaps(root=root) == []


@pytest.mark.parametrize(
    ("backing", "says"),
    [
        ("/run/gone/swap", "nothing is mounted that holds its backing file /run/gone/swap"),
        ("/swap", "nothing is mounted"),  # what the kernel shows after umount -l
        ("/var/old (deleted)", "its backing file /var/old is deleted"),
        ("/run/live/swap (deleted)", "its backing file /run/live/swap is deleted"),
    ],
)
def test_a_swap_area_without_its_file_is_a_ghost(root: Path, backing: str, says: str) -> None:
    add_loop(root, 7, backing)
    add_loop(root, 8, backing)  # no swap on this one: harmless
    add_swap(root, "/dev/loop7")
    (ghost,) = stale.ghost_swaps(root=root)
    assert ghost.device == Path("/dev/loop7")
    assert says in ghost.reason


def test_a_mount_without_its_daemon_is_a_ghost(root: Path) -> None:
    add_loop(root, 7, "/run/live/swap")
    add_swap(root, "/dev/loop7")
    (ghost,) = stale.ghost_swaps([instance(alive=False)], root)
    assert "the daemon that served /run/live/swap is gone" in ghost.reason
    assert stale.ghost_swaps([instance(alive=True)], root) == []
    elsewhere = dataclasses.replace(instance(alive=False), mountpoint=Path("/run/other"))
    assert stale.ghost_swaps([elsewhere], root) == []


def instance(*, alive: bool, sequence: int | None = None) -> Remembered:
    attachments = frozenset([("/dev/loop7", sequence)] if sequence else [])
    return Remembered("x", alive, Path("/run/live"), os.makedev(0, 9), attachments)


@pytest.mark.parametrize("alive", [True, False])
def test_a_lazy_unmount_makes_no_ghost_of_what_is_served(
    root: Path, files: dict[str, FileId], alive: bool
) -> None:
    files["loop7"] = FileId(os.makedev(0, 9), 2)
    add_loop(root, 7, "/swap", sequence=5)
    (root / "swap").touch()  # another one, that the cut path seems to mean
    add_swap(root, "/dev/loop7")
    ghosts = stale.ghost_swaps([instance(alive=alive, sequence=5)], root)
    assert len(ghosts) == (0 if alive else 1)
    (nobodys,) = stale.ghost_swaps([], root)
    assert "nothing is mounted" in nobodys.reason


def test_without_root_the_attachment_tells(root: Path) -> None:
    add_loop(root, 7, "/swap", sequence=5)
    add_swap(root, "/dev/loop7")
    assert stale.ghost_swaps([instance(alive=True, sequence=5)], root) == []
    assert len(stale.ghost_swaps([instance(alive=True, sequence=4)], root)) == 1


@pytest.mark.parametrize("other", ["40 1 0:9 / /mnt rw - fuse.swapfs swapfs:y rw", None])
def test_a_dead_instance_has_not_what_now_has_the_number_of_its_mount(
    root: Path, files: dict[str, FileId], other: str | None
) -> None:
    files["loop7"] = FileId(os.makedev(0, 9), 2)
    add_loop(root, 7, "/run/live/swap" if other else "/swap", sequence=6)
    (attached,) = loop.devices(root)
    (root / "proc/self/mountinfo").write_text(f"{other}\n" if other else "")
    dead = instance(alive=False, sequence=5)
    assert not dead.has(attached, mounts.entries(root), root)
    assert dataclasses.replace(dead, alive=True).has(attached, mounts.entries(root), root)


def test_a_device_that_is_gone_is_a_ghost(root: Path) -> None:
    add_loop(root, 7, "/run/live/swap")
    add_swap(root, r"/dev/loop7\040(deleted)")
    add_swap(root, "/dev/loop9")
    add_swap(root, "/dev/sda2")  # not ours to judge
    deleted, missing = stale.ghost_swaps(root=root)
    assert deleted.reason == "its device node /dev/loop7 is deleted"
    assert missing.reason == "sysfs shows nothing attached to it"


def take_lock(path: Path) -> int:
    fd = instance_lock.acquire(path)
    assert fd is not None
    return fd


def test_daemon_lives_while_its_lock_is_held(tmp_path: Path) -> None:
    assert not stale.daemon_lives(tmp_path, "one")
    lock = take_lock(tmp_path / "one.lock")
    assert stale.daemon_lives(tmp_path, "one")
    os.close(lock)
    assert not stale.daemon_lives(tmp_path, "one")


def test_a_daemon_may_start_while_somebody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(take_lock(tmp_path / "one.lock"))
    close, started = os.close, []

    def start_then_close(fd: int) -> None:
        monkeypatch.setattr(os, "close", close)
        started.append(take_lock(tmp_path / "one.lock"))
        close(fd)

    monkeypatch.setattr(os, "close", start_then_close)
    stale.daemon_lives(tmp_path, "one")
    assert stale.daemon_lives(tmp_path, "one")
    os.close(started[0])


def test_daemon_lives_though_its_lock_and_socket_are_deleted(tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as daemon:
        born = proc.births(daemon.pid)
        state_file.write(tmp_path, "one", {"pid": daemon.pid, "born": born})
        assert stale.daemon_lives(tmp_path, "one")
        assert daemon.stdin is not None
        daemon.stdin.close()
        os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOWAIT)
        assert not stale.daemon_lives(tmp_path, "one"), "a zombie serves nobody"
    assert not stale.daemon_lives(tmp_path, "one")


@pytest.mark.parametrize(
    "born",
    [{str(os.getpid()): "boot/1"}, {str(1 << 70): "boot/1"}, {"x": "y"}, {"1": None}, [], None],
)
def test_another_process_with_its_number_is_not_the_daemon(tmp_path: Path, born: object) -> None:
    state_file.write(tmp_path, "one", {"pid": os.getpid(), "born": born})
    assert not stale.daemon_lives(tmp_path, "one")


def test_the_dead_are_those_whose_snapshot_outlived_the_daemon(tmp_path: Path) -> None:
    for name in ("alive", "dead"):
        state_file.write(tmp_path, name, {"mountpoint": f"/mnt/{name}"})
    (tmp_path / "garbage.json").write_text("{")
    lock = take_lock(tmp_path / "alive.lock")
    known = {one.name: (one.alive, one.mountpoint) for one in stale.all_remembered(tmp_path)}
    assert known == {
        "alive": (True, Path("/mnt/alive")),
        "dead": (False, Path("/mnt/dead")),
        "garbage": (False, None),
    }
    os.close(lock)


def test_the_real_machine_can_be_read() -> None:
    stale.ghost_swaps()

"""What surrounds a daemon is not as it wishes: it goes on, or nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swapfs.errors import OperationError
from swapfs.host import loop, mounts
from swapfs.wire import control
from tests.fuse.instance import Instance, Start, check, is_alive, run, wait_until
from tests.fuse.test_recovery import kill_server, recovered

PAGE = 4096
DATA = b"precious" * 512
SIZES = ("--size", "64M", "--pool", "96M")


@pytest.fixture
def written(start: Start) -> Iterator[tuple[Instance, int]]:
    """An instance with DATA in its first slot, and a descriptor of it."""
    instance = start("64M", "96M")
    fd = instance.open()
    os.pwrite(fd, DATA, 0)
    yield instance, fd
    os.close(fd)


# ---- signals ----


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGSEGV, signal.SIGRTMIN + 6])
def test_a_server_may_end_by_any_signal(written: tuple[Instance, int], number: int) -> None:
    instance, fd = written
    server = instance.status()["server_pid"]
    os.kill(server, number)
    wait_until(lambda: recovered(instance, server), "another server")
    assert os.pread(fd, PAGE, 0) == DATA


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_what_is_the_monitors_to_handle_leaves_the_server(
    written: tuple[Instance, int], number: int
) -> None:
    instance, fd = written
    server = instance.status()["server_pid"]
    os.kill(server, number)
    assert os.pread(fd, PAGE, 0) == DATA
    assert instance.status()["server_pid"] == server


def test_a_server_is_replaced_though_the_caller_ignored_its_children(make_instance: Start) -> None:
    instance = make_instance()
    started = subprocess.run(
        instance.mount_command(*SIZES),
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        check=False,
    )
    assert started.returncode == 0
    dead = kill_server(instance)
    wait_until(lambda: recovered(instance, dead), "another server")


# ---- what a later server lacks ----


def test_a_later_server_serves_though_a_guard_is_lost(written: tuple[Instance, int]) -> None:
    instance, fd = written
    loop = instance.attach_loop()
    check("losetup", "--direct-io=off", loop)
    dead = kill_server(instance)
    wait_until(lambda: recovered(instance, dead), "another server")
    assert os.pread(fd, PAGE, 0) == DATA
    degraded = instance.status()["degraded"]
    assert any("direct_io" in reason for reason in degraded), degraded


def test_a_later_server_serves_though_its_metrics_address_is_taken(make_instance: Start) -> None:
    instance = make_instance()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    instance.mount(*SIZES, "--metrics", address)
    status = instance.status()
    os.kill(status["pid"], signal.SIGSTOP)
    try:
        os.kill(status["server_pid"], signal.SIGKILL)
        taken = _take(port)
    finally:
        os.kill(status["pid"], signal.SIGCONT)
    with taken:
        wait_until(lambda: recovered(instance, status["server_pid"]), "another server")
        wait_until(lambda: address in str(instance.status()["degraded"]), "it to be told")
        with open(instance.open(), "r+b", buffering=0) as swap:
            assert swap.read(PAGE) == bytes(PAGE)
    wait_until(lambda: address not in str(instance.status()["degraded"]), "it to be free again")
    socket.create_connection(("127.0.0.1", port)).close()


def test_a_metrics_address_may_come_later_than_swap(make_instance: Start) -> None:
    """In a network of its own, where an address comes later."""
    instance = make_instance()
    port = 9809
    words = instance.mount_command(*SIZES, "--metrics", f"{LATE_ADDRESS}:{port}")
    python = (sys.executable, "-c", SET_UP)
    check(
        "unshare", "-n", "sh", "-c", '"$1" "$2" "$3" && shift 3 && exec "$@"', "", *python, *words
    )
    instance.note_pids()
    status = instance.status()
    assert any(f"{LATE_ADDRESS}:{port}: Cannot assign" in why for why in status["degraded"])
    inside = ("nsenter", "-t", status["pid"], "-n", sys.executable, "-c")
    check(*inside, SET_UP, LATE_ADDRESS)
    wait_until(lambda: f":{port}" not in str(instance.status()["degraded"]), "it to be served")
    ask = f"import urllib.request as r; print(r.urlopen('http://{LATE_ADDRESS}:{port}/metrics').status)"
    assert check(*inside, ask) == "200\n"
    instance.down()


LATE_ADDRESS = "192.0.2.7"
SET_UP = """
import fcntl, socket, struct, sys
IFF_UP, SIOCSIFFLAGS, SIOCSIFADDR = 1, 0x8914, 0x8916
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    for address in sys.argv[1:]:
        raw = struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(address))
        fcntl.ioctl(probe, SIOCSIFADDR, struct.pack("16s16s", b"lo:0", raw))
"""


def _take(port: int) -> socket.socket:
    """Listen on *port* as soon as the dead server's socket is gone."""
    taken: list[socket.socket] = []

    def listens() -> bool:
        with contextlib.suppress(OSError):
            taken.append(socket.create_server(("127.0.0.1", port)))
        return bool(taken)

    wait_until(listens, "the port")
    return taken[0]


# ---- paths, permissions, namespaces ----


def test_a_runtime_directory_behind_a_link(make_instance: Start) -> None:
    instance = make_instance()
    real = instance.directory / "real"
    real.mkdir()
    instance.runtime_dir.symlink_to(real)
    instance.mount(*SIZES)
    instance.attach_loop()
    assert instance.status()["loop"] is not None
    instance.detach_loops()
    instance.down()


def test_anybody_may_read_the_status(make_instance: Start) -> None:
    instance = make_instance()
    before = os.umask(0o077)
    try:
        instance.mount(*SIZES)
    finally:
        os.umask(before)
    assert instance.runtime_dir.stat().st_mode & 0o777 == 0o755


def test_down_ends_a_mount_that_another_namespace_holds(start: Start) -> None:
    instance = start("64M", "96M")
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        instance.down()


def test_a_mount_that_was_taken_away_lazily_is_not_ended_under_its_loop_device(
    written: tuple[Instance, int],
) -> None:
    instance, fd = written
    instance.attach_loop()
    check("umount", "-l", instance.mountpoint)
    sock = control.socket_path(instance.runtime_dir, instance.name)
    try:
        with pytest.raises(OperationError, match="in use"):
            control.request(sock, "abort", 30)
        assert os.pread(fd, PAGE, 0) == DATA
    finally:
        instance.detach_loops()


def test_loop_devices_whose_paths_read_alike_are_told_apart(start: Start) -> None:
    ours, other = start("64M", "96M"), start("64M", "96M")
    fd = other.open()
    os.pwrite(fd, DATA, 0)
    kept, _ = other.attach_loop(), ours.attach_loop()
    for instance in (other, ours):
        check("umount", "-l", instance.mountpoint)
    shown = [attached.backing_file for attached in loop.devices()]
    assert shown.count("/swap") >= 2
    assert other.status()["loop"] == str(kept)

    done = ours.cli("down")
    assert done.returncode == 0, done.stderr
    ours.assert_gone()
    assert str(kept) not in done.stdout
    assert other.status()["loop"] == str(kept)
    assert os.pread(fd, PAGE, 0) == DATA
    os.close(fd)
    other.down()


def test_which_loop_device_is_ours_is_known_while_the_server_hangs_or_is_dead(
    start: Start,
) -> None:
    instance = start("64M", "96M")
    device = instance.attach_loop()
    server = instance.status()["server_pid"]
    os.kill(server, signal.SIGSTOP)
    try:
        found = loop.find(instance.swap_backing)
        assert found is not None
        assert found.device == device
        assert loop.backing_id(found) == instance.swap_backing.file
    finally:
        os.kill(server, signal.SIGCONT)
    for pid in (instance.status()["pid"], server):
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not is_alive(pid), "its end")
    assert loop.backing_id(found) == instance.swap_backing.file


# ---- two at once, and interrupted ----


def test_of_two_that_start_at_once_one_comes_up(make_instance: Start) -> None:
    instance = make_instance()
    for number in range(4):
        both = [subprocess.Popen(_mount_by_name(instance), stderr=subprocess.PIPE, text=True)]
        if number:
            wait_until((instance.runtime_dir / f"{instance.name}.log").exists, "the first one")
        both.append(subprocess.Popen(_mount_by_name(instance), stderr=subprocess.PIPE, text=True))
        said = [process.communicate(timeout=60)[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 1], said
        instance.down()


def _mount_by_name(instance: Instance) -> list[str]:
    """Return the command that mounts on the default place, which a failed one removes."""
    command = instance.mount_command(*SIZES)
    place = instance.runtime_dir / instance.name / "mnt"
    instance.mountpoint = place
    return [str(place) if word.endswith(".mnt") else word for word in command]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["early", "late"])
def test_an_interrupted_start_leaves_nothing(
    make_instance: Start, number: int, moment: str
) -> None:
    instance = make_instance()
    lock = instance.runtime_dir / f"{instance.name}.lock"
    reached: Callable[[], bool] = {
        "early": lambda: (instance.runtime_dir / f"{instance.name}.log").exists(),
        "late": lambda: lock.exists() and mounts.at(instance.mountpoint) is not None,
    }[moment]
    command = instance.mount_command(*SIZES, "--file", f"{instance.backing}:64M")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(reached, moment)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:  # it was too late
        instance.down()
        return
    assert (process.returncode, said.strip()) == (1, "swapfs: interrupted")
    instance.assert_gone()
    assert not instance.backing.exists()


def test_a_file_where_the_runtime_directory_should_be(make_instance: Start) -> None:
    instance = make_instance()
    instance.runtime_dir.write_text("")
    for done in (run(*instance.mount_command(*SIZES)), instance.cli("down")):
        assert done.returncode in (1, 2)
        assert len(done.stderr.splitlines()) == 1, done.stderr
    Path(instance.runtime_dir).unlink()


@pytest.mark.parametrize(
    ("hidden", "says"), [("/sys", "/sys/block is not there"), ("/proc", "/proc")]
)
def test_up_where_the_kernel_cannot_be_seen_leaves_nothing(
    make_instance: Start, hidden: str, says: str
) -> None:
    """Nothing is swapped on: without sysfs no loop device is ever good enough for that."""
    instance = make_instance()
    words = [*instance.command, "up", "--mountpoint", str(instance.mountpoint)]
    words += ["--name", instance.name, "--runtime-dir", str(instance.runtime_dir)]
    words += ["--size", "64M", "--pool", "96M", "--unsafe"]
    hide = f'mount -t tmpfs none {hidden} && exec "$@"'
    done = run("unshare", "-m", "sh", "-c", hide, "sh", *words)
    assert done.returncode == 1, done.stdout
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    instance.assert_gone()
    shown = run("unshare", "-m", "sh", "-c", hide, "sh", *instance.command, "status", instance.name)
    assert "Traceback" not in shown.stderr

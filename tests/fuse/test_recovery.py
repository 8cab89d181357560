"""A server that dies is replaced and nobody notices; a stop never loses pages."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from swapfs.errors import OperationError
from tests.fuse.instance import Instance, Start, check, is_alive, processes_of, wait_until
from tests.fuse.load import Load, fill
from tests.fuse.planted import plant

PAGE = 4096
KILLS = 10


def kill_server(instance: Instance) -> int:
    """Kill the server of this moment as the OOM killer would; return its pid."""
    pid: int = instance.status()["server_pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def keep_killing(instance: Instance, times: int, seed: int, pids: list[int]) -> None:
    rng = random.Random(seed)
    for _ in range(times):
        time.sleep(rng.uniform(0.1, 0.5))  # at any moment of a request: that is the point
        pids.append(kill_server(instance))
        wait_until(lambda: recovered(instance, pids[-1]), "another server")


def recovered(instance: Instance, dead: int) -> bool:
    try:
        return bool(instance.status()["server_pid"] != dead)
    except Exception:  # noqa: BLE001 - its socket is gone too, for the moment
        return False


@pytest.mark.timeout(200)
def test_servers_die_under_readers_writers_and_discarders(start: Start) -> None:
    instance = start("64M", "4M", "160M")
    fill(instance, 8192, 4096)
    monitor = instance.status()["pid"]
    load = Load(instance, 2048)
    pids: list[int] = []
    killer = threading.Thread(target=keep_killing, args=(instance, KILLS, 1, pids))
    killer.start()
    rounds = 0
    while killer.is_alive():
        load.run(100, seed=rounds)
        rounds += 1
    killer.join()
    load.verify()
    status = instance.status()
    assert len(set(pids)) == KILLS
    assert status["pid"] == monitor
    assert status["counters"]["server_starts"] == KILLS + 1
    assert status["counters"]["failed_read_checksum"] == status["counters"]["failed_read_io"] == 0
    assert status["counters"]["demoted_pages"] > 0
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.timeout(200)
def test_servers_die_under_fio(start: Start) -> None:
    instance = start("64M", "8M", "160M")
    loop = instance.attach_loop()
    pids: list[int] = []
    killer = threading.Thread(target=keep_killing, args=(instance, KILLS, 2, pids))
    killer.start()
    runs = 0
    while killer.is_alive() or runs == 0:
        out = check(
            "fio", "--name=kill", f"--filename={loop}", f"--aux-path={instance.directory}",
            "--direct=1", "--ioengine=libaio", "--iodepth=16", "--rw=randrw", "--bsrange=4k-64k",
            "--size=32M", "--io_size=64M", "--verify=crc32c", "--verify_fatal=1",
            "--verify_state_save=0", "--verify_backlog=256", "--buffer_compress_percentage=60",
            "--refill_buffers", f"--randseed={runs}", "--output-format=json", timeout_s=100,
        )  # fmt: skip
        assert json.loads(out[out.index("{") :])["jobs"][0]["error"] == 0
        runs += 1
    killer.join()
    assert instance.counters()["server_starts"] == KILLS + 1


def test_everything_is_there_after_the_server_died(start: Start) -> None:
    """Every state of a slot survives, and the figures are the same as before."""
    instance = start("64M", "16M", "128M")
    fill(instance, 0, 8192)
    fd = instance.open()
    try:
        before = os.pread(fd, 1 << 20, 0), os.pread(fd, 1 << 20, 16 << 20)
        kept = ("slots", "orig_bytes", "compr_bytes", "metadata_bytes", "clusters")
        instance.demote(1000)
        was = instance.status()
        dead = kill_server(instance)
        wait_until(lambda: recovered(instance, dead), "another server")
        now = instance.status()
        assert {key: now[key] for key in kept} == {key: was[key] for key in kept}
        assert now["pool"]["payload_bytes"] == was["pool"]["payload_bytes"]
        assert now["tiers"][0]["used_bytes"] == was["tiers"][0]["used_bytes"]
        assert now["counters"]["demoted_pages"] == was["counters"]["demoted_pages"]
        assert (os.pread(fd, 1 << 20, 0), os.pread(fd, 1 << 20, 16 << 20)) == before
        assert os.pwrite(fd, b"still" * 1000, 0) == 5000
    finally:
        os.close(fd)
    instance.down()


def test_names_work_after_the_server_died(start: Start) -> None:
    """The namespace of the new server answers too, which needs the FUSE_INIT of the first."""
    instance = start("64M", "96M")
    dead = kill_server(instance)
    wait_until(lambda: recovered(instance, dead), "another server")
    check("sync", "--file-system", instance.swap)
    assert os.statvfs(instance.mountpoint).f_bsize == PAGE
    assert os.listdir(instance.mountpoint) == ["swap"]
    loop = instance.attach_loop()
    check("mkswap", loop)
    instance.down()


# ---- what a new server must not wait for ----


def clog(instance: Instance) -> None:
    """Fill the pipe that is the daemon's log: whoever writes to it waits from now on."""
    assert instance.foreground is not None
    pipe = os.open(f"/proc/{instance.foreground.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(pipe, b"." * PAGE)
    except BlockingIOError:
        os.close(pipe)


def test_a_log_that_hangs_holds_no_new_server_up(make_instance: Start) -> None:
    """As it does when its page is in the very swap that waits for the new server."""
    instance = make_instance()
    instance.mount_in_foreground("--size", "64M", "--pool", "96M")
    fill(instance, 0, 256)
    clog(instance)
    try:
        for _ in range(3):
            dead = kill_server(instance)
            wait_until(lambda dead=dead: recovered(instance, dead), "another server", 10)
            fd = instance.open()
            assert len(os.pread(fd, 1 << 20, 0)) == 1 << 20
            os.close(fd)
    finally:
        assert instance.foreground is not None
        assert instance.foreground.stderr is not None
        threading.Thread(target=instance.foreground.stderr.read, daemon=True).start()


WATCHED = """
import os, sys
from swapfs import session
from swapfs.region.layout import Region
seen, watching = [], [False]
REPORT = {report!r}

def watch(event, arguments):
    if watching[0]:
        seen.append(f"{{event}} {{arguments!r:.200}}")

sys.addaudithook(watch)

def forked():
    watching[0] = True

os.register_at_fork(after_in_child=forked)
serve = session.run

def run(*arguments):
    watching[0] = False
    status = open("/proc/self/status").read()
    locked = status.partition("VmLck:")[2].split()[0]
    with open(REPORT, "a") as report:
        report.write("\\n".join(["", f"server {{locked}}", *seen]))
    serve(*arguments)

session.run = run
"""


@pytest.fixture
def watched(make_instance: Start, tmp_path: Path) -> tuple[Instance, Path]:
    """An instance whose servers report how they came to serve."""
    instance, report = make_instance(), tmp_path / "report"
    plant(instance, WATCHED.format(report=str(report)))
    instance.mount("--size", "64M", "--pool", "96M", "--file", f"{instance.backing}:128M")
    return instance, report


WAITS = ("import", "open", "os.", "shutil.", "socket.bind", "socket.connect", "socket.get", "subpr")
"""What looks into files or asks the system, by the beginning of its audit event."""


def test_a_new_server_serves_before_it_looks_at_any_file(watched: tuple[Instance, Path]) -> None:
    """A file can lie in the swap that stands still until it serves (I9)."""
    instance, report = watched
    fill(instance, 0, 256)
    dead = kill_server(instance)
    wait_until(lambda: recovered(instance, dead), "another server")
    _, _, later = report.read_text().rpartition("server ")
    looked = [line for line in later.splitlines() if line.startswith(WAITS)]
    assert looked == []


def test_memory_is_locked_before_a_server_serves(watched: tuple[Instance, Path]) -> None:
    instance, report = watched
    dead = kill_server(instance)
    wait_until(lambda: recovered(instance, dead), "another server")
    locked = [int(text.split()[0]) for text in report.read_text().split("server ")[1:]]
    assert len(locked) == 2
    assert min(locked) >= 96 << 10  # KiB of the pool alone
    guards = {guard["name"]: guard for guard in instance.status()["guards"]}
    assert guards["mlock"]["ok"], guards["mlock"]


# ---- servers that live and serve nothing ----

FAILS_ONCE = """
import os
from swapfs import session
from swapfs.server import workers
from swapfs.vlayer.stalled import StalledWrites
from swapfs.vlayer.write_around import WriteAround
from swapfs.vlayer.writeback import Writeback

def once(owner, name):
    right = getattr(owner, name)

    def wrong(*arguments):
        try:
            os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return right(*arguments)
        raise {error}("planted in " + name)

    setattr(owner, name, wrong)

once({owner}, {name!r})
"""


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("session", "replay_init"),
        ("session", "run"),
        ("workers.Workers", "_run"),
        ("StalledWrites", "run"),
        ("WriteAround", "run"),
        ("Writeback", "run"),
    ],
)
def test_a_server_ends_when_a_thread_that_it_needs_does(
    make_instance: Start, tmp_path: Path, owner: str, name: str
) -> None:
    """So that the monitor starts another; nobody would miss it otherwise."""
    instance, flag = make_instance(), tmp_path / "flag"
    flag.touch()
    code = FAILS_ONCE.format(owner=owner, name=name, flag=str(flag), error="RuntimeError")
    plant(instance, code)
    instance.mount("--size", "64M", "--pool", "96M", "--file", f"{instance.backing}:128M")
    fill(instance, 0, 256)
    flag.unlink()
    kill_server(instance)
    wait_until(flag.exists, "the fault")
    counted = "server_starts"
    wait_until(lambda: counters_of(instance).get(counted) == 3, "the third server")
    fd = instance.open()
    assert len(os.pread(fd, 1 << 20, 0)) == 1 << 20
    os.close(fd)
    wait_until(lambda: f"planted in {name}" in instance.log(), "its reason in the log")


def counters_of(instance: Instance) -> dict[str, int]:
    try:
        return instance.counters()
    except OperationError:
        return {}


def test_the_first_server_says_what_its_session_thread_died_of(make_instance: Start) -> None:
    instance = make_instance()
    plant(
        instance,
        """
from swapfs import session
def run(*arguments):
    raise RuntimeError("planted")
session.run = run
""",
    )
    done = subprocess.run(
        instance.mount_command("--size", "64M", "--pool", "96M"),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "planted" in done.stderr
    instance.assert_gone()


# ---- SIGTERM to the monitor ----


def test_sigterm_takes_an_idle_instance_down_in_order(start: Start) -> None:
    instance = start("64M", "96M")
    instance.attach_loop()
    status = instance.status()
    os.kill(status["pid"], signal.SIGTERM)
    wait_until(lambda: not is_alive(status["pid"]), "the end of the monitor")
    assert not is_alive(status["server_pid"])
    instance.assert_gone()


def test_sigterm_with_the_file_in_use_keeps_serving(start: Start) -> None:
    instance = start("64M", "96M")
    fill(instance, 0, 256)
    fd = instance.open()
    try:
        before = os.pread(fd, 1 << 20, 0)
        monitor = instance.status()["pid"]
        os.kill(monitor, signal.SIGTERM)
        wait_until(lambda: "busy" in instance.log(), "a refusal in the log")
        assert is_alive(monitor)
        assert os.pread(fd, 1 << 20, 0) == before
        assert os.pwrite(fd, b"x" * PAGE, 0) == PAGE
    finally:
        os.close(fd)
    # Monitor, server, log; while the first swapfs down is at it, a second signal is ignored.
    wait_until(lambda: len(processes_of(instance.runtime_dir)) == 3, "the end of that attempt")
    os.kill(monitor, signal.SIGTERM)
    wait_until(lambda: not is_alive(monitor), "the end of the monitor")
    instance.assert_gone()


def test_sigterm_with_the_loop_device_in_use_keeps_serving(start: Start) -> None:
    instance = start("64M", "96M")
    fill(instance, 0, 256)
    loop = instance.attach_loop()
    fd = os.open(loop, os.O_RDWR | os.O_CLOEXEC)
    try:
        before = os.pread(fd, 1 << 20, 0)
        monitor = instance.status()["pid"]
        os.kill(monitor, signal.SIGTERM)
        wait_until(lambda: "holds it open" in instance.log(), "a refusal in the log")
        assert is_alive(monitor)
        assert os.pread(fd, 1 << 20, 0) == before
    finally:
        os.close(fd)


def test_a_foreground_instance_stops_on_sigterm(make_instance: Start) -> None:
    instance = make_instance()
    instance.mount_in_foreground("--size", "64M", "--pool", "96M")
    assert instance.foreground is not None
    instance.foreground.send_signal(signal.SIGTERM)
    out, err = instance.foreground.communicate(timeout=30)
    assert instance.foreground.returncode == 0, (out, err)
    instance.assert_gone()


def test_the_server_outlives_its_monitor(start: Start) -> None:
    """Nobody restarts it any more, which the status says; the pages are served on."""
    instance = start("64M", "96M")
    fill(instance, 0, 256)
    fd = instance.open()
    try:
        before = os.pread(fd, 1 << 20, 0)
        status = instance.status()
        os.kill(status["pid"], signal.SIGKILL)
        wait_until(lambda: not is_alive(status["pid"]), "the monitor's end")
        assert os.pread(fd, 1 << 20, 0) == before
        now = instance.status()
        assert now["server_pid"] == status["server_pid"]
        assert any("monitor" in reason for reason in now["degraded"])
    finally:
        os.close(fd)
    done = instance.cli("down")
    assert done.returncode == 0, done.stderr
    assert not is_alive(status["server_pid"])
    assert not Path(instance.runtime_dir / f"{instance.name}.sock").exists()

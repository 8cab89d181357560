"""Being asked to stop, and a server that cannot be kept alive: pages are never given up (I7)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from swapfs.command import status
from swapfs.host import loop
from swapfs.host.fusectl import FuseControl
from swapfs.session.fuse_init import FLAG_HAS_RESEND, decode
from swapfs.wire import state_file
from tests.fuse.instance import Instance, Start, is_alive, wait_until
from tests.fuse.planted import plant

DATA = b"precious" * 512


def store(instance: Instance) -> None:
    fd = instance.open()
    try:
        assert os.pwrite(fd, DATA, 8192) == len(DATA)
    finally:
        os.close(fd)


def loaded(instance: Instance) -> bytes:
    fd = instance.open()
    try:
        return os.pread(fd, len(DATA), 8192)
    finally:
        os.close(fd)


# SIGTERM


def test_asking_twice_while_the_loop_device_is_held_open(start: Start) -> None:
    instance = start()
    monitor = instance.status()["pid"]
    store(instance)
    device = instance.attach_loop()
    holder = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.kill(monitor, signal.SIGTERM)
        wait_until(lambda: len(children(monitor)) == 3, "swapfs down")
        os.kill(monitor, signal.SIGTERM)
        wait_until(lambda: "still being taken down" in instance.log(), "the second request")
        assert len(children(monitor)) == 3, "two take it down at once"
        assert loaded(instance) == DATA
        wait_until(lambda: "it goes on serving" in instance.log(), "the failure in the log")
        assert is_alive(monitor)
    finally:
        os.close(holder)
    # The second request is still to be answered.
    wait_until(lambda: not is_alive(monitor), "the end")
    wait_until(lambda: not instance.cli("status").stdout, "the end of its state")
    instance.assert_gone()


def test_interrupt_in_the_foreground(make_instance: Start) -> None:
    instance = make_instance()
    instance.mount_in_foreground("--size", "64M", "--pool", "96M")
    instance.attach_loop()
    assert instance.foreground is not None
    instance.foreground.send_signal(signal.SIGINT)
    instance.foreground.send_signal(signal.SIGINT)
    _, said = instance.foreground.communicate(timeout=60)
    assert instance.foreground.returncode == 0, said
    assert said.count("swapoff first") == 1
    instance.assert_gone()


def children(pid: int) -> list[int]:
    """Return the children of monitor *pid*: its server, what writes its log, `swapfs down`."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# a server that dies again and again


@pytest.fixture
def fragile(make_instance: Start) -> Instance:
    """Mount an instance that gives up after two deaths of its server, however long it lived."""
    instance = make_instance()
    plant(
        instance,
        """
from swapfs.monitor import restart_policy
restart_policy.RAPID_DEATHS_MAX, restart_policy.RAPID_LIFE_S = 2, 1e9
""",
    )
    instance.mount("--size", "64M", "--pool", "96M")
    return instance


def state(instance: Instance) -> dict[str, Any]:
    (found,) = status.collect(instance.runtime_dir, [instance.name])
    return found.as_dict()


def kill_until_held(instance: Instance) -> None:
    before = instance.status()["server_pid"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: state(instance).get("server_pid") not in (before, None), "a new server")
    wait_until(lambda: state(instance)["state"] == "running", "the new server")
    os.kill(instance.status()["server_pid"], signal.SIGKILL)
    wait_until(lambda: state(instance)["state"] == "held", "giving up")


def test_a_held_instance_says_so_and_goes_on_when_told(fragile: Instance) -> None:
    monitor = fragile.status()["pid"]
    store(fragile)
    device = fragile.attach_loop()
    kill_until_held(fragile)

    held = state(fragile)
    assert held["pid"] == monitor
    assert held["counters"]["server_starts"] == 2
    assert "died 2 times in a row" in held["degraded"][0]
    shown = fragile.cli("status").stdout
    assert f"HELD (process {monitor} keeps its pages" in shown
    assert f"'kill -HUP {monitor}'" in shown

    refused = fragile.cli("down")
    assert refused.returncode == 1
    assert f"no server, so {device} cannot be taken down" in refused.stderr
    os.kill(monitor, signal.SIGTERM)
    wait_until(lambda: "needs a server first" in fragile.log(), "the refusal in the log")
    assert loop.find(fragile.swap_backing) is not None

    os.kill(monitor, signal.SIGHUP)
    wait_until(lambda: state(fragile)["state"] == "running", "a server again")
    assert "held" not in fragile.status()
    assert loaded(fragile) == DATA
    fragile.detach_loops()
    fragile.down()


def test_a_held_instance_can_be_upgraded(fragile: Instance) -> None:
    monitor = fragile.status()["pid"]
    store(fragile)
    kill_until_held(fragile)
    done = fragile.cli("upgrade")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: state(fragile)["state"] == "running", "a server again")
    assert not is_alive(monitor)
    assert fragile.status()["pid"] != monitor
    assert loaded(fragile) == DATA
    fragile.down()


def test_a_held_instance_is_given_to_a_successor_only(fragile: Instance) -> None:
    monitor = fragile.status()["pid"]
    store(fragile)
    kill_until_held(fragile)
    with subprocess.Popen(
        ["sh", "-c", f"kill -USR1 {monitor}; cat"], stdin=subprocess.PIPE
    ) as shell:
        wait_until(lambda: f"process {shell.pid} " in fragile.log(), "the refusal in the log")
        os.kill(monitor, signal.SIGHUP)
        wait_until(lambda: state(fragile)["state"] == "running", "a server again")
        shell.communicate()
    assert fragile.status()["pid"] == monitor
    assert loaded(fragile) == DATA
    fragile.down()


def test_a_held_instance_that_nobody_uses_can_be_taken_down(fragile: Instance) -> None:
    kill_until_held(fragile)
    fragile.down()


def test_an_abort_of_a_held_instance_lets_down_clear_up(fragile: Instance) -> None:
    running = fragile.status()
    device = fragile.attach_loop()
    kill_until_held(fragile)
    FuseControl(running["handover"]["device"]).set("abort", 1)
    wait_until(lambda: not is_alive(running["pid"]), "the end of the monitor")
    assert f"the kernel has ended the connection below {device}" in fragile.log()
    fragile.down()


# what the kernel can do


def test_status_knows_whether_the_kernel_can_resend(start: Start) -> None:
    instance = start()
    region = instance.region()
    try:
        session = decode(region.session_init)
    finally:
        region.close()
    assert session is not None
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert release is not None
    modern = (int(release[1]), int(release[2])) >= (6, 9)
    assert bool(session.flags & FLAG_HAS_RESEND) == modern
    shown = instance.status()
    assert shown["kernel"] == {"fuse_minor": session.minor, "resend": modern}
    assert bool(shown["limits"]) != modern
    assert state_file.read(instance.runtime_dir, instance.name) is not None

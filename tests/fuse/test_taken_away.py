"""Others take the mount, the loop device or the connection away; what is left `down` clears up."""

from __future__ import annotations

import os
import subprocess

import pytest

from swapfs.host import loop, mounts
from swapfs.host.fusectl import FuseControl
from swapfs.wire import state_file
from tests.fuse.instance import Instance, Start, check, is_alive, wait_until


def abort(instance: Instance) -> None:
    """End the connection as an administrator or a request timeout does."""
    FuseControl(instance.status()["handover"]["device"]).set("abort", 1)


def test_two_downs_at_once(start: Start) -> None:
    instance = start()
    instance.attach_loop()
    command = [*instance.command, "down", instance.name, "--runtime-dir", str(instance.runtime_dir)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    instance.assert_gone()


@pytest.mark.parametrize("attached", [True, False])
def test_down_of_a_mount_that_was_taken_away(start: Start, attached: bool) -> None:
    instance = start()
    holder = os.open(instance.attach_loop(), os.O_RDONLY | os.O_CLOEXEC) if attached else None
    check("umount", "-l", instance.mountpoint)
    if holder is not None:
        os.close(holder)
        assert loop.find(instance.swap_backing) is not None
    instance.down()


def test_a_device_that_goes_by_itself_is_no_error(start: Start) -> None:
    instance = start()
    device = instance.attach_loop()
    holder = os.open(device, os.O_RDONLY | os.O_CLOEXEC)  # as the swap area would
    check("losetup", "-d", device)
    assert loop.find(instance.swap_backing) is not None
    os.close(holder)
    wait_until(lambda: loop.find(instance.swap_backing) is None, "the end of the device")
    instance.down()


def test_an_abort_below_a_loop_device_is_no_unmount(start: Start) -> None:
    instance = start()
    device, monitor = instance.attach_loop(), instance.status()["pid"]
    abort(instance)
    wait_until(lambda: not is_alive(monitor), "the end of the monitor")
    assert f"the kernel has ended the connection below {device}" in instance.log()
    assert mounts.at(instance.mountpoint) is not None, "down finds it by its mount"
    assert state_file.path(instance.runtime_dir, instance.name).exists()
    shown = instance.cli("status").stdout
    assert "dead" in shown
    assert "the kernel has ended the connection" in shown
    done = instance.cli("down")
    assert done.returncode == 0, done.stderr
    assert f"detached {device}" in done.stdout
    instance.assert_gone()


def test_an_abort_that_nothing_stands_on_is_the_end(start: Start) -> None:
    instance = start()
    monitor = instance.status()["pid"]
    abort(instance)
    wait_until(lambda: not is_alive(monitor), "the end of the monitor")
    instance.assert_gone()
    assert not state_file.path(instance.runtime_dir, instance.name).exists()

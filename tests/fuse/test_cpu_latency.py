"""CPUs are kept from sleeping while pages are read, by the real device, and no longer."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from swapfs.errors import OperationError
from tests.fuse.instance import Instance, Start, is_alive, wait_until

DEVICE = Path("/dev/cpu_dma_latency")
PAGE = 4096

pytestmark = pytest.mark.skipif(not DEVICE.exists(), reason=f"this kernel has no {DEVICE}")


def awake(instance: Instance) -> dict[str, Any]:
    found: dict[str, Any] = instance.status()["cpu_latency"]
    return found


def read_a_page(instance: Instance) -> None:
    fd = instance.open(os.O_RDONLY | os.O_DIRECT)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.preadv(fd, [memoryview(bytearray(PAGE))], 0)
    finally:
        os.close(fd)


def holders(instance: Instance) -> list[int]:
    """Return the processes of the instance that have the device open."""
    status = instance.status()
    found = []
    for pid in (status["pid"], status["server_pid"]):
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        found += [pid] if str(DEVICE) in links else []
    return found


def is_awake_again(instance: Instance) -> bool:
    try:
        return bool(awake(instance)["held"])
    except OperationError:  # its socket is not there yet
        return False


def test_reads_keep_cpus_awake_and_then_let_them_sleep(start: Start) -> None:
    instance = start("2M", "4M", None)
    before = awake(instance)
    assert (before["mode"], before["problem"]) == ("adaptive", "")
    read_a_page(instance)
    wait_until(lambda: not awake(instance)["held"], "CPUs to be let go")
    after = awake(instance)
    assert after["holds"] == before["holds"] + 1
    assert after["held_s"] > before["held_s"]


def test_off_leaves_the_machine_alone(start: Start) -> None:
    instance = start("2M", "4M", None, "--latency", "off")
    read_a_page(instance)
    assert awake(instance) == {
        "mode": "off", "held": False, "holds": 0, "held_s": 0.0, "problem": "",
    }  # fmt: skip
    assert holders(instance) == []


def test_only_the_server_holds_them_and_its_death_lets_them_go(start: Start) -> None:
    instance = start("2M", "4M", None, "--latency", "always")
    server = instance.status()["server_pid"]
    assert awake(instance)["held"]
    assert holders(instance) == [server]  # a descriptor of the monitor's would outlive it
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not is_alive(server), "its end")
    wait_until(lambda: is_awake_again(instance), "the next server to keep them awake")
    assert holders(instance) == [instance.status()["server_pid"]]


def test_an_upgrade_keeps_the_mode(start: Start) -> None:
    instance = start("2M", "4M", None, "--latency", "always")
    monitor = instance.status()["pid"]
    assert instance.cli("upgrade").returncode == 0
    wait_until(lambda: not is_alive(monitor), "the old monitor's end")
    wait_until(lambda: is_awake_again(instance), "the next server to keep them awake")
    assert awake(instance)["mode"] == "always"
    assert holders(instance) == [instance.status()["server_pid"]]

"""A running instance is replaced by another daemon: nobody notices, or nothing happens."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

from swapfs.errors import OperationError
from swapfs.region.layout import FORMAT_VERSION
from tests.fuse.instance import Instance, Start, is_alive, wait_until
from tests.fuse.load import Load, fill

UPGRADES = 3


@pytest.mark.timeout(200)
def test_upgrades_under_readers_writers_and_discarders(start: Start) -> None:
    instance = start("64M", "4M", "160M")
    fill(instance, 8192, 4096)
    load = Load(instance, 2048)
    monitors = [instance.status()["pid"]]
    errors: list[str] = []

    def keep_upgrading() -> None:
        for _ in range(UPGRADES):
            done = instance.cli("upgrade")
            errors.extend(done.stderr.splitlines())
            monitors.append(instance.status()["pid"])

    upgrader = threading.Thread(target=keep_upgrading)
    upgrader.start()
    rounds = 0
    while upgrader.is_alive():
        load.run(100, seed=rounds)
        rounds += 1
    upgrader.join()
    load.verify()
    assert errors == []
    assert len(set(monitors)) == UPGRADES + 1
    wait_until(lambda: not any(is_alive(pid) for pid in monitors[:-1]), "the old ones to end")
    counters = instance.counters()
    assert counters["server_starts"] == UPGRADES + 1
    assert counters["failed_read_io"] == counters["failed_read_checksum"] == 0


@pytest.mark.parametrize("option", ["--no-file-encryption", "--no-promote"])
def test_an_option_that_was_switched_off_stays_off(start: Start, option: str) -> None:
    instance = start("32M", "8M", "64M", option)
    fill(instance, 0, 256)
    assert instance.demote(256) > 0
    before = instance.status()
    done = instance.cli("upgrade")
    assert done.returncode == 0, done.stderr
    after = instance.status()
    assert after["pid"] != before["pid"]
    assert after["config"] == before["config"]
    assert after["tiers"][0]["encrypted"] == before["tiers"][0]["encrypted"]
    with open(instance.open(), "r+b", buffering=0) as swap:
        assert all(len(swap.read(4096)) == 4096 for _ in range(256))


def _set_format(instance: Instance, version: int) -> None:
    region = instance.region()
    os.pwrite(region.fd, version.to_bytes(4, "little"), 8)
    region.close()


def test_a_region_of_another_format_is_refused_and_goes_on(start: Start) -> None:
    instance = start("64M", "96M")
    data = b"precious" * 512
    fd = instance.open()
    with open(fd, "r+b", buffering=0) as swap:
        swap.write(data)
        monitor = instance.status()["pid"]
        theirs = FORMAT_VERSION + 1
        _set_format(instance, theirs)
        done = instance.cli("upgrade")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert f"format {theirs}" in done.stderr
        assert instance.status()["pid"] == monitor
        swap.seek(0)
        assert swap.read(len(data)) == data


def serves_anew(instance: Instance) -> bool:
    try:
        return instance.counters()["server_starts"] == 2
    except OperationError:  # between two servers
        return False


def test_a_signal_from_who_is_no_successor_changes_nothing(start: Start) -> None:
    """The shell that sends it lives on, as a successor would; the pages must not go to it."""
    instance = start("32M", "64M")
    data = b"precious" * 512
    with open(instance.open(), "r+b", buffering=0) as swap:
        swap.write(data)
        before = instance.status()
        with subprocess.Popen(
            ["sh", "-c", f"kill -USR1 {before['pid']}; cat"], stdin=subprocess.PIPE
        ) as shell:
            wait_until(lambda: f"process {shell.pid} " in instance.log(), "the refusal in the log")
            after = instance.status()
            assert (after["pid"], after["server_pid"]) == (before["pid"], before["server_pid"])
            shell.communicate()
        os.kill(before["server_pid"], signal.SIGUSR1)  # retires: another one follows
        wait_until(lambda: serves_anew(instance), "another server")
        swap.seek(0)
        assert swap.read(len(data)) == data
    assert instance.cli("upgrade").returncode == 0
    assert instance.status()["pid"] != before["pid"]

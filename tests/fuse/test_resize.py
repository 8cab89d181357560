"""The pool gets another size while pages are read and written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from swapfs.command import waiting
from swapfs.units import MiB
from swapfs.wire import control
from tests.fuse.instance import Instance, Start, is_alive, run, wait_until
from tests.fuse.load import Load, fill

pytestmark = pytest.mark.timeout(200)


def _pool(instance: Instance) -> dict[str, Any]:
    sock = control.socket_path(instance.runtime_dir, instance.name)
    pool: dict[str, Any] = waiting.patiently(sock, lambda: control.request(sock, "status", 30))[
        "pool"
    ]
    return pool


def _command(instance: Instance, *options: object) -> list[str]:
    where = ["--runtime-dir", str(instance.runtime_dir)]
    return [*instance.command, "resize", instance.name, *where, *map(str, options)]


def _held_bytes(instance: Instance) -> int:
    """Return the memory that the region takes, whoever has it."""
    for fd in Path(f"/proc/{instance.status()['pid']}/fd").iterdir():
        if "memfd:swapfs-region" in os.readlink(fd):
            return os.stat(fd).st_blocks * 512
    raise AssertionError("the monitor holds no region")


def _kill_server(instance: Instance) -> None:
    server = instance.status()["server_pid"]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not is_alive(server), "the server to die")
    _pool(instance)


def test_the_pool_grows_and_shrinks_under_load(start: Start) -> None:
    instance = start("64M", "8M", "64M", "--pool-max", "48M", "--overcommit", "2")
    fill(instance, 2048, 8192)
    held_bytes = _held_bytes(instance)
    load = Load(instance, 2048)
    loading = threading.Thread(target=load.run, args=(250, 1))
    loading.start()
    for size in (32, 12, 48, 8):
        done = run(*_command(instance, "--pool", f"{size}M", "--json"))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["pool_bytes"] == size * MiB
        assert _pool(instance)["limit_bytes"] == size * MiB
        assert _held_bytes(instance) == held_bytes + (size - 8) * MiB
        if size == 48:
            _kill_server(instance)
            assert _pool(instance)["limit_bytes"] == size * MiB
    loading.join()
    done = run(*_command(instance, "--pool", "24M"))
    assert done.stdout == "pool: 8M, now 24M\n"
    assert instance.cli("upgrade").returncode == 0
    assert instance.status()["config"]["pool"] == 24 * MiB
    assert _pool(instance)["max_bytes"] == 48 * MiB
    _kill_server(instance)
    load.run(30, seed=2)
    assert run(*_command(instance, "--pool", "16M")).returncode == 0
    load.verify()
    counters = instance.counters()
    assert counters["failed_read_io"] == counters["failed_read_checksum"] == 0
    assert counters["handler_errors"] == 0


@pytest.mark.parametrize("size", ["8M", "40M"])
def test_a_server_dies_over_it(start: Start, size: str) -> None:
    """The next one has the old size or the new one; the command begins anew."""
    instance = start("64M", "24M", "64M", "--pool-max", "48M", "--overcommit", "2")
    fill(instance, 2048, 8192)
    load = Load(instance, 2048)
    load.run(30, seed=1)
    for _ in range(3):
        resizing = subprocess.Popen(
            _command(instance, "--pool", size), stdout=subprocess.PIPE, text=True
        )
        _kill_server(instance)
        resizing.communicate(timeout=60)
        assert resizing.returncode == 0
        assert _pool(instance)["limit_bytes"] == int(size[:-1]) * MiB
        load.run(20, seed=2)
        assert run(*_command(instance, "--pool", "24M")).returncode == 0
    load.verify()
    assert instance.counters()["failed_read_checksum"] == 0


def test_what_cannot_be_has_one_line_and_changes_nothing(start: Start) -> None:
    instance = start("24M", "16M", None, "--pool-max", "32M", "--overcommit", "2")
    fd = instance.open()
    os.pwrite(fd, os.urandom(12 * MiB), 0)
    os.close(fd)
    for size, expected in (
        ("64M", "is not between 4M and 32M"),
        ("4M", "would be certain, and the size is 24M"),
        ("1M", "too small"),
        ("x", "is not a size"),
    ):
        done = run(*_command(instance, "--pool", size))
        assert done.returncode != 0
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
        assert _pool(instance)["limit_bytes"] == 16 * MiB
    done = run(*_command(instance, "--pool", "8M", "--force"))
    assert done.returncode == 1
    assert "has no other room, or a tier does not answer; it is as it was" in done.stderr
    assert _pool(instance)["limit_bytes"] == 16 * MiB
    assert _held_bytes(instance) < 18 * MiB

"""The memory of a server: reserved when it begins, and not more while it serves."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.fuse.instance import Instance, Start, wait_until
from tests.fuse.load import Load, fill
from tests.fuse.test_recovery import recovered


def mappings(pid: int) -> list[tuple[str, int]]:
    """Return name and bytes of every mapping of a process."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        first, last, name = re.match(r"(\w+)-(\w+) \S+ \S+ \S+ \S+\s*(.*)", line).groups()  # type: ignore[union-attr]
        found.append((name, int(last, 16) - int(first, 16)))
    return found


def heap_bytes(pid: int) -> int:
    return sum(size for name, size in mappings(pid) if name == "[heap]")


def files(pid: int) -> set[str]:
    return {name for name, _ in mappings(pid) if ".so" in name}


def server(instance: Instance) -> int:
    pid: int = instance.status()["server_pid"]
    return pid


@pytest.mark.timeout(200)
def test_serving_takes_no_memory_that_was_not_reserved(start: Start) -> None:
    instance = start("64M", "4M", "160M")
    before = heap_bytes(server(instance))
    fill(instance, 8192, 4096)
    load = Load(instance, 2048)
    load.run(300, seed=1)
    instance.demote(512)
    load.verify()
    assert heap_bytes(server(instance)) == before


@pytest.mark.timeout(200)
def test_a_server_reads_no_module_from_a_disk(start: Start) -> None:
    instance = start("64M", "4M", "160M")
    first = server(instance)
    before = files(first)
    fill(instance, 8192, 4096)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: recovered(instance, first), "another server")
    load = Load(instance, 2048)
    load.run(100, seed=2)
    load.verify()
    assert files(server(instance)) == before


def test_without_encryption_and_metrics_there_is_no_openssl(start: Start) -> None:
    instance = start("2M", "4M", None)
    status = instance.status()
    for pid in (status["pid"], status["server_pid"]):
        assert [name for name in files(pid) if "ssl" in name or "crypto" in name] == []

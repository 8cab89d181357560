"""A virtual size of 1 TiB costs what is used, not what could be."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from swapfs.testing.pages import page
from tests.fuse.instance import Instance, Start, punch

PAGE = 4096
CLUSTER = 512 * PAGE
TiB = 1 << 40
MiB = 1 << 20


@pytest.fixture(scope="module")
def instance(start_module: Start) -> Instance:
    return start_module("1T", "64M", None, "--overcommit", 100000)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def test_what_it_costs_empty(instance: Instance) -> None:
    status = instance.status()
    assert instance.swap.stat().st_size == TiB
    assert status["slots"]["empty"] == TiB // PAGE
    assert status["metadata_bytes"] == status["clusters"] == 0
    assert status["fixed_bytes"] < 12 * MiB, "21 bytes a cluster of 2 MiB, and the access log"
    pool = status["pool"]
    assert pool["used_bytes"] == 0
    for pid in (status["pid"], status["server_pid"]):
        assert resident_bytes(pid) < pool["limit_bytes"] + status["fixed_bytes"] + 120 * MiB


def test_sparse_writes_over_the_whole_range(instance: Instance) -> None:
    fd = instance.open()
    places = [number * (TiB // 256) + (number * 37 % 512) * PAGE for number in range(256)]
    places.append(TiB - PAGE)
    try:
        began_s = time.monotonic()
        for number, offset in enumerate(places):
            os.pwrite(fd, page("heap", number), offset)
        for number, offset in enumerate(places):
            assert os.pread(fd, PAGE, offset) == page("heap", number)
            before, after = offset - offset % CLUSTER, offset + PAGE
            if before < offset:
                assert os.pread(fd, PAGE, offset - PAGE) == bytes(PAGE)
            if after < TiB:
                assert os.pread(fd, PAGE, after) == bytes(PAGE)
        assert time.monotonic() - began_s < 10.0
        status = instance.status()
        assert status["slots"]["compressed"] == len(places)
        assert status["clusters"] == len(set(offset // CLUSTER for offset in places))
        assert status["metadata_bytes"] == status["clusters"] * PAGE
        punch(fd, 0, TiB)
        status = instance.status()
        assert (status["clusters"], status["metadata_bytes"]) == (0, 0)
        assert status["pool"]["used_bytes"] == 0
    finally:
        os.close(fd)


def test_metadata_per_occupied_slot(instance: Instance) -> None:
    """Full clusters cost 8 bytes a slot; 16 is the limit (the status says what it is)."""
    fd = instance.open()
    try:
        pages = b"".join(page("heap", number) for number in range(64))
        for number in range(32):
            os.pwrite(fd, pages * 8, TiB // 2 + number * CLUSTER)
        status = instance.status()
        assert status["slots"]["compressed"] == 32 * 512
        assert status["clusters"] == 32
        assert status["metadata_bytes_per_slot"] == 8.0
        lists = status["fixed_bytes"]
        assert lists < 12 * MiB
        punch(fd, TiB // 2, 33 * CLUSTER)
        assert instance.status()["slots"]["empty"] == TiB // PAGE
    finally:
        os.close(fd)


def test_the_status_does_not_cost_more_with_size(instance: Instance) -> None:
    began_s = time.monotonic()
    for _ in range(10):
        instance.status()
    assert time.monotonic() - began_s < 5.0


@pytest.mark.parametrize(
    ("options", "loaded"), [(("16M",), True), (("16M", "--no-file-encryption"), False), ((), False)]
)
def test_only_who_encrypts_holds_the_library(
    start: Start, options: tuple[str, ...], *, loaded: bool
) -> None:
    file, *rest = options or (None,)
    status = start("16M", "32M", file, *rest).status()
    for pid in (status["pid"], status["server_pid"]):
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert ("libcrypto" in maps) == loaded

"""Several swap files in one mount: apart from each other, and kept over servers and versions."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swapfs.errors import OperationError
from swapfs.host import loop
from swapfs.units import PAGE_SIZE, MiB
from tests.fuse.instance import Instance, Start, errno_of, is_alive, punch, run, wait_until
from tests.fuse.load import Load

pytestmark = pytest.mark.timeout(200)

TABLES = """
[[tier]]
name = "slow"
path = "{folder}/slow"
size = "64M"

[[export]]
name = "batch"
size = "6144K"
quota = "4M"
priority = 3

[[export]]
name = "rest"
size = "32M"
tiers = ["slow"]
"""


@pytest.fixture
def three(tmp_path: Path, start: Start) -> Instance:
    """Have swap (24 MiB less a page), batch with a quota, and rest that uses one tier of two."""
    config = tmp_path / "exports.toml"
    config.write_text(TABLES.format(folder=tmp_path))
    size = str(24 * MiB - PAGE_SIZE)
    return start(size, "8M", "64M", "--config", config, "--overcommit", "2")


def opened(instance: Instance, name: str) -> int:
    return os.open(instance.mountpoint / name, os.O_RDWR | os.O_CLOEXEC)


def exports_of(instance: Instance) -> dict[str, dict[str, Any]]:
    return {export["name"]: export for export in instance.status()["exports"]}


def answers(instance: Instance, but: int) -> bool:
    """Whether a server answers, *but* not that process."""
    try:
        return bool(instance.status()["server_pid"] != but)
    except OperationError:
        return False


def pages(seed: int, count: int) -> list[bytes]:
    """Return pages that nothing compresses, others for each *seed*."""
    whole = os.urandom(count * PAGE_SIZE - 8)
    data = seed.to_bytes(8, "little") + whole
    return [data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)]


def test_each_file_has_its_own_bytes(three: Instance) -> None:
    names = ["swap", "batch", "rest"]
    assert os.listdir(three.mountpoint) == names
    sizes = [(three.mountpoint / name).stat().st_size for name in names]
    assert sizes == [24 * MiB - PAGE_SIZE, 6 * MiB, 32 * MiB]
    assert [(three.mountpoint / name).stat().st_ino for name in names] == [2, 3, 4]
    files = {name: opened(three, name) for name in names}
    ends = dict(zip(names, sizes, strict=True))
    for number, (name, fd) in enumerate(files.items(), 1):
        assert os.pwrite(fd, bytes([number]) * PAGE_SIZE, 0) == PAGE_SIZE
        assert (
            os.pwrite(fd, bytes([number + 8]) * 2 * PAGE_SIZE, ends[name] - PAGE_SIZE) == PAGE_SIZE
        )
        assert errno_of(os.pwrite, fd, bytes(PAGE_SIZE), ends[name]) == "EFBIG"
    for number, (name, fd) in enumerate(files.items(), 1):
        assert os.pread(fd, PAGE_SIZE, 0) == bytes([number]) * PAGE_SIZE
        tail = os.pread(fd, 4 * PAGE_SIZE, ends[name] - PAGE_SIZE)
        assert tail == bytes([number + 8]) * PAGE_SIZE, "and nothing of the next file"
        assert os.pread(fd, PAGE_SIZE, ends[name]) == b""
    punch(files["batch"], 0, 6 * MiB)
    assert os.pread(files["batch"], PAGE_SIZE, 0) == bytes(PAGE_SIZE)
    assert os.pread(files["swap"], PAGE_SIZE, 0)[0] == 1
    assert os.pread(files["rest"], PAGE_SIZE, 0)[0] == 3
    assert [export["slots"] for export in exports_of(three).values()] == [2, 0, 2]
    for fd in files.values():
        os.close(fd)


def test_a_quota_refuses_and_is_shown(three: Instance) -> None:
    fd = opened(three, "batch")
    taken, results = pages(1, 1400), []
    for number, page in enumerate(taken):
        results.append(errno_of(os.pwrite, fd, page, number * PAGE_SIZE))
    assert set(results) == {"", "ENOSPC"}
    held = results.index("ENOSPC")
    assert 900 < held <= 1024
    batch = exports_of(three)["batch"]
    assert batch["slots"] == held
    assert batch["physical_bytes"] <= batch["quota_bytes"] == 4 * MiB
    assert batch["counters"]["refused_writes"] == 1400 - held
    assert three.counters()["failed_write_no_room"] == 0
    other = opened(three, "rest")
    assert os.pwrite(other, taken[0], 0) == PAGE_SIZE
    for number in range(held):
        assert os.pread(fd, PAGE_SIZE, number * PAGE_SIZE) == taken[number]
    said = three.cli("status").stdout
    assert f"{1400 - held} writes refused" in said
    scraped = three.cli("metrics").stdout
    assert f'swapfs_export_refused_writes_total{{export="batch",name="{three.name}"}}' in scraped
    os.close(fd)
    os.close(other)


def test_pages_go_to_the_tiers_that_their_file_may_use(three: Instance) -> None:
    for number, name in enumerate(("swap", "rest")):
        fd = opened(three, name)
        for at, page in enumerate(pages(number, 400)):
            assert os.pwrite(fd, page, at * PAGE_SIZE) == PAGE_SIZE
        os.close(fd)
    wait_until(lambda: three.demote(1000) == 0, "nothing to be left in memory")
    status = three.status()
    slots = {tier["name"]: tier["slots"] for tier in status["tiers"]}
    assert slots == {"file": 400, "slow": 400}
    assert {e["name"]: e["tiers"] for e in status["exports"]} == {
        "swap": ["file", "slow"],
        "batch": ["file", "slow"],
        "rest": ["slow"],
    }
    refused = run(
        *three.command, "tier", "drain", "slow", three.name, "--runtime-dir", three.runtime_dir
    )
    assert refused.returncode == 1
    assert "the other tiers have no room for" in refused.stderr


def test_servers_and_versions_come_and_go_under_load(three: Instance) -> None:
    loads = []
    for number, name in enumerate(("swap", "rest")):
        source: Any = SimpleNamespace(open=lambda name=name: opened(three, name))
        load = Load(source, 1500)
        load.versions = itertools.count(1 + number * 1_000_000)  # else both write the same pages
        loads.append(load)
    for step in range(4):
        for load in loads:
            load.run(60, seed=step)
        if step == 1:
            done = three.cli("upgrade")
            assert done.returncode == 0, done.stderr
        else:
            server = three.status()["server_pid"]
            os.kill(server, signal.SIGKILL)
            wait_until(lambda pid=server: not is_alive(pid), "the server to die")
    for load in loads:
        load.verify()
    counters = three.counters()
    assert counters["failed_read_io"] == counters["failed_read_checksum"] == 0
    assert counters["server_starts"] == 5
    verified = three.cli("verify")
    assert verified.returncode == 0, verified.stderr


def test_a_server_that_comes_counts_as_the_one_before(three: Instance) -> None:
    for number, name in enumerate(("swap", "batch", "rest")):
        fd = opened(three, name)
        for at, page in enumerate(pages(number, 300)):
            assert os.pwrite(fd, page, at * PAGE_SIZE) == PAGE_SIZE
        os.close(fd)
    three.demote(500)
    keys = ("slots", "payload_bytes", "physical_bytes", "pool_bytes", "quota_bytes")
    before = {name: [e[key] for key in keys] for name, e in exports_of(three).items()}
    server = three.status()["server_pid"]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: answers(three, but=server), "another server")
    assert {name: [e[key] for key in keys] for name, e in exports_of(three).items()} == before
    assert three.cli("upgrade").returncode == 0
    assert {name: [e[key] for key in keys] for name, e in exports_of(three).items()} == before


def test_loop_devices_on_any_file_are_seen_and_taken_down(three: Instance) -> None:
    devices = {name: str(loop.attach(three.mountpoint / name).device) for name in ("batch", "rest")}
    shown = {name: export["loop"] for name, export in exports_of(three).items()}
    assert shown == {"swap": None, **devices}
    again = run(*three.mount_command("--size", "4M", "--pool", "4M"))
    assert again.returncode == 1
    assert "already mounted" in again.stderr
    done = three.cli("down")
    assert done.returncode == 0, done.stderr
    for device in devices.values():
        assert f"detached {device}" in done.stdout
    three.assert_gone()


def test_a_bad_description_is_one_line_and_leaves_nothing(
    tmp_path: Path, make_instance: Start
) -> None:
    instance = make_instance()
    config = tmp_path / "exports.toml"
    config.write_text('[[export]]\nname = "batch"\nsize = "64M"\nquota = "4M"\n')
    words = ("--size", "4M", "--pool", "16M", "--overcommit", "5", "--config", config)
    refused = run(*instance.mount_command(*words))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "the quota of batch holds 3.9M of incompressible pages, and its size is 64M" in line
    instance.assert_gone()

"""Recompression in a real server, under load, over deaths and upgrades."""

from __future__ import annotations

import pytest

from tests.fuse.instance import Instance, Start, wait_until
from tests.fuse.load import Load, fill
from tests.fuse.test_recovery import kill_server, recovered

pytestmark = pytest.mark.timeout(200)
OPTIONS = ("--recompress", "--recompress-watermark", 1)


def _work_until_recompressed(instance: Instance, load: Load, more: int, seed: int) -> None:
    """Read, write and discard until *more* pages have been put into zstd."""
    wanted = instance.counters()["recompressed_pages"] + more
    for number in range(200):
        load.run(40, seed=seed * 1000 + number)
        if instance.counters()["recompressed_pages"] >= wanted:
            return
    raise AssertionError(instance.counters())


@pytest.mark.parametrize("file", ["", "64M"], ids=["memory only", "file"])
def test_pages_become_zstd_and_outlive_servers(start: Start, file: str) -> None:
    options = OPTIONS if file else (*OPTIONS, "--overcommit", 20)
    instance = start("32M", "16M", file or None, *options)
    fill(instance, 2048, 4096)
    load = Load(instance, 2048)
    _work_until_recompressed(instance, load, 500, seed=1)
    assert instance.status()["slots"]["recompressed"] > 0

    dead = kill_server(instance)
    wait_until(lambda: recovered(instance, dead), "another server")
    fill(instance, 4096, 1024)
    _work_until_recompressed(instance, load, 200, seed=2)

    done = instance.cli("upgrade")
    assert done.returncode == 0, done.stderr
    fill(instance, 5120, 1024)
    _work_until_recompressed(instance, load, 200, seed=3)
    if file:
        instance.demote(1000)
        assert instance.counters()["demoted_pages"] > 0
    load.verify()
    counters = instance.counters()
    for failed in ("failed_read_io", "failed_read_checksum", "handler_errors", "lost_pages"):
        assert counters[failed] == 0
    assert counters["recompress_saved_bytes"] > 0
    realtime = {guard["name"]: guard for guard in instance.status()["guards"]}["realtime"]
    assert realtime["ok"] or "SCHED" not in realtime["detail"]

"""Readers, writers and discarders on the same slots, while pages move between the tiers."""

from __future__ import annotations

import threading

import pytest

from tests.fuse.instance import Start
from tests.fuse.load import Load, fill


def test_in_memory(start: Start) -> None:
    instance = start("64M", "96M")
    load = Load(instance, 256)
    load.run(600, seed=1)
    load.verify()
    assert instance.counters()["handler_errors"] == 0


@pytest.mark.parametrize("promote", [False, True], ids=["stay", "promote"])
def test_while_pages_move_between_tiers(start: Start, promote: bool) -> None:
    """A pool of 4 MiB under 40 MiB of pages: demotion, direct writes and disk reads meanwhile."""
    options = ["--promote"] if promote else []
    instance = start("64M", "4M", "160M", *options)
    fill(instance, 6144, 4096)
    load = Load(instance, 4096)
    load.run(700, seed=2, kinds="wwwwrrrd")
    demoting = threading.Thread(target=lambda: [instance.demote(300) for _ in range(5)])
    demoting.start()
    load.run(300, seed=3, kinds="wwrrrrd")
    demoting.join()
    load.verify()
    counters = instance.counters()
    assert counters["demoted_pages"] > 0
    assert counters["read_file_pages"] > 0
    assert counters["write_direct_pages"] > 0
    assert (counters["promoted_pages"] > 0) == promote
    failures = ("handler_errors", "failed_read_io", "failed_read_checksum", "failed_write_no_room")
    assert {name: counters[name] for name in failures} == dict.fromkeys(failures, 0)


def test_hot_slots(start: Start) -> None:
    """Eight slots, demoted again and again: every race there is is on these."""
    instance = start("64M", "4M", "160M")
    fill(instance, 6144, 2048)
    load = Load(instance, 80)
    stop = threading.Event()

    def keep_demoting() -> None:
        while not stop.is_set():
            instance.demote(2048)

    demoting = threading.Thread(target=keep_demoting)
    demoting.start()
    try:
        load.run(500, seed=4, kinds="wwrrrd")
    finally:
        stop.set()
        demoting.join()
    load.verify()
    counters = instance.counters()
    assert counters["read_file_pages"] > 0
    assert counters["handler_errors"] == counters["failed_read_checksum"] == 0

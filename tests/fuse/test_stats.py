"""The figures add up: with a scan of the table from outside, and with what was done."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import urllib.request
from collections import Counter, defaultdict

from prometheus_client.parser import text_string_to_metric_families

from swapfs.region.layout import Region
from swapfs.testing.pages import mixed_pages, page
from swapfs.tiers import sector_ref
from swapfs.units import CLUSTER_SLOTS
from swapfs.vlayer.entry import STATES, Backing, backing, blob_length, ref_of, state_of
from tests.fuse.instance import Instance, Start, punch
from tests.fuse.load import Load, fill

PAGE = 4096
SIZE = 64 << 20


def scan(region: Region) -> tuple[Counter[str], int, int]:
    """Return slots by state, payload bytes and live clusters, from the region alone."""
    states: Counter[str] = Counter()
    payload_bytes = clusters = 0
    for table_page in region.directory.tolist():
        if not table_page:
            continue
        clusters += 1
        start = (table_page - 1) * CLUSTER_SLOTS
        for word in region.arena_words[start : start + CLUSTER_SLOTS].tolist():
            states[state_of(word)] += 1
            if backing(word) is Backing.POOL:
                payload_bytes += blob_length(word)
            elif backing(word) is Backing.BELOW:
                payload_bytes += sector_ref.longest(ref_of(word))
    states["empty"] += (region.geometry.clusters - clusters) * CLUSTER_SLOTS
    return states, payload_bytes, clusters


def assert_adds_up(instance: Instance) -> dict[str, int]:
    """Compare the status with a scan; return the slots by state."""
    region = instance.region()
    try:
        status = instance.status()
        states, payload_bytes, clusters = scan(region)
    finally:
        region.close()
    slots: dict[str, int] = status["slots"]
    assert slots == {state: states[state] for state in STATES}
    assert sum(slots.values()) * PAGE == status["size_bytes"]
    assert status["orig_bytes"] == (sum(slots.values()) - slots["empty"]) * PAGE
    assert status["clusters"] == clusters
    assert status["metadata_bytes"] == clusters * PAGE
    assert status["compr_bytes"] == payload_bytes
    pool, tiers = status["pool"], status["tiers"]
    assert pool["payload_bytes"] + sum(tier["payload_bytes"] for tier in tiers) == payload_bytes
    assert pool["payload_bytes"] + status["metadata_bytes"] <= pool["used_bytes"]
    assert pool["used_bytes"] <= pool["peak_bytes"] <= pool["limit_bytes"]
    for tier in tiers:
        assert tier["payload_bytes"] <= tier["used_bytes"] <= tier["size_bytes"]
    return slots


def test_states_are_what_a_scan_of_the_table_finds(small: Instance) -> None:
    assert assert_adds_up(small)["empty"] == SIZE // PAGE
    rng = random.Random(5)
    fd = small.open()
    seen: Counter[str] = Counter()
    try:
        for round_number in range(6):
            pages = mixed_pages(round_number, 2048)
            first = rng.randrange(SIZE // PAGE - len(pages))
            assert os.pwrite(fd, b"".join(pages), first * PAGE) == len(pages) * PAGE
            punch(fd, rng.randrange(SIZE), rng.randrange(SIZE // 8))
            small.demote(500)
            seen += Counter(assert_adds_up(small))
        assert set(seen) == set(STATES) - {"lost", "recompressed"}, "every other state was seen"
        punch(fd, 0, SIZE)
        assert assert_adds_up(small)["empty"] == SIZE // PAGE
        status = small.status()
        assert status["pool"]["used_bytes"] == status["tiers"][0]["used_bytes"] == 0
    finally:
        os.close(fd)


def test_states_add_up_after_a_load(start: Start) -> None:
    instance = start("64M", "4M", "160M")
    fill(instance, 8192, 4096)
    load = Load(instance, 2048)
    load.run(300, seed=8)
    load.verify()
    assert_adds_up(instance)


def test_counters_are_what_was_done(start: Start) -> None:
    instance = start("64M", "96M", "64M")
    fd = instance.open()
    before = instance.counters()
    try:
        kinds = ["text"] * 5 + ["random"] * 7
        data = b"\1" * PAGE + b"\2" * PAGE + b"abcd" * (PAGE // 4)
        data += b"".join(page(kind, number) for number, kind in enumerate(kinds))
        os.pwrite(fd, data, 0)
        os.pread(fd, len(data) + 2 * PAGE, 0)  # two pages were never written
        os.pwrite(fd, b"part", 100 * PAGE + 10)
        punch(fd, 0, 3 * PAGE)
        demoted = instance.demote(1 << 20)
        os.pread(fd, PAGE, 3 * PAGE)
    finally:
        os.close(fd)
    after = instance.counters()
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert demoted == 13
    exact = {
        "write_same_pages": 3,
        "write_compressed_pages": 6,
        "write_raw_pages": 7,
        "read_same_pages": 3,
        "read_pool_pages": 12,
        "read_file_pages": 1,
        "refaulted_pages": 1,
        "read_bytes": len(data) + 3 * PAGE,
        "written_bytes": len(data) + 4,
        "partial_requests": 1,
        "discard_requests": 1,
        "discarded_pages": 3,
        "demoted_pages": 13,
        "demoted_raw_pages": 7,
        "demoted_batches": 1,
        "file_write_ops": 1,
        "file_read_ops": 1,
    }
    assert {name: grown.pop(name, 0) for name in exact} == exact
    assert grown.pop("read_empty_pages") >= 2
    assert 0 < grown.pop("demoted_payload_bytes") < grown.pop("file_written_bytes")
    assert grown.pop("file_read_bytes") % 512 == 0
    assert grown == {}, "and nothing else was counted"


def test_latencies_count_every_request(start: Start) -> None:
    instance = start("64M", "96M")
    fd = instance.open()
    try:
        for slot in range(100):
            os.pwrite(fd, b"x" * PAGE, slot * PAGE)
        for slot in range(70):
            os.pread(fd, PAGE, slot * PAGE)
        for slot in range(30):
            punch(fd, slot * PAGE, PAGE)
    finally:
        os.close(fd)
    latency = instance.status()["latency"]
    totals = {(one["op"], one["tier"]): sum(one["counts"]) for one in latency["series"]}
    assert totals["write", "memory"] == 100
    assert totals["read", "memory"] == 70
    assert totals["discard", "memory"] == 30
    assert sum(totals.values()) == 200
    assert all(len(one["counts"]) == len(latency["bounds_s"]) + 1 for one in latency["series"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """Return every sample by name, summed over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    totals: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] += sample.value
    return dict(totals)


def test_scraping_during_load_fails_nothing(start: Start) -> None:
    port = free_port()
    instance = start("64M", "4M", "160M", "--metrics", f"127.0.0.1:{port}")
    fill(instance, 8192, 4096)
    load = Load(instance, 1024)
    done = threading.Event()
    scrapes: list[dict[str, float]] = []
    failures: list[Exception] = []

    def keep_scraping() -> None:
        while not done.is_set():
            try:
                scrapes.append(scrape(port))
            except Exception as error:  # noqa: BLE001 - a thread cannot fail a test
                failures.append(error)

    scraper = threading.Thread(target=keep_scraping)
    scraper.start()
    try:
        load.run(400, seed=9)
    finally:
        done.set()
        scraper.join()
    load.verify()
    assert failures == []
    assert len(scrapes) >= 3
    for name in scrapes[0]:
        assert name.startswith("swapfs_"), name
    for name in ("swapfs_read_bytes_total", "swapfs_written_bytes_total"):
        values = [one[name] for one in scrapes]
        assert values == sorted(values), f"{name} went back"
        assert values[-1] > values[0]
    last, counters = scrape(port), instance.counters()
    assert last["swapfs_written_bytes_total"] == counters["written_bytes"]
    assert last["swapfs_slots"] == SIZE // PAGE
    assert last["swapfs_handler_errors_total"] == 0


def test_scraping_holds_no_request_up(start: Start) -> None:
    """Reads of 4 KiB beside a scraper that never pauses: none waits for a scrape to end."""
    port = free_port()
    instance = start("64M", "96M", None, "--metrics", f"127.0.0.1:{port}")
    fill(instance, 0, 4096)
    fd = instance.open()
    done = threading.Event()

    def keep_scraping() -> None:
        while not done.is_set():
            scrape(port)

    scraper = threading.Thread(target=keep_scraping)
    scraper.start()
    took_s = []
    try:
        for slot in range(4000):
            began_s = time.perf_counter()
            os.pread(fd, PAGE, slot * PAGE)
            took_s.append(time.perf_counter() - began_s)
    finally:
        done.set()
        scraper.join()
        os.close(fd)
    took_s.sort()
    assert took_s[len(took_s) // 2] < 0.005
    assert took_s[-1] < 0.5, "a request waited for a scrape"

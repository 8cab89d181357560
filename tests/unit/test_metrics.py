"""metrics: what a scrape says of a snapshot, over HTTP and as a textfile."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from swapfs.errors import AddressAbsent, OperationError
from swapfs.region.counters import COUNTERS
from swapfs.region.export_rows import FIGURES as EXPORT_COUNTERS
from swapfs.region.stack_rows import COUNTERS as TIER_COUNTERS
from swapfs.server import http_server, metrics
from swapfs.server.http_server import HttpServer
from swapfs.server.metric_table import METRICS, reference
from swapfs.server.status import Status
from swapfs.vlayer.health import Health

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

BOUNDS_S = (1e-05, 0.0001, 0.001, 1.0)
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


EXPORT: dict[str, Any] = {
    "name": "swap",
    "size_bytes": 1 << 30,
    "priority": 100,
    "quota_bytes": 1 << 28,
    "slots": 80,
    "payload_bytes": 8081,
    "physical_bytes": 8082,
    "pool_bytes": 8083,
    "counters": {name: 84 + index for index, name in enumerate(EXPORT_COUNTERS)},
    "swap": {"device": "/dev/loop0", "used_bytes": 4099, "priority": 100},
}


def make_snapshot() -> dict[str, Any]:
    """Return a snapshot in which every number is different."""
    return {
        "name": "swap-a",
        "version": "9.8.7",
        "pid": 4242,
        "mountpoint": "/run/swapfs/swap-a/mnt",
        "size_bytes": 1 << 30,
        "overcommit": 1.5,
        "room_bytes": (1 << 30) + 4096,
        "started_unix_s": 1.7e9,
        "degraded": [],
        "cpu_latency": {"mode": "adaptive", "held": True, "holds": 21, "held_s": 22.5},
        "slots": {"empty": 10, "same": 11, "compressed": 12, "raw": 13, "file": 14},
        "orig_bytes": 50 * 4096,
        "compr_bytes": 70001,
        "pool": {
            "limit_bytes": 1 << 26,
            "used_bytes": 60002,
            "payload_bytes": 50003,
            "peak_bytes": 60004,
            "zspages_free": 1005,
            "max_bytes": 1006,
        },
        "metadata_bytes": 4096,
        "fixed_bytes": 8192,
        "metadata_bytes_per_slot": 8.1,
        "clusters": 1,
        "tiers": [
            {
                "name": "file",
                "path": "/var/lib/swapfs/swap-a",
                "size_bytes": 1 << 29,
                "used_bytes": 20480,
                "payload_bytes": 20001,
                "bad_bytes": 512,
                "healthy": True,
                "direct_io": True,
                "kind": "file",
                "state": "ok",
                "budget_hour_bytes": 1 << 30,
                "used_hour_bytes": 12345,
                "counters": {name: 70 + index for index, name in enumerate(TIER_COUNTERS)},
                "reading": {"bounds_s": [0.5], "counts": [3, 1], "sum_s": 0.75},
            }
        ],
        "counters": {name: 1_000_000 + index for index, name in enumerate(COUNTERS)},
        "latency": {
            "bounds_s": list(BOUNDS_S),
            "series": [
                {"op": "read", "tier": "memory", "counts": [5, 0, 2, 1, 3], "sum_s": 4.5},
                {"op": "write", "tier": "file", "counts": [0, 0, 0, 0, 0], "sum_s": 0.0},
            ],
        },
        "guards": [
            {"name": "mlock", "ok": True, "required": True, "detail": "VmLck 100M"},
            {"name": "io_flusher", "ok": False, "required": True, "detail": "refused"},
        ],
        "requests_in_flight": 2,
        "kernel": {"fuse_minor": 45, "resend": True},
        "swap": {"device": "/dev/loop0", "size_bytes": 4097, "used_bytes": 4098, "priority": 100},
        "loop": "/dev/loop0",
        "exports": [EXPORT],
    }


def scrape(snapshot: dict[str, Any]) -> dict[str, Family]:
    text = generate_latest(metrics.make_registry(lambda: Status.from_dict(snapshot))).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Family], name: str, **labels: str) -> float:
    """Return the one sample called *name* that has *labels*."""
    (found,) = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return found


@pytest.fixture
def snapshot() -> dict[str, Any]:
    return make_snapshot()


def test_every_row_of_the_table_is_exported_with_its_help(snapshot: dict[str, Any]) -> None:
    families = scrape(snapshot)
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert family.type == metric.kind
        assert family.documentation == metric.help
        assert metric.help.endswith(".")
        assert family.samples, f"{metric.name} has no sample"
    assert len(families) == len(METRICS) == len({metric.name for metric in METRICS})


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert metric.name.startswith("swapfs_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not {"instance", "job", "name", "le"} & set(metric.labels)


def test_every_sample_carries_the_instance_name(snapshot: dict[str, Any]) -> None:
    for family in scrape(snapshot).values():
        for sample in family.samples:
            assert sample.labels["name"] == "swap-a"


@pytest.mark.parametrize("counter", COUNTERS)
def test_counter_of_the_region_is_exported(counter: str, snapshot: dict[str, Any]) -> None:
    number = snapshot["counters"][counter]
    samples = [s for family in scrape(snapshot).values() for s in family.samples]
    (found,) = [sample for sample in samples if sample.value == number]
    assert found.name.endswith("_total")


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("swapfs_info", {"version": "9.8.7", "mountpoint": "/run/swapfs/swap-a/mnt"}, 1),
        ("swapfs_slots", {"state": "raw"}, 13),
        ("swapfs_slots", {"state": "empty"}, 10),
        ("swapfs_mem_used_bytes", {}, 60002 + 4096 + 8192),
        ("swapfs_pool_free_zspages", {}, 1005),
        ("swapfs_tier_bad_bytes", {"tier": "file", "kind": "file"}, 512),
        ("swapfs_tier_state", {"tier": "file", "state": "ok"}, 1),
        ("swapfs_tier_state", {"tier": "file", "state": "spent"}, 0),
        ("swapfs_tier_budget_bytes", {"tier": "file", "window": "hour"}, 1 << 30),
        ("swapfs_tier_budget_used_bytes", {"tier": "file", "window": "hour"}, 12345),
        ("swapfs_tier_written_bytes_total", {"tier": "file", "kind": "file"}, 70),
        ("swapfs_tier_duration_seconds_count", {"tier": "file", "op": "read"}, 4),
        ("swapfs_tier_info", {"tier": "file", "state": "ok"}, 1),
        ("swapfs_health", {"check": "mlock"}, 1),
        ("swapfs_health", {"check": "io_flusher"}, 0),
        ("swapfs_health", {"check": "tier_file"}, 1),
        ("swapfs_swap_active", {}, 1),
        ("swapfs_swap_used_bytes", {}, 4098),
        ("swapfs_inflight_requests", {}, 2),
        ("swapfs_degraded_reasons", {}, 0),
        ("swapfs_overcommit_ratio", {}, 1.5),
    ],
)
def test_gauge_comes_from_its_place_in_the_snapshot(
    name: str, labels: dict[str, str], expected: float, snapshot: dict[str, Any]
) -> None:
    assert value(scrape(snapshot), name, **labels) == expected


def test_failing_tier_and_reasons_show(snapshot: dict[str, Any]) -> None:
    snapshot["tiers"][0]["healthy"] = False
    snapshot["degraded"] = ["file tier: demotion stopped", "io_flusher does not hold"]
    families = scrape(snapshot)
    assert value(families, "swapfs_health", check="tier_file") == 0
    assert value(families, "swapfs_degraded_reasons") == 2


FAILING = Health()
FAILING.failed("write at sector 4242: Input/output error", now_s=100.0)
STUCK = Health()
STUCK.begin(1, now_s=100.0)
FULL = Health(full=True)


@pytest.mark.parametrize(
    ("health", "state"), [(Health(), "ok"), (FULL, "full"), (FAILING, "failing"), (STUCK, "stuck")]
)
def test_state_of_a_tier_is_one_word_and_no_new_series_at_each_scrape(
    health: Health, state: str, snapshot: dict[str, Any]
) -> None:
    (tier,) = snapshot["tiers"]
    for now_s in (106.0, 107.0, 150.0):
        tier["state"] = health.state(now_s)
        tier["detail"] = health.problem(now_s)
        (sample,) = scrape(snapshot)["swapfs_tier_info"].samples
        assert sample.labels["state"] == state
        assert sample.value == 1


def test_memory_only_instance_without_swap_has_no_empty_claims(snapshot: dict[str, Any]) -> None:
    snapshot.update(tiers=[], swap=None, loop=None)
    families = scrape(snapshot)
    assert value(families, "swapfs_swap_active") == 0
    for absent in ("swapfs_swap_size_bytes", "swapfs_tier_size_bytes", "swapfs_tier_info"):
        assert families[absent].samples == []


def test_histogram_is_cumulative_and_ends_at_the_count(snapshot: dict[str, Any]) -> None:
    samples = scrape(snapshot)["swapfs_request_duration_seconds"].samples
    buckets = [
        (float(s.labels["le"]), s.value)
        for s in samples
        if s.name.endswith("_bucket") and s.labels["op"] == "read"
    ]
    assert buckets == [(1e-05, 5), (0.0001, 5), (0.001, 7), (1.0, 8), (math.inf, 11)]
    by_name = {s.name: s.value for s in samples if s.labels["op"] == "read"}
    assert by_name["swapfs_request_duration_seconds_count"] == 11
    assert by_name["swapfs_request_duration_seconds_sum"] == 4.5


def test_counts_that_do_not_fit_the_bounds_are_refused(snapshot: dict[str, Any]) -> None:
    snapshot["latency"]["series"][0]["counts"].pop()
    with pytest.raises(ValueError, match=r"shorter|longer"):
        scrape(snapshot)


def test_label_values_are_escaped(snapshot: dict[str, Any]) -> None:
    snapshot["tiers"][0]["path"] = 'a"b\\c\nd'
    families = scrape(snapshot)
    assert value(families, "swapfs_tier_info", path='a"b\\c\nd') == 1


def test_reference_in_the_docs_is_the_table() -> None:
    assert reference() in DOCS.read_text(), (
        "paste swapfs.server.metric_table.reference() into the docs"
    )


# HTTP

Serve = Callable[[Callable[[], dict[str, Any]]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[HttpServer] = []

    def start(take: Callable[[], dict[str, Any]]) -> str:
        server = metrics.serve(("127.0.0.1", 0), lambda: Status.from_dict(take()))
        servers.append(server)
        return "http://{}:{}".format(*server.address)

    yield start
    for server in servers:
        server.close()


def get(url: str, accept: str = "") -> tuple[int, str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_scrape_over_http_in_both_formats(serve: Serve, snapshot: dict[str, Any]) -> None:
    url = serve(lambda: snapshot)
    status, content_type, text = get(f"{url}/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=0.0.4")
    assert len(list(text_string_to_metric_families(text))) == len(METRICS)
    status, content_type, text = get(
        f"{url}/metrics?x=1", "application/openmetrics-text; version=1.0.0"
    )
    assert content_type.startswith("application/openmetrics-text")
    families = list(parse_openmetrics(text))  # type: ignore[no-untyped-call]
    assert len(families) == len(METRICS)


def test_healthz_tells_the_reasons(serve: Serve, snapshot: dict[str, Any]) -> None:
    url = serve(lambda: snapshot)
    assert get(f"{url}/healthz")[::2] == (200, "ok\n")
    snapshot["degraded"] = ["file tier: demotion stopped", "mlock does not hold"]
    assert get(f"{url}/healthz")[::2] == (
        503,
        "file tier: demotion stopped\nmlock does not hold\n",
    )


def test_other_paths_are_not_found(serve: Serve, snapshot: dict[str, Any]) -> None:
    assert get(f"{serve(lambda: snapshot)}/")[0] == 404


def test_failing_snapshot_is_a_500_and_the_next_scrape_works(
    serve: Serve, snapshot: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    def take() -> dict[str, Any]:
        if broken:
            raise RuntimeError("region is gone")
        return snapshot

    url = serve(take)
    for _ in range(3):
        assert get(f"{url}/metrics")[0] == 500
    assert "region is gone" in caplog.text
    broken = False
    assert get(f"{url}/metrics")[0] == 200


def test_scrapes_during_updates_never_go_backwards_nor_mix_snapshots(serve: Serve) -> None:
    shared = make_snapshot()
    done = threading.Event()

    def update() -> None:
        while not done.is_set():
            counters = shared["counters"]
            counts = shared["latency"]["series"][0]["counts"]
            for _ in range(100):
                counters["read_pool_pages"] += 1
                counts[0] += 1

    url = serve(lambda: copy.deepcopy(shared))
    writer = threading.Thread(target=update)
    writer.start()
    try:
        last = 0.0
        for _ in range(20):
            text = get(f"{url}/metrics")[2]
            families = {family.name: family for family in text_string_to_metric_families(text)}
            reads = value(families, "swapfs_reads_total", result="pool")
            assert reads >= last
            last = reads
            durations = "swapfs_request_duration_seconds"
            count = value(families, f"{durations}_count", op="read")
            assert value(families, f"{durations}_bucket", op="read", le="+Inf") == count
    finally:
        done.set()
        writer.join()


def connect(url: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    client.settimeout(20)
    return client


def test_slow_clients_cost_only_their_own_places(serve: Serve, snapshot: dict[str, Any]) -> None:
    url = serve(lambda: snapshot)
    with contextlib.ExitStack() as slow:
        clients = [slow.enter_context(connect(url)) for _ in range(http_server.CLIENTS_MAX - 1)]
        for client in clients:
            client.sendall(b"GET /met")
        assert get(f"{url}/metrics")[0] == 200
        for client in clients:
            client.sendall(b"rics HTTP/1.1\r\n\r\n")
        assert all(client.recv(12) == b"HTTP/1.1 200" for client in clients), "they were waited for"


def test_when_all_places_are_taken_the_oldest_makes_room(
    serve: Serve, snapshot: dict[str, Any]
) -> None:
    url = serve(lambda: snapshot)
    with contextlib.ExitStack() as slow:
        clients = [slow.enter_context(connect(url)) for _ in range(http_server.CLIENTS_MAX)]
        assert get(f"{url}/metrics")[0] == 200
        assert clients[0].recv(1) == b""
        clients[1].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert clients[1].recv(12) == b"HTTP/1.1 200"


def test_the_deadline_is_for_the_request_and_not_for_a_byte(snapshot: dict[str, Any]) -> None:
    now_s = [100.0]
    answer = metrics.respond(lambda: Status.from_dict(snapshot))
    server = HttpServer(("127.0.0.1", 0), answer, lambda: now_s[0])
    url = "http://{}:{}".format(*server.address)
    with connect(url) as client:
        client.sendall(b"GET")
        assert get(f"{url}/metrics")[0] == 200, "so that one is known to have been seen"
        now_s[0] += http_server.REQUEST_TIMEOUT_S + 1
        client.sendall(b" ")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    server.close()


def raw(url: str, request: bytes) -> bytes:
    with connect(url) as client:
        client.sendall(request)
        answer = b""
        while chunk := client.recv(1 << 16):
            answer += chunk
        return answer


def test_head_is_get_without_the_body(serve: Serve, snapshot: dict[str, Any]) -> None:
    url = serve(lambda: snapshot)
    whole = raw(url, b"GET /metrics HTTP/1.1\r\n\r\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert raw(url, b"HEAD /metrics HTTP/1.1\r\n\r\n") == head + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\r\n\r\n", b"400"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\xff\xfe\x00 \x00 \x00\r\n\r\n", b"400"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"405"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000, b"431"),
        (b"HEAD /nowhere HTTP/1.0\n\n", b"404"),
    ],
)
def test_other_requests_are_answered(
    serve: Serve, snapshot: dict[str, Any], request_: bytes, status: bytes
) -> None:
    url = serve(lambda: snapshot)
    assert raw(url, request_).split()[1] == status
    assert get(f"{url}/metrics")[0] == 200


def test_client_that_leaves_at_once_does_no_harm(serve: Serve, snapshot: dict[str, Any]) -> None:
    url = serve(lambda: snapshot)
    port = int(url.rpartition(":")[2])
    for _ in range(2 * http_server.CLIENTS_MAX):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # close with a reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert get(f"{url}/metrics")[0] == 200


def test_number_of_threads_does_not_grow_with_requests(
    serve: Serve, snapshot: dict[str, Any]
) -> None:
    seen: set[int] = set()

    def take() -> dict[str, Any]:
        seen.add(threading.get_native_id())
        return snapshot

    url = serve(take)
    for _ in range(10):
        get(f"{url}/metrics")
    assert len(seen) == 1


def test_address_in_use_is_one_line(serve: Serve, snapshot: dict[str, Any]) -> None:
    port = int(serve(lambda: snapshot).rpartition(":")[2])
    with pytest.raises(OperationError) as caught:
        metrics.serve(("127.0.0.1", port), lambda: Status.from_dict(snapshot))
    assert str(caught.value) == f"metrics address 127.0.0.1:{port}: Address already in use"


@pytest.mark.parametrize("address", [("192.0.2.1", 0), ("127.0.0.1", 70000), ("not a host", 1)])
def test_address_that_cannot_be_bound_is_an_operation_error(address: tuple[str, int]) -> None:
    with pytest.raises(OperationError, match="metrics address"):
        metrics.serve(address, lambda: Status.from_dict(make_snapshot()))


def test_address_that_may_still_come_is_told_from_a_wrong_one() -> None:
    late, wrong = ("192.0.2.1", 0), ("127.0.0.1", 70000)
    for address, kind in ((late, AddressAbsent), (wrong, OperationError)):
        with pytest.raises(OperationError) as caught:
            metrics.serve(address, lambda: Status.from_dict(make_snapshot()))
        assert type(caught.value) is kind


def test_ipv6_is_served(snapshot: dict[str, Any]) -> None:
    try:
        server = metrics.serve(("::1", 0), lambda: Status.from_dict(snapshot))
    except OperationError as error:
        pytest.skip(f"no IPv6 here: {error}")
    host, port = server.address
    assert get(f"http://[{host}]:{port}/healthz")[0] == 200
    server.close()


def test_close_frees_the_port_and_ends_the_threads(snapshot: dict[str, Any]) -> None:
    server = metrics.serve(("127.0.0.1", 0), lambda: Status.from_dict(snapshot))
    address = server.address
    server.close()
    server.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("metrics-")]
    again = metrics.serve(address, lambda: Status.from_dict(snapshot))
    again.close()


# textfile


def test_textfile_is_whole_and_leaves_nothing_else(
    tmp_path: Path, snapshot: dict[str, Any]
) -> None:
    path = tmp_path / "swapfs.prom"
    for _ in range(2):
        metrics.write_textfile(path, Status.from_dict(snapshot))
    assert [entry.name for entry in tmp_path.iterdir()] == ["swapfs.prom"]
    assert len(list(text_string_to_metric_families(path.read_text()))) == len(METRICS)


def test_textfile_may_be_read_whatever_the_umask(tmp_path: Path, snapshot: dict[str, Any]) -> None:
    before = os.umask(0o077)
    try:
        metrics.write_textfile(tmp_path / "swapfs.prom", Status.from_dict(snapshot))
    finally:
        os.umask(before)
    assert (tmp_path / "swapfs.prom").stat().st_mode & 0o777 == 0o644


def test_several_instances_are_one_text(snapshot: dict[str, Any]) -> None:
    other = {**snapshot, "name": "swap-b", "counters": {}}
    text = metrics.text(Status.from_dict(snapshot), Status.from_dict(other))
    families = list(text_string_to_metric_families(text))
    assert len(families) == len(METRICS)
    (sizes,) = [family for family in families if family.name == "swapfs_size_bytes"]
    assert [sample.labels["name"] for sample in sizes.samples] == ["swap-a", "swap-b"]


def test_textfile_failure_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, snapshot: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swapfs.prom"
    metrics.write_textfile(path, Status.from_dict(snapshot))
    before = path.read_text()

    def fail(source: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    snapshot["size_bytes"] = 8192
    with pytest.raises(OperationError, match=r"swapfs\.prom: No space left on device"):
        metrics.write_textfile(path, Status.from_dict(snapshot))
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["swapfs.prom"]


def test_textfile_into_a_missing_directory_is_one_line(
    tmp_path: Path, snapshot: dict[str, Any]
) -> None:
    with pytest.raises(OperationError, match=r"missing/swapfs\.prom: No such file"):
        metrics.write_textfile(tmp_path / "missing" / "swapfs.prom", Status.from_dict(snapshot))

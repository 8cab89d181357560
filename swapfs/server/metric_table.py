"""Every metric that swapfs exports: name, kind, labels, help, and where its values come from.

One table, ``METRICS``, over the status snapshot; no HTTP and no Prometheus library here. The
names follow zram and zswap where they have a word for it. Rules: namespace ``swapfs_``, base
units, counters end in ``_total``, and every sample carries the label ``name`` (the instance's
name, as in the configuration), without which two instances would clash in one textfile
directory; ``instance`` and ``job`` are left to Prometheus, which sets them when it scrapes.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from swapfs.vlayer.health import condition

Snapshot = dict[str, Any]
"""The status snapshot, as ``swapfs status --json`` shows it."""
Sample = tuple[tuple[str, ...], float]
"""Label values, in the order of ``Metric.labels``, and the value."""
Read = Callable[[Snapshot], Iterable[Sample]]

INSTANCE_LABEL: Final = "name"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table; ``read`` yields its samples from a snapshot."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    read: Read
    labels: tuple[str, ...] = ()


def _gauge(name: str, text: str, read: Read, *labels: str) -> Metric:
    return Metric(f"swapfs_{name}", "gauge", text, read, labels)


def _counter(name: str, text: str, read: Read, *labels: str) -> Metric:
    return Metric(f"swapfs_{name}_total", "counter", text, read, labels)


def _at(*keys: str) -> Read:
    """Read one number at a path of keys; nothing if a part of the path is null."""

    def read(snapshot: Snapshot) -> Iterable[Sample]:
        value: Any = snapshot
        for key in keys:
            if value is None:
                return
            value = value[key]
        yield (), float(value)

    return read


def _count(name: str) -> Read:
    return _at("counters", name)


def _counts(**names: str) -> Read:
    """Read several counters as one metric: label value -> counter name."""

    def read(snapshot: Snapshot) -> Iterable[Sample]:
        for value, name in names.items():
            yield (value,), float(snapshot["counters"][name])

    return read


def _tiers(key: str) -> Read:
    def read(snapshot: Snapshot) -> Iterable[Sample]:
        for tier in snapshot["tiers"]:
            yield (tier["name"],), float(tier[key])

    return read


def _tier_info(snapshot: Snapshot) -> Iterable[Sample]:
    for tier in snapshot["tiers"]:
        yield (tier["name"], tier["path"], condition(tier["state"])), 1.0


def _info(snapshot: Snapshot) -> Iterable[Sample]:
    yield (snapshot["version"], platform.python_version(), snapshot["mountpoint"]), 1.0


def _slots(snapshot: Snapshot) -> Iterable[Sample]:
    for state, slots in snapshot["slots"].items():
        yield (state,), float(slots)


def _mem_used(snapshot: Snapshot) -> Iterable[Sample]:
    used = snapshot["pool"]["used_bytes"] + snapshot["metadata_bytes"] + snapshot["fixed_bytes"]
    yield (), float(used)


def _health(snapshot: Snapshot) -> Iterable[Sample]:
    for guard in snapshot["guards"]:
        yield (guard["name"],), float(guard["ok"])
    for tier in snapshot["tiers"]:
        yield (f"tier_{tier['name']}",), float(tier["healthy"])


def _degraded(snapshot: Snapshot) -> Iterable[Sample]:
    yield (), float(len(snapshot["degraded"]))


def _swap_active(snapshot: Snapshot) -> Iterable[Sample]:
    yield (), float(snapshot["swap"] is not None)


def _no_plain_samples(_: Snapshot) -> Iterable[Sample]:
    """Stand in for a histogram, which the collector builds from ``latency``."""
    return ()


METRICS: Final = (
    # the instance
    _gauge("info", "Always 1; the labels say what runs.", _info, "version", "python", "mountpoint"),
    _gauge("start_time_seconds", "Unix time at which the server started.", _at("started_unix_s")),
    _gauge("health", "1 if a guard or tier holds, 0 if not.", _health, "check"),
    _gauge("degraded_reasons", "Reasons why the instance is degraded; 0 is fine.", _degraded),
    _gauge(
        "resend_supported",
        "1 if a new server can go on with the requests of a dead one; absent before the mount.",
        _at("kernel", "resend"),
    ),
    _gauge("inflight_requests", "Requests being served now.", _at("requests_in_flight")),
    # size and content
    _gauge("size_bytes", "Virtual size that the kernel sees.", _at("size_bytes")),
    _gauge("room_bytes", "Bytes that can be held whatever they are.", _at("room_bytes")),
    _gauge("overcommit_ratio", "Virtual size allowed per byte of room.", _at("overcommit")),
    _gauge("slots", "Slots of one page, by what backs them.", _slots, "state"),
    _gauge("orig_data_bytes", "Occupied slots times the page size.", _at("orig_bytes")),
    _gauge("compr_data_bytes", "Payload held for them, in pool and tiers.", _at("compr_bytes")),
    # memory
    _gauge("mem_used_bytes", "Memory used: pool, swap table and fixed parts.", _mem_used),
    _gauge("pool_limit_bytes", "Size of the preallocated pool.", _at("pool", "limit_bytes")),
    _gauge("pool_used_bytes", "Pool in use, with its waste.", _at("pool", "used_bytes")),
    _gauge("pool_payload_bytes", "Pool in use, payload only.", _at("pool", "payload_bytes")),
    _gauge("pool_peak_bytes", "Largest pool use so far.", _at("pool", "peak_bytes")),
    _gauge("pool_free_zspages", "Zspages that no size class owns.", _at("pool", "zspages_free")),
    _gauge("metadata_bytes", "Swap table clusters in use.", _at("metadata_bytes")),
    _gauge("fixed_bytes", "Header, directory, allocators, map of the file.", _at("fixed_bytes")),
    _gauge("clusters", "Swap table clusters of 512 slots in use.", _at("clusters")),
    # tiers below the pool
    _gauge(
        "tier_info",
        "Always 1; where a tier is and its state: ok, full, failing or stuck.",
        _tier_info,
        *("tier", "path", "state"),
    ),
    _gauge("tier_size_bytes", "Size of a tier.", _tiers("size_bytes"), "tier"),
    _gauge("tier_used_bytes", "Tier in use, with its waste.", _tiers("used_bytes"), "tier"),
    _gauge("tier_payload_bytes", "Tier in use, payload only.", _tiers("payload_bytes"), "tier"),
    _gauge("tier_bad_bytes", "Tier given up as bad.", _tiers("bad_bytes"), "tier"),
    # the kernel's view
    _gauge("swap_active", "1 while the kernel swaps on this instance.", _swap_active),
    _gauge("swap_size_bytes", "Size in /proc/swaps; absent when off.", _at("swap", "size_bytes")),
    _gauge("swap_used_bytes", "Used in /proc/swaps; absent when off.", _at("swap", "used_bytes")),
    _gauge("swap_priority", "Priority in /proc/swaps; absent when off.", _at("swap", "priority")),
    # pages in and out
    _counter(
        "reads",
        "Pages read, by where they were found.",
        _counts(
            empty="read_empty_pages",
            same="read_same_pages",
            pool="read_pool_pages",
            file="read_file_pages",
        ),
        "result",
    ),
    _counter(
        "writes",
        "Pages written, by what became of them; direct is straight to a tier below the pool.",
        _counts(
            same="write_same_pages",
            compressed="write_compressed_pages",
            raw="write_raw_pages",
            direct="write_direct_pages",
        ),
        "result",
    ),
    _counter("read_bytes", "Bytes that requests asked to read.", _count("read_bytes")),
    _counter("written_bytes", "Bytes that requests asked to write.", _count("written_bytes")),
    _counter(
        "partial_requests",
        "Requests that are not whole pages (zram: invalid_io).",
        _count("partial_requests"),
    ),
    _counter("discard_requests", "Discards received.", _count("discard_requests")),
    _counter(
        "discarded_pages",
        "Occupied slots freed by them (zram: notify_free).",
        _count("discarded_pages"),
    ),
    # between tiers
    _counter("demoted_pages", "Pages moved from the pool down.", _count("demoted_pages")),
    _counter("demoted_payload_bytes", "Payload of those.", _count("demoted_payload_bytes")),
    _counter("demoted_batches", "Writes that carried them.", _count("demoted_batches")),
    _counter("promoted_pages", "Pages brought back to the pool.", _count("promoted_pages")),
    _counter("refaulted_pages", "Pages read soon after their demotion.", _count("refaulted_pages")),
    _counter("cleaned_pages", "Pages moved within a tier to free space.", _count("cleaned_pages")),
    _counter(
        "compacted_pages", "Pages moved within the pool to free zspages.", _count("compacted_pages")
    ),
    # the backing file
    _counter("file_read_bytes", "Bytes read from the backing file.", _count("file_read_bytes")),
    _counter("file_read_ops", "Reads of the backing file.", _count("file_read_ops")),
    _counter(
        "file_written_bytes", "Bytes written to the backing file.", _count("file_written_bytes")
    ),
    _counter("file_write_ops", "Writes to the backing file.", _count("file_write_ops")),
    _counter("bad_sectors", "Sectors of the backing file given up.", _count("bad_sectors")),
    # failures
    _counter(
        "failed_reads",
        "Pages that could not be read, by cause; the kernel got EIO for each.",
        _counts(io="failed_read_io", checksum="failed_read_checksum"),
        "reason",
    ),
    _counter(
        "failed_writes",
        "Pages that could not be stored, by cause.",
        _counts(no_room="failed_write_no_room", io="failed_write_io"),
        "reason",
    ),
    _counter(
        "failed_demotions", "Demotions that failed; pages stayed.", _count("failed_demotions")
    ),
    _counter(
        "pool_full", "Writes that found the pool full (zswap: pool_limit_hit).", _count("pool_full")
    ),
    _counter("handler_errors", "Requests ended by a bug in swapfs.", _count("handler_errors")),
    _counter("server_starts", "Starts of the server over this region.", _count("server_starts")),
    # latency
    Metric(
        "swapfs_request_duration_seconds",
        "histogram",
        "Time to serve one request, by operation and by the slowest tier that it waited for.",
        _no_plain_samples,
        ("op", "tier"),
    ),
)
"""Every metric, in the order in which it is exported and documented."""


def reference() -> str:
    """Return the Markdown table of every metric, as docs/metrics.md holds it."""
    rows = ["| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows) + "\n"

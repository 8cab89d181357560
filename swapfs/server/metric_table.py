"""Every metric that swapfs exports: name, kind, labels, help, and where its values come from.

One table, ``METRICS``, over the status snapshot; no HTTP and no Prometheus library here. The
names follow zram and zswap where they have a word for it. Rules: namespace ``swapfs_``, base
units, counters end in ``_total``, and every sample carries the label ``name`` (the instance's
name, as in the configuration), without which two instances would clash in one textfile
directory; ``instance`` and ``job`` are left to Prometheus, which sets them when it scrapes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from swapfs.server.export_metrics import EXPORT_METRICS
from swapfs.server.metric import Metric, Read, Sample, Series
from swapfs.server.status import Status, TierStatus, meaning, value_at
from swapfs.tiers.state import TierState


def _gauge(name: str, text: str, read: Read, *labels: str) -> Metric:
    return Metric(f"swapfs_{name}", "gauge", text, read, labels)


def _figure(name: str, path: str) -> Metric:
    """Return the metric of one figure of the status, which says what it means."""

    def read(status: Status) -> Iterable[Sample]:
        value = value_at(status, path)
        if value is not None:
            yield (), float(value)

    return _gauge(name, meaning(path), read)


def _total(name: str, path: str) -> Metric:
    """Return likewise a counter that is a figure of the status."""
    figure = _figure(name, path)
    return replace(figure, name=f"{figure.name}_total", kind="counter")


def _tier_figure(name: str, path: str) -> Metric:
    def read(status: Status) -> Iterable[Sample]:
        for tier in status.tiers:
            yield (tier.name, tier.kind), float(value_at(tier, path) or 0)

    return _gauge(name, meaning(path, TierStatus), read, "tier", "kind")


def _counter(name: str, text: str) -> Metric:
    """Return the metric of the counter *name* of the region."""

    def read(status: Status) -> Iterable[Sample]:
        if name in status.counters:  # else of another version
            yield (), float(status.counters[name])

    return Metric(f"swapfs_{name}_total", "counter", text, read)


def _counters(name: str, text: str, label: str, **counters: str) -> Metric:
    """Return several counters as one metric: value of *label* -> counter of the region."""

    def read(status: Status) -> Iterable[Sample]:
        for value, counter in counters.items():
            if counter in status.counters:
                yield (value,), float(status.counters[counter])

    return Metric(f"swapfs_{name}_total", "counter", text, read, (label,))


def _tier_counter(name: str, text: str, counter: str) -> Metric:
    """Return the counter *counter* of each tier."""

    def read(status: Status) -> Iterable[Sample]:
        for tier in status.tiers:
            if counter in tier.counters:
                yield (tier.name, tier.kind), float(tier.counters[counter])

    return Metric(f"swapfs_tier_{name}_total", "counter", text, read, ("tier", "kind"))


def _budget(status: Status) -> Iterable[Sample]:
    for tier in status.tiers:
        for window in ("hour", "day"):
            if limit := value_at(tier, f"budget_{window}_bytes"):
                yield (tier.name, tier.kind, window), float(limit)


def _budget_used(status: Status) -> Iterable[Sample]:
    for tier in status.tiers:
        for window in ("hour", "day"):
            used = value_at(tier, f"used_{window}_bytes")
            if used is not None:
                yield (tier.name, tier.kind, window), float(used)


def _tier_state(status: Status) -> Iterable[Sample]:
    for tier in status.tiers:
        for state in TierState:
            if state is not TierState.UNKNOWN:
                yield (tier.name, tier.kind, state), float(tier.state is state)


def _tier_latency(status: Status) -> Iterable[Series]:
    for tier in status.tiers:
        for op, taken in (("read", tier.reading), ("write", tier.writing)):
            if taken is not None:
                yield (tier.name, tier.kind, op), taken.bounds_s, taken.counts, taken.sum_s


def _request_latency(status: Status) -> Iterable[Series]:
    for series in status.latency.series:
        yield (series.op, series.tier), status.latency.bounds_s, series.counts, series.sum_s


def _tier_info(status: Status) -> Iterable[Sample]:
    for tier in status.tiers:
        yield (tier.name, tier.kind, tier.path, tier.state), 1.0


def _info(status: Status) -> Iterable[Sample]:
    yield (status.version, platform.python_version(), status.mountpoint or ""), 1.0


def _slots(status: Status) -> Iterable[Sample]:
    for state, slots in status.slots.items():
        yield (state,), float(slots)


def _health(status: Status) -> Iterable[Sample]:
    for guard in status.guards:
        yield (guard.name,), float(guard.ok)
    for tier in status.tiers:
        yield (f"tier_{tier.name}",), float(tier.healthy)


def _degraded(status: Status) -> Iterable[Sample]:
    yield (), float(len(status.degraded))


def _swap_active(status: Status) -> Iterable[Sample]:
    yield (), float(status.swap is not None)


def _no_plain_samples(_: Status) -> Iterable[Sample]:
    """Stand in for a histogram, whose samples are ``series``."""
    return ()


METRICS: Final = (
    # the instance
    _gauge("info", "Always 1; the labels say what runs.", _info, "version", "python", "mountpoint"),
    _figure("start_time_seconds", "started_unix_s"),
    _gauge("health", "1 if a guard or tier holds, 0 if not.", _health, "check"),
    _gauge("degraded_reasons", "Reasons why the instance is degraded; 0 is fine.", _degraded),
    _figure("resend_supported", "kernel.resend"),
    _figure("inflight_requests", "requests_in_flight"),
    _figure("cpu_latency_held", "cpu_latency.held"),
    _total("cpu_latency_holds", "cpu_latency.holds"),
    _total("cpu_latency_held_seconds", "cpu_latency.held_s"),
    # size and content
    _figure("size_bytes", "size_bytes"),
    _figure("room_bytes", "room_bytes"),
    _figure("overcommit_ratio", "overcommit"),
    _gauge("slots", "Slots of one page, by what backs them.", _slots, "state"),
    _figure("orig_data_bytes", "orig_bytes"),
    _figure("compr_data_bytes", "compr_bytes"),
    # memory
    _figure("mem_used_bytes", "memory_bytes"),
    _figure("pool_limit_bytes", "pool.limit_bytes"),
    _figure("pool_max_bytes", "pool.max_bytes"),
    _figure("pool_used_bytes", "pool.used_bytes"),
    _figure("pool_payload_bytes", "pool.payload_bytes"),
    _figure("pool_peak_bytes", "pool.peak_bytes"),
    _figure("pool_free_zspages", "pool.zspages_free"),
    _figure("metadata_bytes", "metadata_bytes"),
    _figure("fixed_bytes", "fixed_bytes"),
    _figure("clusters", "clusters"),
    # tiers below the pool
    _gauge(
        "tier_info",
        "Always 1; where a tier is and its state: ok, full, spent, failing or stuck.",
        _tier_info,
        *("tier", "kind", "path", "state"),
    ),
    _tier_figure("tier_slots", "slots"),
    _tier_figure("tier_size_bytes", "size_bytes"),
    _tier_figure("tier_used_bytes", "used_bytes"),
    _tier_figure("tier_payload_bytes", "payload_bytes"),
    _tier_figure("tier_bad_bytes", "bad_bytes"),
    _gauge(
        "tier_state",
        "1 for the state that a tier is in: ok, full, spent, failing or stuck.",
        _tier_state,
        *("tier", "kind", "state"),
    ),
    _gauge(
        "tier_budget_bytes",
        "Bytes that may be written to a tier in an hour or a day; absent without a budget.",
        _budget,
        *("tier", "kind", "window"),
    ),
    _gauge(
        "tier_budget_used_bytes",
        "Bytes written to a tier in this hour or day.",
        _budget_used,
        *("tier", "kind", "window"),
    ),
    _tier_counter("reads", "Reads of a tier.", "reads"),
    _tier_counter("read_bytes", "Bytes read from a tier.", "read_bytes"),
    _tier_counter("read_pages", "Pages that were asked for and found in a tier.", "read_pages"),
    _tier_counter("writes", "Writes to a tier.", "writes"),
    _tier_counter(
        "written_bytes", "Bytes written to a tier, for whatever reason.", "written_bytes"
    ),
    _tier_counter(
        "moved_in_pages", "Pages moved to a tier: down to it, and within it.", "moved_in_pages"
    ),
    _tier_counter(
        "moved_out_pages", "Pages moved from a tier: up, down and within it.", "moved_out_pages"
    ),
    _tier_counter("read_errors", "Pages of a tier that could not be read.", "read_errors"),
    _tier_counter("write_errors", "Writes to a tier that failed.", "write_errors"),
    # the swap files
    *EXPORT_METRICS,
    # the kernel's view
    _gauge("swap_active", "1 while the kernel swaps on this instance.", _swap_active),
    _figure("swap_size_bytes", "swap.size_bytes"),
    _figure("swap_used_bytes", "swap.used_bytes"),
    _figure("swap_priority", "swap.priority"),
    # pages in and out
    _counters(
        "reads",
        "Pages read, by where they were found.",
        "result",
        empty="read_empty_pages",
        same="read_same_pages",
        pool="read_pool_pages",
        file="read_file_pages",
    ),
    _counters(
        "writes",
        "Pages written, by what became of them; direct is straight to a tier below the pool.",
        "result",
        same="write_same_pages",
        compressed="write_compressed_pages",
        raw="write_raw_pages",
        direct="write_direct_pages",
    ),
    _counter("read_bytes", "Bytes that requests asked to read."),
    _counter("written_bytes", "Bytes that requests asked to write."),
    _counter("partial_requests", "Requests that are not whole pages (zram: invalid_io)."),
    _counter("discard_requests", "Discards received."),
    _counter("discarded_pages", "Occupied slots freed by them (zram: notify_free)."),
    # between tiers
    _counter("demoted_pages", "Pages moved from the pool down."),
    _counter("demoted_raw_pages", "Those of them that were kept raw in the pool (zram: huge)."),
    _counter("demoted_payload_bytes", "Payload of those."),
    _counter("demoted_batches", "Writes that carried them."),
    _counter("promoted_pages", "Pages brought back to the pool."),
    _counter("prefetched_pages", "Pages brought up along with others that were read."),
    _counter("prefetch_used_pages", "Pages of those that were read then; others may still be."),
    _counter("refaulted_pages", "Pages read soon after their demotion."),
    _counter("cleaned_pages", "Pages moved within a tier to free space."),
    _counter("drained_pages", "Pages moved out of a tier that is being drained."),
    _counter("sunk_pages", "Pages moved from a tier to one below it."),
    _counter("policy_failures", "Policies that failed and were replaced by the default."),
    _counter("lost_pages", "Pages found damaged on the way, whose slots read as errors now."),
    _counter("oom_calls", "Times swap stood still for memory and the OOM killer was called."),
    _counter("compacted_pages", "Pages moved within the pool to free zspages."),
    _counter("recompressed_pages", "Pages of the pool put from lz4 into zstd."),
    _counter("recompressed_down_pages", "Pages put into zstd on their way down."),
    _counter("recompress_refused_pages", "Pages tried, but not smaller in zstd."),
    _counter("recompress_returned_pages", "Pages put back into lz4, as they were read often."),
    _counter("recompress_saved_bytes", "Payload that recompression in the pool has saved."),
    # the backing file
    _counter("file_read_bytes", "Bytes read from the backing file."),
    _counter("file_read_ops", "Reads of the backing file."),
    _counter("read_ahead_ops", "Those that took more than was asked for."),
    _counter("read_ahead_bytes", "What they took more."),
    _counter("read_ahead_pages", "Pages of it, or of another's read, that needed no read."),
    _counter("file_written_bytes", "Bytes written to the backing file."),
    _counter("file_write_ops", "Writes to the backing file."),
    _counter("bad_sectors", "Sectors of the backing file given up."),
    # failures
    _counters(
        "failed_reads",
        "Pages that could not be read, by cause; the kernel got EIO for each.",
        "reason",
        io="failed_read_io",
        checksum="failed_read_checksum",
    ),
    _counters(
        "failed_writes",
        "Pages that could not be stored, by cause.",
        "reason",
        no_room="failed_write_no_room",
        quota="failed_write_over_quota",
        io="failed_write_io",
    ),
    _counter("failed_demotions", "Demotions that failed; pages stayed."),
    _counter("pool_full", "Writes that found the pool full (zswap: pool_limit_hit)."),
    _counter("handler_errors", "Requests ended by a bug in swapfs."),
    _counter("server_starts", "Starts of the server over this region."),
    # latency
    Metric(
        "swapfs_request_duration_seconds",
        "histogram",
        "Time to serve one request, by operation and by the slowest tier that it waited for.",
        _no_plain_samples,
        ("op", "tier"),
        _request_latency,
    ),
    Metric(
        "swapfs_tier_duration_seconds",
        "histogram",
        "Time that a tier took for one read or write of its own, which may be of many pages.",
        _no_plain_samples,
        ("tier", "kind", "op"),
        _tier_latency,
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

"""The metrics of each swap file of an instance, by the label ``export``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from swapfs.server.metric import Metric, Sample
from swapfs.server.status import ExportStatus, Status, meaning, value_at

_LABELS: Final = ("export",)


def _figure(name: str, path: str) -> Metric:
    """Return the metric of one figure of each export, absent where there is none."""

    def read(status: Status) -> Iterable[Sample]:
        for export in status.exports:
            value = value_at(export, path)
            if value is not None:
                yield (export.name,), float(value)

    return Metric(f"swapfs_export_{name}", "gauge", meaning(path, ExportStatus), read, _LABELS)


def _counter(name: str, text: str, counter: str) -> Metric:
    def read(status: Status) -> Iterable[Sample]:
        for export in status.exports:
            if counter in export.counters:
                yield (export.name,), float(export.counters[counter])

    return Metric(f"swapfs_export_{name}_total", "counter", text, read, _LABELS)


def _swap_active(status: Status) -> Iterable[Sample]:
    for export in status.exports:
        yield (export.name,), float(export.swap is not None)


EXPORT_METRICS: Final = (
    _figure("size_bytes", "size_bytes"),
    _figure("slots", "slots"),
    _figure("payload_bytes", "payload_bytes"),
    _figure("physical_bytes", "physical_bytes"),
    _figure("pool_bytes", "pool_bytes"),
    _figure("quota_bytes", "quota_bytes"),
    _figure("swap_used_bytes", "swap.used_bytes"),
    Metric(
        "swapfs_export_swap_active",
        "gauge",
        "1 while the kernel swaps on an export.",
        _swap_active,
        _LABELS,
    ),
    _counter("demoted_pages", "Pages of an export moved from the pool down.", "demoted_pages"),
    _counter(
        "refused_writes", "Times that an export was refused a page by its quota.", "refused_writes"
    ),
)
"""In the order in which they are exported and documented."""

"""The Prometheus face of the status snapshot: scrape over HTTP, or a textfile.

Takes one snapshot per scrape and formats it afterwards, holding no lock and walking no slot:
the snapshot's maker decides what a scrape costs. Knows nothing of the server behind it. The
metrics themselves are listed in ``metric_table.METRICS``.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from swapfs.errors import AddressAbsent, OperationError
from swapfs.server.http_server import HttpServer, Respond, Response
from swapfs.server.live import PAGE
from swapfs.server.metric import INSTANCE_LABEL, Metric
from swapfs.server.metric_table import METRICS

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client.metrics_core import Metric as Family

    from swapfs.server.metric import Series
    from swapfs.server.status import Status

log = logging.getLogger(__name__)

TakeSnapshot = Callable[[], "Status"]


class StatusCollector(Collector):
    """Turns status snapshots into metric families at each scrape.

    :param snapshots: one of each instance; called once per scrape, in the scraping thread
    """

    def __init__(self, *snapshots: TakeSnapshot) -> None:
        self._snapshots = snapshots

    def describe(self) -> Iterable[Family]:
        """Yield the families without samples, so that registering takes no snapshot."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterator[Family]:
        """Yield every family with the samples of one snapshot of each instance."""
        taken = [take() for take in self._snapshots]
        for metric in METRICS:
            family = _family(metric)
            for snapshot in taken:
                _add(family, metric, snapshot)
            yield family


def _family(metric: Metric) -> GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily:
    labels = (INSTANCE_LABEL, *metric.labels)
    match metric.kind:
        case "gauge":
            return GaugeMetricFamily(metric.name, metric.help, labels=labels)
        case "counter":
            return CounterMetricFamily(metric.name, metric.help, labels=labels)
        case "histogram":
            return HistogramMetricFamily(metric.name, metric.help, labels=labels)


def _add(
    family: GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily,
    metric: Metric,
    snapshot: Status,
) -> None:
    instance = str(snapshot.name)
    if isinstance(family, HistogramMetricFamily):
        for series in metric.series(snapshot) if metric.series else ():
            _add_series(family, instance, series)
        return
    for labels, value in metric.read(snapshot):
        family.add_metric([instance, *labels], value)


def _add_series(family: HistogramMetricFamily, instance: str, series: Series) -> None:
    labels, bounds_s, counts, sum_s = series
    bounds = [repr(bound) for bound in bounds_s] + ["+Inf"]
    # the snapshot's counts are per bucket, Prometheus wants "at most this long"
    buckets = list(zip(bounds, accumulate(counts), strict=True))
    family.add_metric([instance, *labels], buckets, sum_s)


def make_registry(*snapshots: TakeSnapshot) -> CollectorRegistry:
    """Return a registry of its own that exports *snapshots* and nothing else."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(*snapshots))
    return registry


def text(*statuses: Status) -> str:
    """Return the metrics of *statuses* in Prometheus's text format."""
    takes = [functools.partial(_itself, status) for status in statuses]
    return exposition.generate_latest(make_registry(*takes)).decode()


def _itself(status: Status) -> Status:
    return status


def write_textfile(path: Path, status: Status) -> None:
    """Write the metrics to *path* (``*.prom``) for node_exporter's textfile collector.

    Formatted first, written beside it and renamed: node_exporter, which is another user, never
    reads half a file and may read it whatever the umask, and a failure leaves the old one.

    :raises OperationError: the directory does not take the file
    """
    data = text(status).encode()
    beside = path.with_name(f".{path.name}.{os.getpid()}")  # not *.prom: not collected
    try:
        try:
            beside.write_bytes(data)
            beside.chmod(0o644)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OperationError(f"metrics file {path}: {error.strerror or error}") from error


def respond(snapshot: TakeSnapshot, live: Callable[[Status], bytes] | None = None) -> Respond:
    """Return what answers the requests of an HTTP server with *snapshot*.

    :param live: makes the JSON of the page at ``/`` of a snapshot; None: there is no page
    """
    registry = make_registry(snapshot)

    def answer(path: str, accept: str) -> Response:
        plain = "text/plain; charset=utf-8"
        try:
            if path == "/metrics":
                encode, content_type = exposition.choose_encoder(accept)
                return HTTPStatus.OK, content_type, encode(registry)
            if live is not None and path == "/":
                return HTTPStatus.OK, "text/html; charset=utf-8", PAGE
            if live is not None and path == "/live.json":
                return HTTPStatus.OK, "application/json", live(snapshot())
            if path == "/healthz":
                reasons = snapshot().degraded
                body = "\n".join(reasons or ["ok"]) + "\n"
                status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
                return status, plain, body.encode()
        except Exception:  # a scrape must not end its thread, whatever the snapshot raises
            log.exception("metrics: no snapshot for %s", path)
            return HTTPStatus.INTERNAL_SERVER_ERROR, plain, b"no status; see the log of swapfs\n"
        return HTTPStatus.NOT_FOUND, plain, b"try /, /metrics or /healthz\n"

    return answer


def serve(
    addr: tuple[str, int],
    snapshot: TakeSnapshot,
    live: Callable[[Status], bytes] | None = None,
) -> HttpServer:
    """Start serving *snapshot* on *addr* (host, port) and return when the port is bound.

    :param snapshot: called in the server's thread once per request; must not wait for I/O
    :param live: see ``respond``
    :raises AddressAbsent: this machine does not have the address, or not yet
    :raises OperationError: it is in use, or may not be used
    """
    try:
        return HttpServer(addr, respond(snapshot, live))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        absent = getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        kind = AddressAbsent if absent else OperationError
        raise kind(f"metrics address {addr[0]}:{addr[1]}: {reason}") from error

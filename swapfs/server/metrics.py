"""The Prometheus face of the status snapshot: scrape over HTTP, or a textfile.

Takes one snapshot per scrape and formats it afterwards, holding no lock and walking no slot:
the snapshot's maker decides what a scrape costs. Knows nothing of the server behind it. The
metrics themselves are listed in ``metric_table.METRICS``.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from itertools import accumulate
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from swapfs.errors import AddressAbsent, OperationError
from swapfs.server.metric_table import INSTANCE_LABEL, METRICS, Metric

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client.metrics_core import Metric as Family

    from swapfs.server.status import Latency, Status

log = logging.getLogger(__name__)

WORKERS: Final = 2
"""Requests served at once; more wait in the listen queue. The threads exist from the start."""
LISTEN_QUEUE: Final = 8
CLIENT_TIMEOUT_S: Final = 5.0
"""How long one client may keep a worker waiting for its bytes."""

TakeSnapshot = Callable[[], "Status"]
Response = tuple[HTTPStatus, str, bytes]


class StatusCollector(Collector):
    """Turns a status snapshot into metric families at each scrape.

    :param snapshot: called once per scrape, in the scraping thread
    """

    def __init__(self, snapshot: TakeSnapshot) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Family]:
        """Yield the families without samples, so that registering takes no snapshot."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterator[Family]:
        """Yield every family with the samples of one snapshot."""
        snapshot = self._snapshot()
        instance = str(snapshot.name)
        for metric in METRICS:
            family = _family(metric)
            if isinstance(family, HistogramMetricFamily):
                _add_latency(family, instance, snapshot.latency)
            else:
                for labels, value in metric.read(snapshot):
                    family.add_metric([instance, *labels], value)
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


def _add_latency(family: HistogramMetricFamily, instance: str, latency: Latency) -> None:
    bounds = [repr(bound) for bound in latency.bounds_s] + ["+Inf"]
    for series in latency.series:
        # the snapshot's counts are per bucket, Prometheus wants "at most this long"
        buckets = list(zip(bounds, accumulate(series.counts), strict=True))
        family.add_metric([instance, series.op, series.tier], buckets, series.sum_s)


def make_registry(snapshot: TakeSnapshot) -> CollectorRegistry:
    """Return a registry of its own that exports *snapshot* and nothing else."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(snapshot))
    return registry


def write_textfile(path: Path, snapshot: TakeSnapshot) -> None:
    """Write the metrics to *path* (``*.prom``) for node_exporter's textfile collector.

    Formatted first, written beside it and renamed: node_exporter never reads half a file, and
    a failure leaves the old one.

    :raises OperationError: the directory does not take the file
    """
    text = exposition.generate_latest(make_registry(snapshot))
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # not *.prom: not collected
    try:
        beside.write_bytes(text)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OperationError(f"metrics file {path}: {error.strerror or error}") from error


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    timeout = CLIENT_TIMEOUT_S
    server_version = "swapfs"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        status, content_type, body = self.server.respond(path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("metrics: " + format, *args)  # noqa: G003 (format comes from http.server)


class _Listener(TCPServer):
    allow_reuse_address = True
    request_queue_size = LISTEN_QUEUE

    def __init__(self, address: tuple[str, int], snapshot: TakeSnapshot) -> None:
        # the first address that the host name stands for, IPv4 or IPv6
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        self._snapshot = snapshot
        self._registry = make_registry(snapshot)
        super().__init__(address, _Handler)

    def respond(self, path: str, accept: str) -> Response:
        text = "text/plain; charset=utf-8"
        try:
            if path == "/metrics":
                encode, content_type = exposition.choose_encoder(accept)
                return HTTPStatus.OK, content_type, encode(self._registry)
            if path == "/healthz":
                reasons = self._snapshot().degraded
                body = "\n".join(reasons or ["ok"]) + "\n"
                status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
                return status, text, body.encode()
        except Exception:  # a scrape must not end its worker, whatever the snapshot raises
            log.exception("metrics: no snapshot for %s", path)
            return HTTPStatus.INTERNAL_SERVER_ERROR, text, b"no status; see the log of swapfs\n"
        return HTTPStatus.NOT_FOUND, text, b"try /metrics or /healthz\n"


class MetricsServer:
    """Serves ``/metrics`` and ``/healthz`` from a fixed number of daemon threads.

    The socket is bound and the threads exist when the constructor returns; they inherit the
    creator's IO_FLUSHER and scheduling policy. A fixed number, because a thread per request
    would map (and under ``mlockall`` populate) a new stack while swap is short.

    :raises OSError: the address cannot be bound
    """

    def __init__(self, address: tuple[str, int], snapshot: TakeSnapshot) -> None:
        self._listener = _Listener(address, snapshot)
        self._closing = threading.Event()
        self._workers = [
            threading.Thread(target=self._work, name=f"metrics-{number}", daemon=True)
            for number in range(WORKERS)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that are really bound, for a configured port of 0."""
        host, port = self._listener.socket.getsockname()[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Stop listening and wait for the requests being served. May be called twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._listener.socket.shutdown(socket.SHUT_RDWR)  # wakes accept() with an error
        for worker in self._workers:
            worker.join(CLIENT_TIMEOUT_S)
        self._listener.server_close()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                request, address = self._listener.get_request()
            except OSError:
                self._closing.wait(1.0)  # out of descriptors: do not spin, least of all as FIFO
                continue
            try:
                self._listener.process_request(request, address)
            except OSError as error:  # the client went away
                log.debug("metrics: request from %s failed: %s", address, error)
                self._listener.shutdown_request(request)
            except Exception:  # the worker must outlive whatever one client sends
                log.exception("metrics: request from %s failed", address)
                self._listener.shutdown_request(request)


def serve(addr: tuple[str, int], snapshot: TakeSnapshot) -> MetricsServer:
    """Start serving *snapshot* on *addr* (host, port) and return when the port is bound.

    :param snapshot: called in a metrics thread once per request; must not wait for I/O
    :raises AddressAbsent: this machine does not have the address, or not yet
    :raises OperationError: it is in use, or may not be used
    """
    try:
        return MetricsServer(addr, snapshot)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        absent = getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        kind = AddressAbsent if absent else OperationError
        raise kind(f"metrics address {addr[0]}:{addr[1]}: {reason}") from error

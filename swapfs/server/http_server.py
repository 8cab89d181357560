"""A small HTTP server for scrapes: one thread, a fixed number of clients, a deadline for each.

Nobody waits for a client here: one that sends or takes a byte now and then costs its own place
until its time is up, and when all places are taken the one that has had its place longest makes
room for the next. One thread that exists from the start, because a thread per request would map
(and under ``mlockall`` populate) a new stack while swap is short. Answers GET and HEAD, each on a
connection of its own. Knows nothing of what it serves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

log = logging.getLogger(__name__)

CLIENTS_MAX: Final = 16
LISTEN_QUEUE: Final = 16
REQUEST_TIMEOUT_S: Final = 5.0
"""From the connection to the last byte of the answer, however many come meanwhile."""
HEAD_BYTES_MAX: Final = 16 << 10
_READ_BYTES: Final = 4 << 10
_NO_DESCRIPTOR_PAUSE_S: Final = 1.0

Response = tuple[HTTPStatus, str, bytes]
"""Status, content type and body."""
Respond = Callable[[str, str], Response]
"""(path without query, value of the header Accept) -> response; must not wait for I/O."""


@dataclass(slots=True, eq=False)
class _Client:
    """One connection: its request until that is whole, then the rest of its answer."""

    stream: socket.socket
    deadline_s: float
    head: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None
    """None until it is asked; empty when all is sent, and it may read that in peace."""


class HttpServer:
    """Serves *respond* on *address* from the moment the constructor returns.

    The thread inherits its creator's IO_FLUSHER and scheduling policy.

    :raises OSError: the address cannot be bound
    """

    def __init__(
        self,
        address: tuple[str, int],
        respond: Respond,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._respond = respond
        self._clock_s = clock_s
        self._listener = _listen(address)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._clients: list[_Client] = []  # the oldest first
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that are really bound, for a configured port of 0."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Stop listening and drop who is still served. May be called twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(REQUEST_TIMEOUT_S)
        if self._thread.is_alive():
            return  # in the midst of a snapshot; it ends with the process
        while self._clients:
            self._drop(self._clients[0])
        self._selector.close()
        self._listener.close()
        os.close(self._wake_fd)

    # ---- the thread ----

    def _run(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select(self._wait_s()):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, _Client) and key.data in self._clients:
                    self._serve(key.data)
            now_s = self._clock_s()
            for client in [one for one in self._clients if one.deadline_s <= now_s]:
                self._drop(client)

    def _wait_s(self) -> float | None:
        if not self._clients:
            return None
        return max(0.0, self._clients[0].deadline_s - self._clock_s())

    def _accept(self) -> None:
        try:
            stream, _ = self._listener.accept()
        except BlockingIOError:
            return  # it has left already
        except OSError:  # out of descriptors: do not spin, least of all as FIFO
            self._closing.wait(_NO_DESCRIPTOR_PAUSE_S)
            return
        stream.setblocking(False)
        if len(self._clients) >= CLIENTS_MAX:
            self._drop(self._clients[0])
        client = _Client(stream, self._clock_s() + REQUEST_TIMEOUT_S)
        self._clients.append(client)
        self._selector.register(stream, selectors.EVENT_READ, client)

    def _serve(self, client: _Client) -> None:
        """Take or give what *client* is ready for; whatever it does, only it is dropped."""
        try:
            if client.answer is None:
                self._take(client)
            elif client.answer:
                self._give(client)
            elif not client.stream.recv(_READ_BYTES):
                self._drop(client)  # it has seen the end
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("metrics: a client left: %s", error)
            self._drop(client)
        except Exception:  # the thread must outlive whatever one client sends
            log.exception("metrics: a request failed")
            self._drop(client)

    def _take(self, client: _Client) -> None:
        chunk = client.stream.recv(_READ_BYTES)
        client.head += chunk
        if not chunk:
            self._drop(client)
        elif b"\r\n\r\n" in client.head or b"\n\n" in client.head:
            client.answer = memoryview(self._answer(bytes(client.head)))
        elif len(client.head) > HEAD_BYTES_MAX:
            client.answer = memoryview(
                _message("GET", _error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
            )
        if client.answer is not None:
            self._selector.modify(client.stream, selectors.EVENT_WRITE, client)
            self._give(client)

    def _give(self, client: _Client) -> None:
        assert client.answer is not None
        client.answer = client.answer[client.stream.send(client.answer) :]
        if not client.answer:
            # Closed now, with bytes unread, TCP would reset what the client has not read yet.
            client.stream.shutdown(socket.SHUT_WR)
            self._selector.modify(client.stream, selectors.EVENT_READ, client)

    def _drop(self, client: _Client) -> None:
        self._clients.remove(client)
        self._selector.unregister(client.stream)
        client.stream.close()

    def _answer(self, head: bytes) -> bytes:
        lines = head.decode("latin-1").splitlines()
        words = lines[0].split()
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            return _message("GET", _error(HTTPStatus.BAD_REQUEST))
        method, target = words[:2]
        if method not in ("GET", "HEAD"):
            return _message(method, _error(HTTPStatus.METHOD_NOT_ALLOWED))
        accept = next(
            (line.partition(":")[2].strip() for line in lines if _is_accept(line)),
            "",
        )
        return _message(method, self._respond(target.partition("?")[0], accept))


def _is_accept(line: str) -> bool:
    return line.partition(":")[0].strip().lower() == "accept"


def _error(status: HTTPStatus) -> Response:
    return status, "text/plain; charset=utf-8", f"{status.phrase.lower()}\n".encode()


def _message(method: str, response: Response) -> bytes:
    """Return *response* as it goes over the wire: without the body to HEAD."""
    status, content_type, body = response
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *(["Allow: GET, HEAD"] if status is HTTPStatus.METHOD_NOT_ALLOWED else []),
        "Connection: close",
        "\r\n",
    ]
    return "\r\n".join(lines).encode("latin-1", "replace") + (b"" if method == "HEAD" else body)


def _listen(address: tuple[str, int]) -> socket.socket:
    # the first address that the host name stands for, IPv4 or IPv6
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listener = socket.socket(found[0][0], socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(LISTEN_QUEUE)
        listener.setblocking(False)
        undo.pop_all()
    return listener

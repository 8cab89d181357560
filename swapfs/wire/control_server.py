"""The control socket as a server has it: ``serve`` answers on what ``listen`` has made.

It runs beside the swap file, so a peer can do it no harm: lines, connections and time are bounded,
and what a handler raises becomes an error answer. It speaks to sockets and not to streams of trio,
and lets a time limit pass rather than fail: both of those turn one exception into another in a
generator, which on Python 3.13 leaves a cycle of 20 objects, and gc is off. Knows no command.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import stat
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from swapfs.errors import OperationError, SwapfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    Handler = Callable[[dict[str, object]], Awaitable[object]]

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX: Final = 64 << 10
CONNECTIONS_MAX: Final = 16
PEER_TIMEOUT_S: Final = 10.0
"""Longest that a peer may take to send one line or to take one answer."""
_BACKLOG: Final = 16


class _BadRequestError(SwapfsError):
    """The peer sent something that is not a request; it gets an answer and is cut off."""


class Listener(NamedTuple):
    """A socket that listens on *path*, and the inode that *path* is then."""

    stream: socket.socket
    path: Path
    inode: int


async def serve(
    listener: Listener,
    handlers: Mapping[str, Handler],
    *,
    allowed_uid: int = 0,
    peer_timeout_s: float = PEER_TIMEOUT_S,
) -> None:
    """Serve *handlers* on *listener* until cancelled; then it is closed, and its path removed.

    A handler gets the request without its ``command`` and returns what JSON can hold. Its
    SwapfsError becomes the answer; any other exception is logged and answered in general.

    :param allowed_uid: the one user whose connections are served (SO_PEERCRED)
    """
    server = _Server(handlers, allowed_uid, peer_timeout_s)
    try:
        stream = trio.socket.from_stdlib_socket(listener.stream)
        async with trio.open_nursery() as nursery:
            while True:
                peer = await _accept(stream)
                nursery.start_soon(server.connection, peer)
    finally:
        listener.stream.close()
        _unlink_own(listener)


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    while True:
        try:
            peer, _ = await listener.accept()
        except OSError as error:
            # Peers that left early, or no descriptors: the second must not spin.
            log.warning("control socket: accept: %s", error)
            await trio.sleep(0.1)
        else:
            return peer


def listen(path: Path) -> Listener:
    """Return what listens on *path*, for ``serve``.

    A plain function: what it raises goes through none of trio's context managers, where
    ``nursery.start`` of trio 0.29 on Python 3.13 leaves it in a cycle, and gc is off.

    :raises OperationError: the socket cannot be made, or another server listens on it
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        stream.setblocking(False)
        stream.bind(str(path))
        # Before listen() nobody can connect, so there is no moment with a wider mode.
        path.chmod(0o600)
        stream.listen(_BACKLOG)
        return Listener(stream, path, path.lstat().st_ino)
    except OperationError:
        stream.close()
        raise
    except OSError as error:
        stream.close()
        raise OperationError(f"control socket {path}: {error.strerror or error}") from error


def _remove_stale(path: Path) -> None:
    """Remove the socket that a dead server left at *path*, and nothing else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OperationError(f"control socket {path}: a file that is no socket is in its place")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OperationError(f"control socket {path}: {error.strerror}") from error
        else:
            raise OperationError(f"control socket {path}: another server listens on it")


def _unlink_own(listener: Listener) -> None:
    with contextlib.suppress(FileNotFoundError):
        if listener.path.lstat().st_ino == listener.inode:
            listener.path.unlink()


class _Server:
    """What the connections of one control socket share."""

    def __init__(
        self, handlers: Mapping[str, Handler], allowed_uid: int, peer_timeout_s: float
    ) -> None:
        self.handlers = handlers
        self.allowed_uid = allowed_uid
        self.peer_timeout_s = peer_timeout_s
        self.connections = 0

    async def connection(self, peer: trio.socket.SocketType) -> None:
        """Serve one peer; whatever it does, only its own connection ends."""
        self.connections += 1
        try:
            with peer:
                await self._serve_peer(peer)
        except OSError as error:
            log.debug("control connection ended: %s", error)
        finally:
            self.connections -= 1

    async def _serve_peer(self, peer: trio.socket.SocketType) -> None:
        uid = _peer_uid(peer)
        if uid != self.allowed_uid:
            return await self._refuse(peer, f"user {uid} may not use the control socket")
        if self.connections > CONNECTIONS_MAX:
            return await self._refuse(peer, "too many connections")
        received = bytearray()
        while True:
            try:
                line = await self._receive(peer, received)
                if line is None:
                    return None
                answer = await self._answer(line)
            except _BadRequestError as error:
                return await self._refuse(peer, str(error))
            await self._send(peer, answer)

    async def _refuse(self, peer: trio.socket.SocketType, problem: str) -> None:
        await self._send(peer, {"ok": False, "error": problem})

    async def _receive(self, peer: trio.socket.SocketType, received: bytearray) -> bytes | None:
        with trio.move_on_after(self.peer_timeout_s):
            return await _next_line(peer, received)
        raise TimeoutError("the peer sends no line")

    async def _send(self, peer: trio.socket.SocketType, answer: dict[str, object]) -> None:
        left = memoryview(json.dumps(answer).encode() + b"\n")
        with trio.move_on_after(self.peer_timeout_s):
            while left:
                left = left[await peer.send(left) :]
            return
        raise TimeoutError("the peer does not take its answer")

    async def _answer(self, line: bytes) -> dict[str, object]:
        """Return the answer to the request *line*.

        :raises _BadRequestError: it is no request, or none that anybody handles
        """
        command, args = _parse(line)
        handler = self.handlers.get(command)
        if handler is None:
            known = ", ".join(sorted(self.handlers))
            raise _BadRequestError(f"unknown command {command[:32]!r} (known: {known})")
        try:
            result = await handler(args)
            json.dumps(result)
        except SwapfsError as error:
            return {"ok": False, "error": " ".join(str(error).split())}
        except Exception as error:  # a handler's bug must not end the server
            log.exception("control command %s failed", command)
            return {"ok": False, "error": f"{command} failed: {type(error).__name__}, see the log"}
        return {"ok": True, "result": result}


def _peer_uid(peer: trio.socket.SocketType) -> int:
    layout = struct.Struct("=iII")  # struct ucred: pid, uid, gid
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    assert isinstance(raw, bytes)
    uid: int = layout.unpack(raw)[1]
    return uid


async def _next_line(peer: trio.socket.SocketType, received: bytearray) -> bytes | None:
    """Take the next line out of *received*, reading more as needed; None at the end.

    :raises _BadRequestError: the line is longer than REQUEST_BYTES_MAX, or ends without newline
    """
    while (end := received.find(b"\n")) < 0:
        if len(received) > REQUEST_BYTES_MAX:
            break
        chunk = await peer.recv(8 << 10)
        if not chunk:
            if received:
                raise _BadRequestError("the request ends without a newline")
            return None
        received += chunk
    if end < 0 or end > REQUEST_BYTES_MAX:
        raise _BadRequestError(f"the request is longer than {REQUEST_BYTES_MAX} bytes")
    line = bytes(received[:end])
    del received[: end + 1]
    return line


def _parse(line: bytes) -> tuple[str, dict[str, object]]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadRequestError("the request is not JSON") from error
    if not isinstance(message, dict):
        raise _BadRequestError("the request is not a JSON object")
    command = message.pop("command", None)
    if not isinstance(command, str):
        raise _BadRequestError("the request names no command")
    return command, message

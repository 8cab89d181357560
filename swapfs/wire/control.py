"""The control socket as commands see it: one JSON object per line each way, root only.

Synchronous, and without trio, which would be half of what a command takes to start. The other side
is ``control_server``. Knows no command.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from swapfs.errors import OperationError, Refused

if TYPE_CHECKING:
    from pathlib import Path

ANSWER_BYTES_MAX: Final = 4 << 20


def make_runtime_dir(path: Path) -> None:
    """Make the directory of sockets and snapshots; all may read it, whatever the umask.

    :raises OSError: it cannot be made
    """
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)  # `swapfs status` needs no root


def socket_path(runtime_dir: Path, name: str) -> Path:
    """Return the place of the control socket of instance *name*."""
    return runtime_dir / f"{name}.sock"


def wanted_path(runtime_dir: Path, name: str) -> Path:
    """Return the mark of `up`: while it is there, the kernel shall swap on instance *name*."""
    return runtime_dir / f"{name}.on"


def request(sock: Path, command: str, timeout_s: float, **args: object) -> dict[str, Any]:
    """Send *command* with *args* to the server on *sock* and return its result.

    :param timeout_s: for the whole exchange
    :raises OperationError: no server, no permission, no answer in time, or it said no
    """
    deadline = time.monotonic() + timeout_s
    line = json.dumps({**args, "command": command}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(timeout_s)
            stream.connect(str(sock))
            # A server that refuses us answers before it reads: its reason still arrives.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                stream.sendall(line)
            answer_line = _receive_line(stream, deadline)
    except TimeoutError as error:
        raise OperationError(f"{sock}: no answer to {command} within {timeout_s:g} s") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise OperationError(f"{sock}: {command}: no server listens there") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise OperationError(f"{sock}: {command}: {reason}") from error
    try:
        answer = json.loads(answer_line)
    except ValueError as error:
        raise OperationError(f"{sock}: {command}: the answer is not JSON") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise OperationError(f"{sock}: {command}: the answer is not an answer")
    if not answer["ok"]:
        raise Refused(f"{command}: {answer.get('error', 'refused without a reason')}")
    result = answer.get("result")
    return result if isinstance(result, dict) else {}


def _receive_line(stream: socket.socket, deadline: float) -> bytes:
    received = bytearray()
    while b"\n" not in received:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        stream.settimeout(left_s)
        chunk = stream.recv(64 << 10)
        if not chunk:
            raise ConnectionError(0, "the server closed the connection")
        received += chunk
        if len(received) > ANSWER_BYTES_MAX:
            raise OSError(errno.EMSGSIZE, "the answer is too long")
    return bytes(received.partition(b"\n")[0])

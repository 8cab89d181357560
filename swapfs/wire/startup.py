"""What a starting daemon says to the command that started it: one line on a pipe.

Lines before that one are notes on what it waits for. Errors keep their kind on the way, so that
the command ends with the exit code that they deserve.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Final

from swapfs.errors import GuardError, OperationError, SwapfsError, UsageError

log = logging.getLogger(__name__)

READY: Final = "ready"
NOTE: Final = "note"
_KINDS: Final[dict[str, type[SwapfsError]]] = {
    "usage": UsageError,
    "guard": GuardError,
    "operation": OperationError,
}


def prepare(fd: int) -> None:
    """Make *fd*, where a daemon was told to say how it goes, one that it never waits for."""
    os.set_blocking(fd, False)  # its reader may itself be in the swap that waits for us
    os.set_inheritable(fd, False)


def describe(error: SwapfsError) -> str:
    """Return *error* as the line that ``failure`` turns into the same kind of error again."""
    kinds = (kind for kind, error_type in _KINDS.items() if isinstance(error, error_type))
    return f"{next(kinds, 'operation')}: {error}"


def announce(fd: int, message: str) -> bool:
    """Tell the command that started the daemon how it went, once; whether it was there to hear."""
    try:
        os.write(fd, message.replace("\n", "; ").encode() + b"\n")
        os.close(fd)
    except OSError:
        log.info("nobody waits for: %s", message)
        return False
    return True


def note(fd: int, message: str) -> None:
    """Tell the same command, and the log, something that it should know while it waits."""
    log.warning("%s", message)
    with contextlib.suppress(OSError):
        os.write(fd, f"{NOTE}: {message}\n".encode())


def failure(answer: str) -> SwapfsError | None:
    """Return the error that ``describe`` made *answer* of; None: it is no such line."""
    kind, _, text = answer.partition(": ")
    return _KINDS[kind](text) if kind in _KINDS else None

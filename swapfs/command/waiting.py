"""Waiting for what a server does meanwhile: a bar, or JSON at the end, over a server's death.

The work is the server's, and goes on without the command: to interrupt it ends the waiting only. A
server that dies is replaced within moments, so what cannot be asked is asked again for a while, as
long as the instance is up.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from swapfs.command.stale import daemon_lives
from swapfs.errors import OperationError, Refused
from swapfs.wire import control

T = TypeVar("T")

ANSWER_S: Final = 30.0
LOOK_EVERY_S: Final = 0.25
_AWAY_S: Final = 30.0
"""How long nobody may answer while a new server starts, or an upgrade is under way."""


def patiently(sock: Path, call: Callable[[], T]) -> T:
    """Return what *call* returns, tried again while no server answers on *sock*.

    :raises OperationError: none does for _AWAY_S, or none ever will: the instance is not up, or it
        is not ours to ask
    """
    deadline_s = time.monotonic() + _AWAY_S
    while True:
        try:
            return call()
        except Refused:
            raise
        except OperationError as error:
            not_ours = isinstance(error.__cause__, PermissionError)
            if not_ours or time.monotonic() > deadline_s:
                raise
            if not daemon_lives(sock.parent, sock.stem):
                raise
            time.sleep(LOOK_EVERY_S)


def ask(sock: Path, command: str, **arguments: object) -> dict[str, Any]:
    """Return the answer to *command*, which may be asked twice, from whoever serves now."""
    return patiently(sock, lambda: control.request(sock, command, ANSWER_S, **arguments))


def tiers(sock: Path) -> list[dict[str, Any]]:
    """Return the tiers in the status, whoever serves it now."""
    found: list[dict[str, Any]] = patiently(
        sock, lambda: control.request(sock, "status", ANSWER_S)["tiers"]
    )
    return found


def find(sock: Path, name: str) -> dict[str, Any] | None:
    """Return tier *name* of the status; None: there is none."""
    return next((tier for tier in tiers(sock) if tier["name"] == name), None)


@contextmanager
def bar(label: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal's standard error; gives what takes how much is done so far.

    :param quiet: show none
    """
    if quiet or not total or not sys.stderr.isatty():
        yield lambda done: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as shown:

        def show(done: int) -> None:
            shown.update(max(0, min(done, total) - shown.pos))

        yield show

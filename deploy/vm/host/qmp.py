"""QEMU's control socket (QMP): commands go out, events come in, and power is one of both."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_SEND_BOUND_S = 1.0


class Qmp:
    """One end of a socket pair whose other end QEMU has; it may die at any time."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._partial = b""
        end.settimeout(_SEND_BOUND_S)
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> None:
        """Send `command`; raises OSError if QEMU is gone. Its answer is not waited for."""
        message = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def events(self) -> list[dict[str, Any]] | None:
        """Return the events that have come, once the socket is readable; None at its end."""
        messages = self.messages()
        return messages and [message for message in messages if "event" in message]

    def messages(self) -> list[dict[str, Any]] | None:
        """Return all that has come, answers too, as `events` does."""
        try:
            data = self.socket.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]


@dataclass(frozen=True, slots=True)
class PowerEvent:
    """A machine was switched off (`shutdown`) or began anew (`reset`), and when."""

    what: str
    by_guest: bool
    at_s: float
    """Seconds since the epoch: the guest's clock is the same to within a second."""


class Power:
    """Switches the machine on again when it goes off, until `finished` says that it may stay off.

    A guest that reboots is left to it, unless it does so for a panic: then that is the end.
    """

    def __init__(
        self, qmp: Qmp, finished: Callable[[], bool], panicked: Callable[[], bool]
    ) -> None:
        self.events: list[PowerEvent] = []
        self._qmp = qmp
        self._finished = finished
        self._panicked = panicked

    def act(self, events: list[dict[str, Any]]) -> None:
        """Act on events of a QEMU that was started with `-action shutdown=pause`."""
        for event in events:
            self._act(event)

    def _act(self, event: dict[str, Any]) -> None:
        what, by_guest = event["event"].lower(), bool(event.get("data", {}).get("guest"))
        if what not in ("shutdown", "reset"):
            return
        self.events.append(PowerEvent(what, by_guest, time.time()))
        if what == "shutdown" and by_guest:
            self._qmp.execute("quit" if self._finished() else "system_reset")
        elif what == "reset" and by_guest and self._panicked():
            self._qmp.execute("quit")
        elif what == "reset" and not by_guest:
            self._qmp.execute("cont")  # it was off, and so it is paused

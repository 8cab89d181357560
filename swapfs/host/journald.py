"""systemd's journal as the place of our log: records with their priority, one entry each.

In the native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of fields. Whose unit an
entry belongs to journald finds out from the process that sends it. Only the process that writes
the log speaks to it, and does not wait: a journal that takes nothing loses entries, not the file.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")
TEXT_BYTES_MAX: Final = 48 << 10
"""Of one entry: larger ones need a file, and no line of ours is."""
PRIORITIES: Final = {b"CRITICAL": 2, b"ERROR": 3, b"WARNING": 4, b"INFO": 6}
"""Those of syslog(3), by the level of a record."""
_HEAD: Final = re.compile(rb"\S+ \S+ swapfs\[(\d+)\] ([A-Z]+) ")
"""How a record begins (``journal.FORMAT``)."""
_TOLD: Final = 5


class Journald:
    """Sends what is written to the log to the journal too, unless nobody takes it.

    :param address: journald's socket
    """

    def __init__(self, address: Path = SOCKET) -> None:
        self._address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._begun = b""

    def put(self, data: bytes) -> None:
        """Send the whole lines of *data*; the begin of one waits for its end."""
        whole, newline, rest = (self._begun + data).rpartition(b"\n")
        self._begun = rest[-TEXT_BYTES_MAX:]
        for entry in _entries(whole) if newline else ():
            with contextlib.suppress(OSError):  # it is gone, or takes no more: the file has it
                self._socket.sendto(entry, self._address)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


def _entries(lines: bytes) -> Iterator[bytes]:
    """Yield an entry for each record in *lines*: a line, and what belongs to it below."""
    records: list[list[bytes]] = []
    for line in lines.split(b"\n"):
        if records and line.startswith((b" ", b"Traceback ")) and not _HEAD.match(line):
            records[-1].append(line)
        elif line:
            records.append([line])
    for record in records:
        text = b"\n".join(record)
        head = _HEAD.match(text)
        fields = [b"SYSLOG_IDENTIFIER=swapfs"]
        priority = _TOLD
        if head is not None:
            fields.append(b"SYSLOG_PID=" + head[1])
            priority = PRIORITIES.get(head[2], _TOLD)
            text = text[head.end() :]
        fields.append(b"PRIORITY=%d" % priority)
        text = text[:TEXT_BYTES_MAX]
        # With its length, as it may have several lines.
        fields.append(b"MESSAGE\n" + struct.pack("<Q", len(text)) + text)
        yield b"\n".join(fields) + b"\n"

"""What is logged in a unit of ours is in the journal of that unit."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfs.host.journald import Journald
from swapfs.host.log_writer import LogWriter

HEAD = "2026-11-27 12:00:00,000 swapfs[77] {} "


class Receiver:
    """Stands for journald, and reads its protocol."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def entries(self) -> list[dict[str, str]]:
        found = []
        while True:
            try:
                found.append(self._read(self._socket.recv(1 << 20)))
            except BlockingIOError:
                return found

    def _read(self, data: bytes) -> dict[str, str]:
        entry = {}
        while data:
            line, _, data = data.partition(b"\n")
            key, equals, value = line.partition(b"=")
            if not equals:
                (size,) = struct.unpack_from("<Q", data)
                value, data = data[8 : 8 + size], data[8 + size + 1 :]
            entry[key.decode()] = value.decode()
        return entry

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "journald")
    yield made
    made.close()


@pytest.fixture
def sender(journald: Receiver) -> Iterator[Journald]:
    made = Journald(journald.path)
    yield made
    made.close()


def test_a_record_is_an_entry_with_its_level_and_process(
    journald: Receiver, sender: Journald
) -> None:
    sender.put((HEAD.format("WARNING") + "server 5 died (signal 9)\n").encode())
    sender.put((HEAD.format("CRITICAL") + "lost\nfuse: said by libfuse\n").encode())
    assert journald.entries() == [
        {
            "SYSLOG_IDENTIFIER": "swapfs",
            "SYSLOG_PID": "77",
            "PRIORITY": "4",
            "MESSAGE": "server 5 died (signal 9)",
        },
        {
            "SYSLOG_IDENTIFIER": "swapfs",
            "SYSLOG_PID": "77",
            "PRIORITY": "2",
            "MESSAGE": "lost",
        },
        {"SYSLOG_IDENTIFIER": "swapfs", "PRIORITY": "5", "MESSAGE": "fuse: said by libfuse"},
    ]


def test_a_traceback_is_part_of_its_record(journald: Receiver, sender: Journald) -> None:
    lines = 'failed\nTraceback (most recent call last):\n  File "a", line 1, in b\n'
    sender.put((HEAD.format("ERROR") + lines).encode())
    (entry,) = journald.entries()
    assert entry["MESSAGE"] == lines.rstrip("\n")


def test_a_record_that_comes_in_parts_is_one(journald: Receiver, sender: Journald) -> None:
    whole = HEAD.format("INFO") + "cut by the seam of the ring\n"
    sender.put(whole[:50].encode())
    assert journald.entries() == []
    sender.put(whole[50:].encode())
    assert [entry["MESSAGE"] for entry in journald.entries()] == ["cut by the seam of the ring"]


def test_a_journal_that_is_gone_or_full_stops_nothing(
    journald: Receiver, sender: Journald, tmp_path: Path
) -> None:
    output = tmp_path / "log"
    fd = os.open(output, os.O_WRONLY | os.O_CREAT)
    writer = LogWriter([], fd, journald=sender)
    for number in range(5000):  # more than a socket holds
        writer.write(f"line {number}\n".encode())
    journald.close()
    writer.write(b"the last\n")
    os.close(fd)
    assert output.read_text().splitlines()[-1] == "the last"
    assert len(output.read_text().splitlines()) == 5001

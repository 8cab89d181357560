"""Trace files: what is written is read back, however the recorder ends, and in others' formats."""

from __future__ import annotations

import csv
import json
import os
import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swapfs.command.main import main
from swapfs.command.trace import summary
from swapfs.errors import OperationError
from swapfs.lab import recorder
from swapfs.lab.convert import convert
from swapfs.lab.trace import HEADER_BYTES, Meta, Trace, TraceWriter
from swapfs.region.access_log import EVENT_BYTES, Event, EventKind, encode
from swapfs.testing.harness import Harness
from swapfs.testing.pages import page
from swapfs.tiers.pool.size_classes import SIZES
from swapfs.units import PAGE_SIZE, KiB, MiB

META = Meta(size_bytes=8 * MiB, pool_bytes=MiB, class_sizes=list(SIZES), config={"pool": MiB})
K = EventKind


def event(kind: EventKind, slot: int, time_ns: int = 5) -> Event:
    return Event(kind, slot, 3, 0, 0, 0, time_ns)


FEW = (event(K.STORE, 7), event(K.LOAD, 7))


def write(path: Path, *events: Event) -> Path:
    words = array("Q", [word for each in events for word in encode(each)])
    with TraceWriter(path, META) as writer:
        writer.write(memoryview(words), len(events))
    return path


def test_what_was_written_is_read_in_order_in_either_direction(tmp_path: Path) -> None:
    events = [event(K.STORE, slot, slot) for slot in range(1, 11)]
    trace = Trace(write(tmp_path / "t", *events))
    words = array("Q", [word for each in events for word in encode(each)])
    forwards = array("Q", [word for chunk in trace.chunks(3) for word in chunk])
    assert forwards == words
    chunks = list(trace.chunks(3, backwards=True))
    assert [len(chunk) for chunk in chunks] == [2, 6, 6, 6]
    assert array("Q", [word for chunk in reversed(chunks) for word in chunk]) == words
    assert (trace.meta, trace.finished, trace.dropped) == (META, True, 0)


def test_a_recorder_that_was_killed_leaves_what_it_has_written(tmp_path: Path) -> None:
    path = write(tmp_path / "t", event(K.STORE, 1), event(K.LOAD, 1))
    whole = path.read_bytes()
    path.write_bytes(whole[:16] + bytes(24) + whole[40:-5])  # never finished, cut inside an event
    trace = Trace(path)
    assert (trace.finished, trace.count) == (False, 1)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[:100], "no trace"),
        (lambda b: b"x" + b[1:], "no trace"),
        (lambda b: b[:8] + struct.pack("<I", 9) + b[12:], "version 9"),
        (lambda b: b[:40] + b"{" + bytes(HEADER_BYTES - 41) + b[HEADER_BYTES:], "damaged"),
        (lambda b: b[:40] + b'{"a":1}'.ljust(HEADER_BYTES - 40, b"\0") + b[HEADER_BYTES:], "dam"),
        (lambda b: b[:-EVENT_BYTES], "are there"),
    ],
)
def test_what_is_no_trace_is_one_clear_line(
    tmp_path: Path, damage: Callable[[bytes], bytes], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "t", event(K.STORE, 1))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OperationError, match=says):
        Trace(path)
    assert main(["trace", "info", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


def test_a_trace_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "info", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err


# ---- recording ----


def test_a_recording_has_all_that_happened_until_it_was_stopped(tmp_path: Path) -> None:
    harness = Harness(512, MiB, log_bytes=64 * KiB)
    ring = recorder.Ring(harness.region.fd)
    steps: Iterator[Callable[[], object]] = iter(
        [lambda: harness.store(3, page("text", 1)), lambda: harness.load(3)]
    )
    stopped = [False]

    def work(_seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            stopped[0] = True
            harness.layer.discard_run(3, 1)  # after the signal, before the last look
        else:
            step()

    with TraceWriter(tmp_path / "t", META) as writer:
        recorder.record(ring, writer, lambda: stopped[0], sleep=work)
    ring.close()
    found = summary(tmp_path / "t")["events"]
    assert {kind: n for kind, n in found.items() if n} == {"store": 1, "load": 1, "discard": 1}


def test_what_came_too_fast_leaves_a_gap_that_is_counted(tmp_path: Path) -> None:
    harness = Harness(512, MiB, log_bytes=4 * KiB)
    harness.store(0, *[page("text", 1)] * 8)
    ring, rounds = recorder.Ring(harness.region.fd), [0]

    def work(_seconds: float) -> None:
        for _ in range(100):
            harness.load(0, 8)
        rounds[0] += 1

    with TraceWriter(tmp_path / "t", META) as writer:
        recorder.record(ring, writer, lambda: rounds[0] == 2, sleep=work)
    ring.close()
    found = summary(tmp_path / "t")
    assert found["dropped"] == writer.dropped > 0
    assert found["events"]["load"] + found["dropped"] == 1600


def test_an_instance_without_a_log_cannot_be_recorded() -> None:
    with pytest.raises(OperationError, match="no access log"):
        recorder.Ring(Harness(512, MiB).region.fd)


def test_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = write(tmp_path / "t", event(K.STORE, 1))
    with pytest.raises(OperationError, match="--force"):
        recorder.new_file(path, force=False)
    recorder.new_file(path, force=True)
    with pytest.raises(OperationError, match="no directory"):
        recorder.new_file(tmp_path / "none" / "t", force=False)


# ---- other formats ----


def test_oracle_general_knows_each_next_request(tmp_path: Path) -> None:
    events = [
        event(K.STORE, 7, 2_000_000_000),
        event(K.LOAD, 8),
        event(K.REFAULT, 8),
        event(K.LOAD, 7),
        event(K.DISCARD, 7),
        event(K.STORE, 7),
    ]
    trace = Trace(write(tmp_path / "t", *events))
    assert convert(trace, "oracleGeneral", tmp_path / "o") == 4
    found = list(struct.iter_unpack("<IQIq", (tmp_path / "o").read_bytes()))
    assert [row[0] for row in found] == [2, 0, 0, 0]
    assert [row[2] for row in found] == [PAGE_SIZE] * 4
    assert [row[3] for row in found] == [3, -1, -1, -1]
    first, _, again, after = (row[1] for row in found)
    assert first == again != after, "after a discard the slot holds another thing"


def test_csv_has_every_event(tmp_path: Path) -> None:
    trace = Trace(write(tmp_path / "t", event(K.STORE, 7), event(K.REFAULT, 8)))
    assert convert(trace, "csv", tmp_path / "c") == 2
    rows = list(csv.DictReader((tmp_path / "c").read_text().splitlines()))
    assert [(row["kind"], row["slot"]) for row in rows] == [("store", "7"), ("refault", "8")]
    assert int(rows[0]["object_bytes"]) == SIZES[3]


@pytest.mark.parametrize("to", ["oracleGeneral", "csv"])
def test_a_conversion_that_fails_leaves_what_was_there(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(write(tmp_path / "t", *FEW))
    (tmp_path / "out").write_text("mine")

    def fails(*_: object, **__: object) -> None:
        raise OperationError("made to fail")

    monkeypatch.setattr(Trace, "chunks", fails)
    with pytest.raises(OperationError):
        convert(trace, to, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t"]


@pytest.mark.parametrize("to", ["oracleGeneral", "csv"])
def test_a_trace_is_not_converted_onto_itself(to: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t", *FEW)
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for out in (path, tmp_path / "link"):
        assert main(["trace", "convert", str(path), str(out), "--to", to, "--force"]) == 1
    assert path.read_bytes() == before


def test_a_device_that_takes_nothing_stays(tmp_path: Path) -> None:
    full = tmp_path / "full"
    os.mkfifo(full)
    reader = os.open(full, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OperationError):  # no pipe can be made longer
        convert(Trace(write(tmp_path / "t", *FEW)), "oracleGeneral", full)
    os.close(reader)
    assert full.is_fifo()


def test_info_and_convert_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path / "t", event(K.STORE, 7), event(K.LOAD, 7)))
    assert main(["trace", "info", path]) == 0
    assert "store 1, load 1" in capsys.readouterr().out
    assert main(["trace", "info", "--json", path]) == 0
    assert json.loads(capsys.readouterr().out)["slots"] == 1
    out = str(tmp_path / "o")
    assert main(["trace", "convert", path, out, "--to", "oracleGeneral"]) == 0
    assert main(["trace", "convert", path, out, "--to", "oracleGeneral"]) == 1
    assert main(["trace", "convert", path, out, "--to", "nothing"]) == 2

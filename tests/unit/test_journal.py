"""The log never makes its user wait: what cannot be written is dropped, and counted."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfs.host import journal, log_writer
from swapfs.host.log_writer import LogWriter
from swapfs.host.repeats import PASS_MAX
from swapfs.host.ring import HEADER_BYTES, Ring

CAPACITY = 64


@pytest.fixture
def ring() -> Ring:
    return Ring(memoryview(bytearray(HEADER_BYTES + CAPACITY)))


def drain(ring: Ring) -> bytes:
    read_end, write_end = os.pipe()
    LogWriter([ring], write_end).drain()
    os.close(write_end)
    with os.fdopen(read_end, "rb") as output:
        return output.read()


def test_what_was_put_is_taken_in_order_across_the_seam(ring: Ring) -> None:
    for number in range(50):
        first, second = b"%d," % number * 5, b"x" * number
        assert ring.put(first)
        assert ring.put(second[:30])
        assert drain(ring) == first + second[:30]


def test_a_full_ring_refuses_the_whole_record_and_counts(ring: Ring) -> None:
    assert ring.put(b"a" * 60)
    assert not ring.put(b"b" * 5)
    assert ring.put(b"c" * 4)
    assert ring.refused == 1
    assert drain(ring).startswith(b"a" * 60 + b"c" * 4)
    assert ring.put(b"b" * CAPACITY)


def test_a_record_that_was_lost_is_said() -> None:
    ring = Ring(memoryview(bytearray(HEADER_BYTES + CAPACITY)))
    read_end, write_end = os.pipe()
    writer = LogWriter([ring], write_end)
    ring.put(b"a" * CAPACITY)
    ring.put(b"b")
    writer.drain()
    writer.drain()
    os.close(write_end)
    with os.fdopen(read_end) as output:
        assert output.read() == "a" * CAPACITY + "swapfs: 1 records of the log were lost\n"


def test_a_log_that_takes_nothing_costs_the_record(ring: Ring) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    ring.put(b"lost")
    LogWriter([ring], write_end).drain()
    os.close(write_end)
    assert ring.peek() == b""


def test_an_exception_is_told_without_reading_source_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("reads a file")

    monkeypatch.setattr("linecache.getline", forbidden)
    monkeypatch.setattr("linecache.checkcache", forbidden)
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904 (the context is the point)
    except ValueError as error:
        text = journal.describe_exception(error)
    first, _, second = text.partition("after:")
    assert "in test_an_exception_is_told" in first
    assert "ValueError: second" in first
    assert "KeyError: 'first'" in second


# ---- a process with a journal ----

PROCESS = """
import logging, os, sys, threading
from swapfs.host import journal, log_writer
journal.start()
"""


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A log that takes nothing: whoever writes to it waits."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    while True:
        try:
            os.write(write_end, b"." * 4096)
        except BlockingIOError:
            break
    os.set_blocking(write_end, True)
    yield read_end, write_end
    os.close(read_end)


def run(script: str, log: Path) -> str:
    with log.open("wb") as output:
        subprocess.run(
            [sys.executable, "-c", PROCESS + script], stderr=output, check=False, timeout=60
        )
    return log.read_text()


def test_all_that_is_said_reaches_the_log(tmp_path: Path) -> None:
    said = run(
        """
logging.info("a record")
print("printed")
os.write(2, b"behind our back\\n")
threading.Thread(target=lambda: 1 / 0).start()
journal.finish(30)
""",
        tmp_path / "log",
    )
    assert "INFO a record" in said
    assert "printed\n" in said
    assert "behind our back\n" in said
    assert "ZeroDivisionError" in said


def test_a_server_says_its_last_word_though_it_is_killed(tmp_path: Path) -> None:
    said = run(
        """
import signal
server = os.fork()
if not server:
    journal.enter_server()
    logging.info("last word")
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(server, 0)
logging.info("it has died")
journal.finish(30)
""",
        tmp_path / "log",
    )
    assert "last word" in said
    assert "it has died" in said


def test_a_log_that_hangs_holds_nobody_up(full_pipe: tuple[int, int]) -> None:
    """Neither who logs, in whatever thread, nor a fork meanwhile, nor the end of the process."""
    read_end, write_end = full_pipe
    script = """
from swapfs.host.journal import RING_BYTES
def much():
    for _ in range(RING_BYTES // 500):
        print("x" * 1000)
thread = threading.Thread(target=much)
thread.start()
thread.join()
server = os.fork()
if not server:
    journal.enter_server()
    logging.info("from the child")
    os._exit(0)
assert os.waitpid(server, 0)[1] == 0
os._exit(0 if journal.dropped() else 1)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS + script], stdin=subprocess.DEVNULL, stderr=write_end
    )
    os.close(write_end)
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()
    with open(read_end, "rb", closefd=False) as output:
        assert b"records of the log were lost" in output.read()  # the writer ends, as all is read


def test_who_writes_to_standard_error_behind_our_back_never_waits(
    full_pipe: tuple[int, int],
) -> None:
    read_end, write_end = full_pipe
    script = """
lost = 0
while not lost:
    try:
        os.write(2, b"." * 4096)
    except BlockingIOError:
        lost += 1
os._exit(0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS + script], stdin=subprocess.DEVNULL, stderr=write_end
    )
    os.close(write_end)
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()
    with open(read_end, "rb", closefd=False) as output:
        output.read()  # so that the writer ends


def test_a_writer_that_dies_is_replaced(tmp_path: Path) -> None:
    said = run(
        """
import signal, time
journal.WRITER_LIFE_S = 0
children = open(f"/proc/self/task/{os.getpid()}/children").read()
(writer,) = map(int, children.split())
os.kill(writer, signal.SIGKILL)
os.waitid(os.P_PID, writer, os.WEXITED | os.WNOWAIT)
logging.info("said to nobody")
journal.tend()
journal.finish(30)
""",
        tmp_path / "log",
    )
    assert "said to nobody" in said
    assert "starting another" in said


def test_without_a_journal_logging_is_as_it_was() -> None:
    assert journal.dropped() == 0
    assert journal.output_fd() is None
    journal.tend()
    journal.finish(0)
    assert logging.getLogger().handlers


def test_a_log_is_kept_short_and_the_last_one_kept(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "LOG_BYTES_MAX", 200)
    path = tmp_path / "one.log"
    with path.open("ab") as log, path.open("ab") as other:
        writer = LogWriter([ring], log.fileno(), str(path))
        for number in range(100):
            ring.put(b"line %d\n" % number)
            writer.drain()
            assert path.stat().st_size < 210
        other.write(b"of somebody else\n")
    assert path.read_text().endswith("line 99\nof somebody else\n")
    kept = (tmp_path / "one.log~").read_text()
    assert kept.splitlines()[-1] == f"line {int(path.read_text().split()[1]) - 1}"
    assert (tmp_path / "one.log~").stat().st_mode & 0o777 == 0o600


def test_a_log_that_is_not_ours_is_left_to_grow(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "LOG_BYTES_MAX", 200)
    with (tmp_path / "theirs.log").open("ab") as log:
        writer = LogWriter([ring], log.fileno())
        for _ in range(100):
            ring.put(b"line\n")
            writer.drain()
    assert (tmp_path / "theirs.log").stat().st_size == 500
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_repeated_is_counted(tmp_path: Path) -> None:
    said = run(
        """
for number in range(1000):
    logging.error("sector %d", number)
logging.error("another")
journal.finish(30)
""",
        tmp_path / "log",
    )
    assert said.count("sector") == PASS_MAX
    assert "another" in said

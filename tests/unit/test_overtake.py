"""Reads that overtake a long write; each test is a process, as a process has one session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BEGIN = """
import fcntl, os, threading
from swapfs import session
from swapfs.testing.harness import Harness
from swapfs.units import MiB
from swapfs.vlayer.packing import Packer
from tests.unit.test_session_loop import GETATTR, PAGE, READ, WRITE, Kernel, _MOVE

PAGES = [bytes([n]) * 100 + os.urandom(16) + bytes(PAGE - 116) for n in range(4)]
layer = Harness(64, MiB).layer
assert layer.store_run(0, memoryview(b"".join(PAGES)), 0, 4, Packer()) == 4
reader = layer.reader(64 * PAGE)
kernel = Kernel(reader.capsule())
began, go_on = threading.Event(), threading.Event()
written = []

def write(request, offset, size):
    began.set()
    assert go_on.wait(30)
    session.overtake()
    written.append((offset, bytes(request.payload[:size])))
    return size

def read_in_python(request, offset, size):
    kernel.reply[:size] = b"p" * size
    return size

def ask_to_read(slot, size=PAGE, offset=0):
    return kernel.send(READ, _MOVE.pack(0, slot * PAGE + offset, size, 0, 0, 0, 0))

def ask_to_write(slot, data):
    return kernel.send(WRITE, _MOVE.pack(0, slot * PAGE, len(data), 0, 0, 0, 0) + data)

kernel.handlers = {"write": write, "read": read_in_python}
first = ask_to_write(8, b"1" * PAGE)
assert began.wait(30)
"""
END = """
fd = kernel._fd
kernel.close()
assert kernel.failures == []
print("done", written == WANTED)
"""


def run(script: str, wanted: str) -> None:
    """Run *script* while a first write is in its handler; *wanted*: what was written in the end."""
    text = BEGIN + script + END.replace("WANTED", wanted)
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "done True\n", done.stderr


ONE = '(8 * PAGE, b"1" * PAGE)'
TWO = '(9 * PAGE, b"2" * PAGE)'


def test_reads_of_memory_are_answered_before_the_write_ends() -> None:
    script = """
reads = [ask_to_read(slot) for slot in range(4)]
go_on.set()
answers = [kernel.answer() for _ in range(5)]
assert [who for who, _, _ in answers] == [*reads, first], answers
assert [data for _, _, data in answers[:4]] == PAGES
assert session.counts()["data"] == 5
assert not fcntl.fcntl(kernel._fd, fcntl.F_GETFL) & os.O_NONBLOCK
"""
    run(script, f"[{ONE}]")


def test_a_request_that_is_no_such_read_is_the_next_one_and_whole() -> None:
    script = """
second = ask_to_write(9, b"2" * PAGE)
read = ask_to_read(2)
go_on.set()
answers = [kernel.answer() for _ in range(3)]
assert {first, read} <= {who for who, _, _ in answers[:2]} | {answers[2][0]}
assert [who for who, _, _ in answers if who != read] == [first, second]
assert dict((who, data) for who, _, data in answers)[read] == PAGES[2]
"""
    run(script, f"[{ONE}, {TWO}]")


def test_a_read_that_needs_python_waits_for_the_write() -> None:
    script = """
part = ask_to_read(1, size=512, offset=512)
go_on.set()
assert [kernel.answer()[0], kernel.answer()] == [first, (part, 0, b"p" * 512)]
"""
    run(script, f"[{ONE}]")


def test_what_pyfuse3_serves_is_passed_on_meanwhile() -> None:
    script = """
kernel.send(GETATTR, bytes(16), inode=1)
read = ask_to_read(3)
go_on.set()
assert [kernel.answer()[0], kernel.answer()[0]] == [read, first]
assert session.counts()["namespace"] == 1
"""
    run(script, f"[{ONE}]")


def test_who_stops_serves_what_it_has_taken() -> None:
    script = """
second = ask_to_write(9, b"2" * PAGE)
stopper = threading.Thread(target=session.stop)
stopper.start()
go_on.set()
assert [kernel.answer()[0], kernel.answer()[0]] == [first, second]
stopper.join()
"""
    run(script, f"[{ONE}, {TWO}]")


BLOCKS_AGAIN = """
import fcntl, os, socket, threading
from swapfs import session
from tests.unit.test_session_loop import PAGE, Kernel
plain = socket.socketpair
def not_blocking(*arguments):
    ours, theirs = plain(*arguments)
    flags = fcntl.fcntl(theirs, fcntl.F_GETFL)
    fcntl.fcntl(theirs, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    return ours, theirs
socket.socketpair = not_blocking
kernel = Kernel()
kernel.handlers["read"] = lambda request, offset, size: 0
assert kernel.read(0, PAGE) == (0, b"")
assert not fcntl.fcntl(kernel._fd, fcntl.F_GETFL) & os.O_NONBLOCK
kernel.close()
print("done True")
"""


def test_a_flag_that_a_dead_server_left_is_taken_away() -> None:
    said = subprocess.check_output([sys.executable, "-c", BLOCKS_AGAIN], cwd=ROOT, text=True)
    assert said == "done True\n"


def test_outside_a_handler_it_does_nothing() -> None:
    script = "from swapfs import session; session.overtake(); print('done')"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "done\n"


pytestmark = pytest.mark.timeout(120)

"""The compiled session loop, with a socket pair in the kernel's place: no root, no mount.

One session per process, so all tests share one, and each sets the handlers it needs.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from errno import EBADF, EINVAL, EIO
from pathlib import Path
from typing import Any

import pytest

from swapfs import session
from swapfs.session import Request, Ticket, pyfuse3

PAGE = 4096
INODE = 2
FILES = [(0, 1 << 60), (1 << 60, 5 * 4096), (1 << 61, 4096)]
END = (1 << 61) + 4096
READ, WRITE, GETATTR, FALLOCATE = 15, 16, 3, 43
_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_MOVE = struct.Struct("=QQIIQII")  # fuse_read_in and fuse_write_in: fh, offset, size, ...
_FALLOCATE = struct.Struct("=QQQII")  # fh, offset, length, mode, padding


class Kernel:
    """Sends requests and takes answers; ``read``, ``write`` and ``fallocate`` are the handlers."""

    def __init__(self, reader: object = None) -> None:
        self._reader = reader
        self.reply = session.arm(bytearray(512))
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(30)
        for end in (self._ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._fd = os.dup(theirs.fileno())
        theirs.close()
        pyfuse3.init(pyfuse3.Operations(), f"/dev/fd/{self._fd}", set())
        self._unique = 0
        self.handlers: dict[str, Callable[..., int | None]] = {}
        self.failures: list[tuple[str, str]] = []
        self.ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            session.run(
                INODE,
                FILES,
                lambda *arguments: self.handlers["read"](*arguments),
                lambda *arguments: self.handlers["write"](*arguments),
                lambda *arguments: self.handlers["fallocate"](*arguments),
                self._failed,
                self._reader,
            )
        except BaseException as error:  # noqa: BLE001 - close() looks at it
            self.ended = error

    def _failed(self, op: str, error: BaseException) -> None:
        self.failures.append((op, repr(error)))

    def close(self) -> None:
        session.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()
        pyfuse3.close(unmount=False)
        self._ours.close()
        assert self.ended is None

    def send(self, opcode: int, body: bytes, inode: int = INODE) -> int:
        self._unique += 2
        length = _IN.size + len(body)
        header = _IN.pack(length, opcode, self._unique, inode, 0, 0, 0, 0, 0)
        self._ours.send(header + body)
        return self._unique

    def answer(self) -> tuple[int, int, bytes]:
        """Return the next answer: whose it is, its error (0 or negative) and its payload."""
        message = self._ours.recv(4 << 20)
        length, error, unique = _OUT.unpack_from(message)
        assert length == len(message)
        return unique, error, message[_OUT.size :]

    def ask(self, opcode: int, body: bytes, inode: int = INODE) -> tuple[int, bytes]:
        unique = self.send(opcode, body, inode)
        whose, error, payload = self.answer()
        assert whose == unique
        return error, payload

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        return self.ask(READ, _MOVE.pack(0, offset, size, 0, 0, 0, 0))

    def write(self, offset: int, data: bytes) -> tuple[int, bytes]:
        return self.ask(WRITE, _MOVE.pack(0, offset, len(data), 0, 0, 0, 0) + data)

    def fallocate(self, mode: int, offset: int, length: int) -> tuple[int, bytes]:
        return self.ask(FALLOCATE, _FALLOCATE.pack(0, offset, length, mode, 0))

    def wait_for(self, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline_s
            time.sleep(0.001)


@pytest.fixture(scope="module")
def shared_kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(shared_kernel: Kernel) -> Iterator[Kernel]:
    shared_kernel.handlers = {}
    shared_kernel.failures = []
    yield shared_kernel
    end_s = time.monotonic() + 10
    while session.counts()["in_flight"]:  # counted down after the answer has gone out
        assert time.monotonic() < end_s


def test_handlers_get_what_the_kernel_asked_for(kernel: Kernel) -> None:
    asked: list[tuple[object, ...]] = []

    def read(request: Request, offset: int, size: int) -> int:
        asked.append(("read", offset, size))
        kernel.reply[:5] = b"bytes"
        return 5

    def write(request: Request, offset: int, size: int) -> int:
        asked.append(("write", offset, size, bytes(request.payload[:size])))
        return size

    def fallocate(request: Request, mode: int, offset: int, length: int) -> int:
        asked.append(("fallocate", mode, offset, length))
        return 0

    kernel.handlers = {"read": read, "write": write, "fallocate": fallocate}
    before = session.counts()["data"]
    assert kernel.read(1 << 40, PAGE) == (0, b"bytes")
    assert kernel.write(7, b"data") == (0, struct.pack("=II", 4, 0))
    assert kernel.fallocate(3, 1 << 33, PAGE) == (0, b"")
    assert asked == [
        ("read", 1 << 40, PAGE),
        ("write", 7, 4, b"data"),
        ("fallocate", 3, 1 << 33, PAGE),
    ]
    assert session.counts()["data"] == before + 3


def test_a_request_to_another_file_is_one_of_its_place(kernel: Kernel) -> None:
    """Nothing reaches into the next file, whatever is asked."""
    asked: list[tuple[int, int]] = []

    def note(offset: int, size: int) -> int:
        asked.append((offset, size))
        return 0

    kernel.handlers = {
        "read": lambda _, offset, size: note(offset, size),
        "write": lambda _, offset, size: note(offset, size),
        "fallocate": lambda _, mode, offset, length: note(offset, length),
    }
    second, base, size = INODE + 1, 1 << 60, 5 * PAGE
    reads = [
        ((0, PAGE), (base, PAGE)),
        ((4 * PAGE, PAGE), (base + 4 * PAGE, PAGE)),
        ((4 * PAGE, 2 * PAGE), (base + 4 * PAGE, PAGE)),
        ((size - 1, PAGE), (base + size - 1, 1)),
        ((size, PAGE), (END, PAGE)),
        (((1 << 64) - 1, PAGE), (END, PAGE)),
    ]
    for (offset, length), _ in reads:
        kernel.ask(READ, _MOVE.pack(0, offset, length, 0, 0, 0, 0), inode=second)
    assert asked == [expected for _, expected in reads]
    asked.clear()
    kernel.ask(WRITE, _MOVE.pack(0, size - 4, 8, 0, 0, 0, 0) + bytes(8), inode=second)
    kernel.ask(FALLOCATE, _FALLOCATE.pack(0, PAGE, (1 << 64) - 1, 3, 0), inode=second)
    kernel.ask(FALLOCATE, _FALLOCATE.pack(0, size, PAGE, 3, 0), inode=second)
    kernel.ask(READ, _MOVE.pack(0, 0, PAGE, 0, 0, 0, 0), inode=INODE + 2)
    assert asked == [
        (base + size - 4, 4),
        (base + PAGE, 4 * PAGE),
        (END, PAGE),
        (1 << 61, PAGE),
    ]
    before = session.counts()["namespace"]
    kernel.send(READ, _MOVE.pack(0, 0, PAGE, 0, 0, 0, 0), inode=INODE + 3)
    kernel.wait_for(lambda: session.counts()["namespace"] == before + 1)


def test_an_errno_value_is_the_answer(kernel: Kernel) -> None:
    kernel.handlers = {"read": lambda *_: -EIO, "write": lambda *_: -28, "fallocate": lambda *_: -1}
    assert kernel.read(0, PAGE) == (-EIO, b"")
    assert kernel.write(0, b"x") == (-28, b"")
    assert kernel.fallocate(0, 0, 1) == (-1, b"")
    assert kernel.failures == []


def test_a_request_whose_sizes_are_not_sound_is_refused(kernel: Kernel) -> None:
    """No handler is called: there is none."""
    too_much = _MOVE.pack(0, 0, len(kernel.reply) + 1, 0, 0, 0, 0)
    assert kernel.ask(READ, too_much) == (-EINVAL, b"")
    assert kernel.ask(READ, b"short") == (-EINVAL, b"")
    assert kernel.ask(WRITE, _MOVE.pack(0, 0, 5, 0, 0, 0, 0) + b"four") == (-EINVAL, b"")
    assert kernel.ask(FALLOCATE, b"short") == (-EINVAL, b"")
    assert kernel.failures == []


def test_other_requests_are_not_for_the_handlers(kernel: Kernel) -> None:
    """They lie in pyfuse3's end of the pair: nobody runs it here."""
    before = session.counts()
    kernel.send(GETATTR, bytes(16))
    kernel.send(READ, _MOVE.pack(0, 0, 1, 0, 0, 0, 0), inode=1)
    kernel.wait_for(lambda: session.counts()["namespace"] == before["namespace"] + 2)
    assert session.counts()["data"] == before["data"]


# ---- deferring ----


def _latency(op: str, tier: str) -> int:
    (series,) = (
        one for one in session.latency()["series"] if (one["op"], one["tier"]) == (op, tier)
    )
    return sum(series["counts"])


def test_a_deferred_request_is_answered_through_its_ticket(kernel: Kernel) -> None:
    tickets: list[Ticket] = []

    def defer(request: Request, *_: int) -> None:
        tickets.append(request.defer())

    kernel.handlers = {"read": defer, "write": defer, "fallocate": defer}
    uniques = [
        kernel.send(READ, _MOVE.pack(0, 0, PAGE, 0, 0, 0, 0)),
        kernel.send(WRITE, _MOVE.pack(0, 0, 1, 0, 0, 0, 0) + b"x"),
        kernel.send(FALLOCATE, _FALLOCATE.pack(0, 0, 1, 3, 0)),
    ]
    kernel.wait_for(lambda: len(tickets) == 3)
    assert session.counts()["in_flight"] == 3
    tickets[2].reply(0)
    tickets[1].reply(1)
    with pytest.raises(ValueError, match="reply_data"):
        tickets[0].reply(5)
    tickets[0].reply_data(b"later")
    assert [kernel.answer() for _ in range(3)] == [
        (uniques[2], 0, b""),
        (uniques[1], 0, struct.pack("=II", 1, 0)),
        (uniques[0], 0, b"later"),
    ]
    for ticket in tickets:
        with pytest.raises(RuntimeError, match="already answered"):
            ticket.reply(0)


@pytest.mark.parametrize("op", ["read", "write", "discard"])
def test_latency_tells_what_waited_for_the_file_from_what_was_only_deferred(
    kernel: Kernel, op: str
) -> None:
    used = False

    def serve(request: Request, *_: int) -> None:
        ticket = request.defer()
        if used:
            ticket.used_file()
        ticket.reply(-EIO)

    kernel.handlers = {"read": serve, "write": serve, "fallocate": serve}
    ask: dict[str, Callable[[], object]] = {
        "read": lambda: kernel.read(0, PAGE),
        "write": lambda: kernel.write(0, b"x"),
        "discard": lambda: kernel.fallocate(3, 0, 1),
    }
    before = {tier: _latency(op, tier) for tier in ("memory", "file")}
    ask[op]()
    kernel.wait_for(lambda: _latency(op, "memory") == before["memory"] + 1)
    used = True
    ask[op]()
    kernel.wait_for(lambda: _latency(op, "file") == before["file"] + 1)
    assert _latency(op, "memory") == before["memory"] + 1


def test_there_is_one_request_and_it_is_good_for_its_handler_only(kernel: Kernel) -> None:
    requests: list[Request] = []

    def read(request: Request, *_: int) -> int:
        requests.append(request)
        return 0

    kernel.handlers = {"read": read}
    kernel.read(0, PAGE)
    kernel.read(0, PAGE)
    assert requests[0] is requests[1], "nothing is allocated for it"
    with pytest.raises(RuntimeError, match="for the request's handler"):
        requests[0].defer()


def test_a_request_is_deferred_once(kernel: Kernel) -> None:
    def read(request: Request, *_: int) -> None:
        ticket = request.defer()
        with pytest.raises(RuntimeError, match="once"):
            request.defer()
        ticket.reply(-EIO)

    kernel.handlers = {"read": read}
    assert kernel.read(0, PAGE) == (-EIO, b"")
    assert kernel.failures == []


def test_a_ticket_that_is_lost_is_answered(kernel: Kernel) -> None:
    def read(request: Request, *_: int) -> None:
        request.defer()

    kernel.handlers = {"read": read}
    before = session.counts()["handler_errors"]
    assert kernel.read(0, PAGE) == (-EIO, b"")
    assert session.counts()["handler_errors"] == before + 1


# ---- bugs in a handler ----


def test_what_a_handler_raises_is_told_and_answered(kernel: Kernel) -> None:
    def bug(*_: object) -> int:
        raise ZeroDivisionError("planted")

    kernel.handlers = {"read": bug, "write": bug, "fallocate": bug}
    assert kernel.read(0, PAGE) == (-EIO, b"")
    assert kernel.write(0, b"x") == (-EIO, b"")
    assert kernel.fallocate(3, 0, 1) == (-EIO, b"")
    said = "ZeroDivisionError('planted')"
    assert kernel.failures == [("read", said), ("write", said), ("discard", said)]


def test_a_handler_that_fails_after_it_deferred_is_answered_once(kernel: Kernel) -> None:
    def read(request: Request, *_: int) -> None:
        ticket = request.defer()
        raise ZeroDivisionError(f"planted {bool(ticket)}")

    kernel.handlers = {"read": read}
    assert kernel.read(0, PAGE) == (-EIO, b"")
    kernel.handlers = {"read": lambda *_: 0}
    assert kernel.read(0, PAGE) == (0, b""), "no second answer comes in between"
    assert len(kernel.failures) == 1


@pytest.mark.parametrize("result", [None, "text", 1 << 70])
def test_a_handler_that_returns_nonsense_is_eio(kernel: Kernel, result: Any) -> None:
    kernel.handlers = {"read": lambda *_: result}
    assert kernel.read(0, PAGE) == (-EIO, b"")
    assert len(kernel.failures) == 1


def test_more_bytes_than_a_reply_holds_are_eio(kernel: Kernel) -> None:
    kernel.handlers = {"read": lambda *_: len(kernel.reply) + 1}
    assert kernel.read(0, PAGE) == (-EIO, b"")


def test_no_failure_leaves_anything_behind(kernel: Kernel) -> None:
    def bug(request: Request, *_: object) -> int:
        ticket = request.defer() if len(kernel.failures) % 2 else None
        raise ZeroDivisionError(f"planted {ticket}")

    kernel.handlers = {"read": bug}
    for _ in range(10):
        kernel.read(0, PAGE)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(1000):
            kernel.read(0, PAGE)
        kernel.failures.clear()
        left = len(gc.get_objects()) - before
        unreachable = gc.collect()
    finally:
        gc.enable()
    assert unreachable == 0
    assert left < 50


# ---- the end ----


def test_only_one_loop_runs(kernel: Kernel) -> None:
    with pytest.raises(RuntimeError, match="already runs"):
        session.run(INODE, FILES, _never, _never, _never, _never)


def _never(*_: Any) -> None:
    raise AssertionError("nobody calls it")


# Loaded before libc: looks, in mid pthread_kill, what becomes of the thread that is signalled.
WATCHED_KILL = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The other thread's id, or 0. */
static int other(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *one;
    int found = 0;
    while ((one = readdir(tasks)) != NULL)
        if (atoi(one->d_name) != 0 && atoi(one->d_name) != getpid())
            found = atoi(one->d_name);
    closedir(tasks);
    return found;
}

static int waits_for_lock(int tid)
{
    char path[64], call[16] = "";
    snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", tid);
    FILE *file = fopen(path, "r");
    if (file != NULL && fgets(call, sizeof(call), file) == NULL)
        call[0] = 0;
    if (file != NULL)
        fclose(file);
    return strncmp(call, "202 ", 4) == 0; /* futex */
}

int pthread_kill(pthread_t thread, int signal)
{
    int (*real)(pthread_t, int) = dlsym(RTLD_NEXT, "pthread_kill");
    int result = real(thread, signal), tid = other(), looks = 0;
    while (other() == tid && looks < 100)
        looks = waits_for_lock(tid) ? looks + 1 : 0;
    puts(looks < 100 ? "ended" : "waits");
    fflush(stdout);
    return result;
}
"""

STOP_A_LOOP = """
from tests.unit.test_session_loop import Kernel
from swapfs import session
kernel = Kernel()
kernel.handlers = {"read": lambda *_: 0}
kernel.read(0, 4096)
session.stop()
"""


def test_stop_signals_no_thread_that_may_have_ended(tmp_path: Path) -> None:
    source, library = tmp_path / "kill.c", tmp_path / "kill.so"
    source.write_text(WATCHED_KILL)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": os.getcwd()}
    said = subprocess.run(
        [sys.executable, "-c", STOP_A_LOOP],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    assert said, "the loop ended without a signal"
    assert "ended" not in said, "its thread was gone while it was being signalled"


# ---- CPUs kept awake while pages are read ----

AWAKE = b"\0\0\0\0"
NO_WISH = b"\xff\xff\xff\xff"
LINGER_S = 0.05


@pytest.fixture(scope="module")
def qos(shared_kernel: Kernel) -> Iterator[int]:
    """Return the end of a pipe from which comes what the loop writes to /dev/cpu_dma_latency."""
    ours, theirs = os.pipe()
    session.keep_awake(theirs, LINGER_S, False)
    yield ours
    os.close(ours)


def wish(qos: int) -> bytes:
    """Return what is written next, which must come."""
    written = select.poll()
    written.register(qos, select.POLLIN)
    assert written.poll(10_000), "nothing is written"
    return os.read(qos, 4)


def read_nothing(request: Request, offset: int, size: int) -> int:
    return 0


def test_the_first_read_keeps_cpus_awake_until_none_has_come_for_a_while(
    kernel: Kernel, qos: int
) -> None:
    kernel.handlers["read"] = read_nothing
    before = session.awake()
    for _ in range(3):
        kernel.read(0, PAGE)
    assert wish(qos) == AWAKE
    assert wish(qos) == NO_WISH  # blocks until it is given back
    kernel.wait_for(lambda: not session.awake()["held"])
    after = session.awake()
    assert after["holds"] > before["holds"]
    assert after["held_s"] - before["held_s"] >= LINGER_S
    assert after["error"] == 0


def test_a_read_that_is_answered_later_keeps_cpus_awake_too(kernel: Kernel, qos: int) -> None:
    tickets: list[Ticket] = []

    def read(request: Request, offset: int, size: int) -> None:
        tickets.append(request.defer())

    kernel.handlers["read"] = read
    kernel.send(READ, _MOVE.pack(0, 0, PAGE, 0, 0, 0, 0))
    assert wish(qos) == AWAKE
    tickets.pop().reply(0)
    assert kernel.answer()[1] == 0
    assert wish(qos) == NO_WISH


def test_writes_and_discards_let_cpus_sleep(kernel: Kernel, qos: int) -> None:
    kernel.handlers["write"] = lambda request, offset, size: size
    kernel.handlers["fallocate"] = lambda request, mode, offset, length: 0
    before = session.awake()["holds"]
    kernel.write(0, bytes(PAGE))
    kernel.fallocate(3, 0, PAGE)
    kernel.handlers["read"] = read_nothing
    kernel.read(0, PAGE)
    assert wish(qos) == AWAKE
    assert session.awake()["holds"] == before + 1
    assert wish(qos) == NO_WISH


def test_what_is_held_is_given_back_though_requests_go_on(kernel: Kernel, qos: int) -> None:
    kernel.handlers["read"] = read_nothing
    kernel.handlers["write"] = lambda request, offset, size: size
    kernel.read(0, PAGE)
    assert wish(qos) == AWAKE

    def given_back() -> bool:
        kernel.write(0, bytes(PAGE))
        return not session.awake()["held"]

    kernel.wait_for(given_back)
    assert wish(qos) == NO_WISH


@pytest.mark.parametrize("wrong", ["-1, 1.0", "0, 0.0", "0, float('nan')"])
def test_keep_awake_wants_a_descriptor_and_a_time(wrong: str) -> None:
    script = f"from swapfs import session; session.keep_awake({wrong}, False)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert b"keep_awake() needs a descriptor and a time" in done.stderr


ALWAYS = """
import os
from swapfs import session
ours, theirs = os.pipe()
session.keep_awake(theirs, 1.0, True)
print(os.read(ours, 4).hex(), session.awake()["held"], session.awake()["holds"])
"""


def test_always_holds_before_any_read_and_without_a_loop() -> None:
    said = subprocess.check_output([sys.executable, "-c", ALWAYS], text=True)
    assert said.split() == ["00000000", "True", "1"]


REFUSED = """
import os
from swapfs import session
session.keep_awake(os.open("/dev/null", os.O_RDONLY), 1.0, True)
print(session.awake()["held"], session.awake()["error"])
"""


def test_a_device_that_takes_no_wish_is_told_and_left_alone() -> None:
    said = subprocess.check_output([sys.executable, "-c", REFUSED], text=True)
    assert said.split() == ["False", str(EBADF)]

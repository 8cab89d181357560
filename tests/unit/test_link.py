"""What a server asks its monitor for, over a fork and a death."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from swapfs.errors import OperationError
from swapfs.wire.link import LOOK_SIGNAL, Link


def _serve(link: Link, ask: Callable[[], Any], handle: Callable[..., Any]) -> bytes:
    """Fork a server that asks, serve it, and return what it printed."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, repr(ask()).encode())
        except OperationError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    ended_s = time.monotonic() + 30
    while not os.waitpid(pid, os.WNOHANG)[0]:
        assert time.monotonic() < ended_s, "the server waits for ever"
        link.serve(pid, handle)
        time.sleep(0.005)
    with os.fdopen(read, "rb") as said:
        return said.read()


@pytest.fixture(autouse=True)
def looks() -> Iterator[list[int]]:
    """Note each LOOK_SIGNAL. Threads of other tests may take it: to block it here is no help."""
    seen: list[int] = []
    before = signal.signal(LOOK_SIGNAL, lambda number, _: seen.append(number))
    yield seen
    signal.signal(LOOK_SIGNAL, before)


@pytest.fixture
def link() -> Any:
    made = Link()
    yield made
    made.close()


def test_a_descriptor_and_an_answer_go_over(link: Link) -> None:
    got: list[bytes] = []

    def handle(operation: str, arguments: dict[str, Any], fd: int | None) -> str:
        assert (operation, arguments) == ("add", {"number": 3})
        assert fd is not None
        got.append(os.pread(fd, 5, 0))
        os.close(fd)
        return "done"

    fd = os.memfd_create("x")
    os.pwrite(fd, b"hello", 0)
    assert _serve(link, lambda: link.ask("add", fd, number=3), handle) == b"'done'"
    assert got == [b"hello"]
    os.close(fd)


def test_a_refusal_and_a_bug_are_answers(link: Link) -> None:
    def refuse(*_: object) -> None:
        raise OperationError("no")

    def fail(*_: object) -> None:
        raise KeyError("bug")

    assert _serve(link, lambda: link.ask("add"), refuse) == b"no"
    assert _serve(link, lambda: link.ask("add"), fail) == b"KeyError: 'bug'"


def test_what_a_dead_server_asked_for_is_not_done(link: Link, looks: list[int]) -> None:
    fd = os.memfd_create("x")
    done: list[str] = []
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(20)
            link.ask("add", fd)
        finally:
            os._exit(0)
    ended_s = time.monotonic() + 15
    while not looks:
        assert time.monotonic() < ended_s, "no signal came"
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    before = len(os.listdir("/proc/self/fd"))
    link.drop()
    assert len(os.listdir("/proc/self/fd")) == before, "its descriptor is closed"
    assert _serve(link, lambda: link.ask("next"), lambda op, *_: done.append(op)) == b"None"
    assert done == ["next"]
    os.close(fd)


def test_garbage_harms_nobody(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    def ask() -> Any:
        for garbage in (b"no pickle", pickle.dumps(5)):
            link.server_end.send(garbage)
        return link.ask("after")

    said = _serve(link, ask, lambda *_: "served")
    assert said == b"'served'"
    assert "cannot be read" in caplog.text

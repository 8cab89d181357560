"""What a server asks its monitor for, over a fork and a death."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

import pytest

from swapfs.errors import OperationError
from swapfs.wire.link import LOOK_SIGNAL, Link


def _serve(link: Link, ask: Callable[[], Any], handle: Callable[..., Any]) -> bytes:
    """Fork a server that asks, serve it, and return what it printed."""
    read, write = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {LOOK_SIGNAL, signal.SIGCHLD})
    try:
        pid = os.fork()
        if not pid:
            try:
                os.write(write, repr(ask()).encode())
            except OperationError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        while True:
            received = signal.sigtimedwait({LOOK_SIGNAL, signal.SIGCHLD}, 30)
            assert received is not None
            link.serve(pid, handle)
            if received.si_signo == signal.SIGCHLD and os.waitpid(pid, os.WNOHANG)[0]:
                break
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {LOOK_SIGNAL, signal.SIGCHLD})
        os.close(write)
    with os.fdopen(read, "rb") as said:
        return said.read()


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


def test_what_a_dead_server_asked_for_is_not_done(link: Link) -> None:
    fd = os.memfd_create("x")
    done: list[str] = []
    signal.pthread_sigmask(signal.SIG_BLOCK, {LOOK_SIGNAL})
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        link.ask("add", fd)
        os._exit(0)
    try:
        assert signal.sigtimedwait({LOOK_SIGNAL}, 30) is not None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        before = len(os.listdir("/proc/self/fd"))
        link.drop()
        assert len(os.listdir("/proc/self/fd")) == before, "its descriptor is closed"
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {LOOK_SIGNAL})
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

"""Two monitors at a handover: neither ends before the other has what it holds."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfs.config.model import Config
from swapfs.errors import OperationError
from swapfs.monitor import holdings, servers
from swapfs.monitor.holdings import Holdings
from swapfs.monitor.monitor import SIGNALS, Monitor
from swapfs.monitor.outcome import Outcome
from swapfs.monitor.servers import Servers
from swapfs.wire import handover
from swapfs.wire.handover import RETIRE_SIGNAL, Handover, Predecessor, Successor, exclusively

MIB = 1 << 20
RETIRES_LATE = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # to the end, as a monitor does
print("there", flush=True)
signal.sigwait({signal.SIGUSR1})
print("asked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A monitor that, when it has been asked to retire, does so once its stdin is closed."""
    monkeypatch.setattr(handover, "RETIRE_NOTE_S", 0.01)
    with subprocess.Popen(
        [sys.executable, "-c", RETIRES_LATE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield process


def _predecessor(pid: int) -> Predecessor:
    return Predecessor(Handover(pid, 0, 0, 0, ()))


def test_the_new_monitor_never_gives_up(old: subprocess.Popen[str]) -> None:
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if len(notes) == 3:
            assert old.stdin is not None
            assert old.stdout is not None
            assert old.stdout.readline() == "asked\n"
            old.stdin.close()

    _predecessor(old.pid).retire(note)
    assert old.wait() == 0
    assert len(notes) >= 3
    assert all("waiting for the old server" in text for text in notes)


SWALLOWS = """
import os, signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
subprocess.run([sys.executable, "-c", f"import os; os.kill({os.getpid()}, 10)"], check=True)
print("there", flush=True)
sys.stdin.readline()  # while a stranger's signal is pending, another of its kind is lost
while signal.sigwaitinfo({signal.SIGUSR1}).si_pid != os.getppid():
    pass
"""


def test_a_strangers_signal_that_was_there_before_does_not_swallow_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "RETIRE_NOTE_S", 0.01)
    with subprocess.Popen(
        [sys.executable, "-c", SWALLOWS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as monitor:
        assert monitor.stdout is not None
        assert monitor.stdout.readline() == "there\n"
        goes_on = monitor.stdin

        def note(_text: str) -> None:  # it has been asked for the first time
            nonlocal goes_on
            if goes_on is not None:
                goes_on.write("go on\n")
                goes_on.flush()
            goes_on = None

        try:
            _predecessor(monitor.pid).retire(note)
        finally:
            monitor.kill()


def test_a_monitor_that_has_died_is_not_taken_for_retired(old: subprocess.Popen[str]) -> None:
    predecessor = _predecessor(old.pid)
    old.kill()
    old.communicate()
    with pytest.raises(OperationError, match="has just died"):
        predecessor.retire(print)


class Other:
    """Another process, which holds the lock on *path* that a successor takes, or does not.

    It sends RETIRE_SIGNAL to *asks*, if that is a pid, and ends when told.
    """

    def __init__(self, path: Path, *, locks: bool, asks: int = 0) -> None:
        lock = f"exclusively(pathlib.Path({str(path)!r}))" if locks else "contextlib.nullcontext()"
        script = f"""
import contextlib, os, pathlib, sys
from swapfs.wire.handover import RETIRE_SIGNAL, exclusively
with {lock}:
    os.kill({asks}, RETIRE_SIGNAL if {asks} else 0)
    print("there", flush=True)
    sys.stdin.read()
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self.process.pid
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "there\n"

    def end(self) -> None:
        self.process.kill()  # an end of file could be kept from it by a fork of ours
        self.process.communicate()


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Give the lock file of an instance: its path and the descriptor that the monitor has."""
    path = tmp_path / "unit.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield path, fd
    os.close(fd)


def test_a_successor_is_proven_by_the_lock_until_it_ends(lock: tuple[Path, int]) -> None:
    path, fd = lock
    other = Other(path, locks=True)
    successor = Successor(other.pid, fd)
    assert successor.is_proven()
    assert not Successor(os.getpid(), fd).is_proven(), "another process holds the lock"
    other.end()
    assert not successor.is_proven()
    assert not Successor(other.pid, fd).is_proven()


def test_a_process_without_the_lock_is_no_successor(
    lock: tuple[Path, int], caplog: pytest.LogCaptureFixture
) -> None:
    path, fd = lock
    other = Other(path, locks=False)
    assert not Successor(other.pid, fd).is_proven()
    assert f"process {other.pid} asked" in caplog.text
    other.end()
    assert not Successor(0, fd).is_proven(), "of another pid namespace, and nobody has the lock"


def test_one_upgrade_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    other = f"""
import pathlib
from swapfs.wire.handover import exclusively
with exclusively(pathlib.Path({str(lock)!r})):
    print("mine")
"""
    command = [sys.executable, "-c", other]
    with exclusively(lock):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another upgrade" in refused.stderr
    assert subprocess.check_output(command, text=True) == "mine\n"


class _StandIns(Servers):
    """Stand-ins for servers: each ends in good order when asked to retire.

    :param gone_fd: when there is something to read the first one ends; -1: at once
    """

    def __init__(self, config: Config, gone_fd: int) -> None:
        super().__init__(config, -1, SIGNALS)
        self.ever_served = True
        self.forks = 0
        self._gone_fd = gone_fd

    def start(self, held: Holdings) -> int:
        self.forks += 1
        pid = os.fork()
        if pid:
            return pid
        if self.forks == 1:
            signal.sigwait({RETIRE_SIGNAL})
            if self._gone_fd >= 0:
                os.read(self._gone_fd, 1)
        os._exit(0)


def _closed() -> int:
    """Return a descriptor that tells of itself what /dev/fuse does after an unmount."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end


def _watch(config: Config, lock_fd: int, *, dies: bool) -> tuple[Outcome, int]:
    """Have a monitor of its own process watch while another asks it to retire."""
    result_read, result_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            gone_read, gone_write = os.pipe()
            stand_ins = _StandIns(config, gone_read if dies else -1)
            monitor = Monitor(config, -1, stand_ins)
            other = Other(holdings.lock_path(config), locks=True, asks=os.getpid())
            if dies:  # when it has been believed, and the server makes way

                def die() -> None:
                    other.end()
                    os.write(gone_write, b".")

                right = Successor.is_proven

                def is_proven(self: Successor) -> bool:
                    answer = right(self)
                    if answer:
                        die()
                    return answer

                Successor.is_proven = is_proven  # type: ignore[method-assign]
            held = Holdings(config, None, [], _closed(), lock_fd)  # type: ignore[arg-type]
            outcome = monitor.watch(held)
            other.end()
            os.write(result_write, f"{outcome.value} {stand_ins.forks}".encode())
        finally:
            os._exit(0)
    os.close(result_write)
    with os.fdopen(result_read) as result:
        name, _, forks = result.read().rpartition(" ")
    os.waitpid(pid, 0)
    return Outcome(name), int(forks)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        name="unit",
        mountpoint=tmp_path,
        size_bytes=64 * MIB,
        pool_bytes=96 * MIB,
        runtime_dir=tmp_path,
    )


def test_the_old_monitor_ends_when_its_successor_lives(
    config: Config, lock: tuple[Path, int]
) -> None:
    outcome, forks = _watch(config, lock[1], dies=False)
    assert outcome is Outcome.HANDED_OVER
    assert forks == 1


def test_the_old_monitor_goes_on_when_its_successor_has_died(
    config: Config, lock: tuple[Path, int]
) -> None:
    outcome, forks = _watch(config, lock[1], dies=True)
    assert outcome is Outcome.UNMOUNTED  # how the second server ended
    assert forks == 2


def test_a_fork_that_fails_is_tried_again_once_there_are_pages(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[int] = []

    def fork() -> int:
        answers.append(0)
        if len(answers) < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return 4711

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(servers, "FORK_RETRY_S", 0.0)
    forked = Servers(config, -1, SIGNALS)
    held = Holdings(config, None, [], -1, -1)  # type: ignore[arg-type]
    with pytest.raises(OperationError, match="cannot start a server"):
        forked.start(held)
    forked.ever_served = True
    assert forked.start(held) == 4711
    held.link.close()

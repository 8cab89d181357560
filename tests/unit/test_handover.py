"""Two monitors at a handover: neither ends before the other has what it holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfs.config.model import Config
from swapfs.errors import OperationError
from swapfs.monitor import monitor
from swapfs.monitor.monitor import Held, Outcome
from swapfs.wire import handover
from swapfs.wire.handover import RETIRE_SIGNAL, Handover, Predecessor, Successor, exclusively

MIB = 1 << 20
RETIRES_LATE = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("asked", flush=True))
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A monitor that is asked to retire, and does when its stdin is closed."""
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
    return Predecessor(Handover(pid, 0, 0, 0, None))


def test_the_new_monitor_never_gives_up(old: subprocess.Popen[str]) -> None:
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if len(notes) == 3:
            assert old.stdin is not None
            assert old.stdout is not None
            assert old.stdout.readline() == "asked\n"  # a signal at its very end would kill it
            old.stdin.close()

    _predecessor(old.pid).retire(note)
    assert old.wait() == 0
    assert len(notes) >= 3
    assert all("waiting for the old server" in text for text in notes)


def test_a_monitor_that_has_died_is_not_taken_for_retired(old: subprocess.Popen[str]) -> None:
    predecessor = _predecessor(old.pid)
    old.communicate()
    with pytest.raises(OperationError, match="has just died"):
        predecessor.retire(print)


def test_a_successor_lives_until_it_ends() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        successor = Successor(process.pid)
        assert successor.lives()
    assert not successor.lives()
    assert not Successor(process.pid).lives()
    assert Successor(0).lives()


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


class _Watched(monitor._Monitor):
    """A monitor with stand-ins for servers: each ends in good order when asked to retire.

    :param gone_fd: at its end of file the first server ends; -1: at once
    """

    def __init__(self, config: Config, gone_fd: int) -> None:
        super().__init__(config, -1)
        self.forks = 0
        self._gone_fd = gone_fd

    def _fork(self, held: Held, *, first: bool) -> int:
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


def _watch(config: Config, *, successor_dies: bool) -> tuple[Outcome, int]:
    """Have a monitor of its own process watch while another asks it to retire."""
    result_read, result_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            gone_read, gone_write = os.pipe()
            watched = _Watched(config, gone_read if successor_dies else -1)
            signal.pthread_sigmask(signal.SIG_BLOCK, watched._signals)
            successor = subprocess.Popen(
                ["sh", "-c", f"kill -USR1 {os.getpid()}; {'' if successor_dies else 'cat'}"],
                stdin=subprocess.PIPE, pass_fds=(gone_write,),
            )  # fmt: skip
            os.close(gone_write)
            watched._ever_served = True
            outcome = watched._watch(Held(None, None, _closed(), -1))  # type: ignore[arg-type]
            successor.communicate()
            os.write(result_write, f"{outcome.value} {watched.forks}".encode())
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


def test_the_old_monitor_ends_when_its_successor_lives(config: Config) -> None:
    outcome, forks = _watch(config, successor_dies=False)
    assert outcome is Outcome.HANDED_OVER
    assert forks == 1


def test_the_old_monitor_goes_on_when_its_successor_has_died(config: Config) -> None:
    outcome, forks = _watch(config, successor_dies=True)
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
    monkeypatch.setattr(monitor, "FORK_RETRY_S", 0.0)
    watched = monitor._Monitor(config, -1)
    with pytest.raises(OperationError, match="cannot start a server"):
        watched._fork_process()
    watched._ever_served = True
    assert watched._fork_process() == 4711

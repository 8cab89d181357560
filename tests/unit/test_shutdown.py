"""One `swapfs down` at a time, whose failure is said loudly."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from swapfs.monitor.shutdown import Shutdown


class Commands:
    """A take-down whose command is a script of ours."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log"
        self.shutdown = Shutdown("one", directory)

    def run(self, script: str) -> None:
        prelude = f"import os, signal, sys; log = open({str(self.log)!r}, 'a')\n"
        self.shutdown.command = [sys.executable, "-c", prelude + script]
        self.shutdown.start()

    def wait(self) -> None:
        """Wait until it has ended, and leave it to be reaped."""
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def test_command_is_that_of_a_user(tmp_path: Path) -> None:
    command = Shutdown("one", tmp_path).command
    assert command[1:] == ["-P", "-m", "swapfs", "down", "one", "--runtime-dir", str(tmp_path)]


def test_asking_again_starts_no_second_one(
    commands: Commands, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "gate")
    script = f"log.write('x'); log.close(); open({str(tmp_path / 'gate')!r}).read()"
    commands.run(script)
    commands.run(script)
    assert "still being taken down" in caplog.text
    (tmp_path / "gate").write_text("")
    commands.wait()
    commands.shutdown.reap()
    assert commands.log.read_text() == "x"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_asking_again_is_answered_when_the_first_fails(commands: Commands) -> None:
    commands.run("log.write('x'); sys.exit(1)")
    commands.shutdown.start()
    for _ in range(2):
        commands.wait()
        commands.shutdown.reap()
    with pytest.raises(ChildProcessError):  # asked twice, not tried thrice
        os.waitpid(-1, os.WNOHANG)
    assert commands.log.read_text() == "xx"


@pytest.mark.parametrize("status", [0, 1])
def test_failure_is_said_loudly(
    commands: Commands, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    commands.run(f"sys.exit({status})")
    commands.wait()
    commands.shutdown.reap()
    critical = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(critical) == status
    assert all("it goes on serving" in record.getMessage() for record in critical)


def test_a_command_that_cannot_be_run(commands: Commands, caplog: pytest.LogCaptureFixture) -> None:
    commands.shutdown.command = ["/nowhere/swapfs"]
    commands.shutdown.start()
    commands.wait()
    commands.shutdown.reap()
    assert "taking one down failed (status 127" in caplog.text


def test_starting_it_does_not_wait_for_its_program(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find and load it the child looks into files, which may be in the swap that we serve."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setattr(os, "execv", lambda *command: gate.read_text())
    commands.shutdown.start()
    commands.shutdown.reap()
    gate.write_text("")
    commands.wait()
    commands.shutdown.reap()


def test_a_process_that_cannot_be_made_is_said(
    commands: Commands, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    commands.shutdown.start()
    assert "cannot take one down" in caplog.text
    commands.shutdown.reap()


def test_it_is_shielded_from_the_terminal_and_can_be_signalled(commands: Commands) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        commands.run("log.write(f'{os.getsid(0) == os.getpid()} {signal.pthread_sigmask(0, [])}')")
        commands.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    commands.shutdown.reap()
    assert commands.log.read_text() == "True set()"

"""The monitor between a server's death and the next one: what it does, and in which order (I9)."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapfs.config.model import Config
from swapfs.host import instance_lock
from swapfs.monitor.held import HeldState
from swapfs.monitor.holdings import Holdings
from swapfs.monitor.monitor import SIGNALS, Monitor
from swapfs.monitor.outcome import Outcome
from swapfs.monitor.servers import Servers
from swapfs.monitor.shutdown import Shutdown
from swapfs.wire.handover import RETIRE_SIGNAL

MIB = 1 << 20


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        name="unit",
        mountpoint=tmp_path,
        size_bytes=64 * MIB,
        pool_bytes=96 * MIB,
        runtime_dir=tmp_path,
    )


class Told(logging.Handler):
    """What was logged; *heard* is called with each message."""

    def __init__(self, heard: Callable[[str], None] = lambda _: None) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self._heard(record.getMessage())


def in_a_process(run: Callable[[], Any]) -> Any:
    """Return what *run* returns (JSON) in a child that has blocked a monitor's signals."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            os.write(write_end, json.dumps(run()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as result:
        text = result.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def closed() -> int:
    """Return a descriptor that tells of itself what /dev/fuse does after an unmount."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end


class OneDies(Servers):
    """Servers of which the first dies after a while, and the second ends with the mount."""

    def __init__(self, config: Config, told: Told) -> None:
        super().__init__(config, -1, SIGNALS)
        self.ever_served = True
        self.told_before: list[list[str]] = []
        self._told = told

    def start(self, held: Holdings) -> int:
        self.told_before.append(list(self._told.messages))
        pid = os.fork()
        if pid == 0:
            os._exit(1 if len(self.told_before) == 1 else 0)
        return pid

    def ended(self) -> float:
        return 10.0


def test_the_next_server_is_forked_before_a_word_is_said(config: Config) -> None:
    """The log may be in swap: a monitor that waits for it never comes to the fork."""

    def watch() -> list[Any]:
        told = Told()
        logging.getLogger().addHandler(told)
        servers = OneDies(config, told)
        held = Holdings(config, None, [], closed(), -1)  # type: ignore[arg-type]
        outcome = Monitor(config, -1, servers).watch(held)
        return [outcome.value, servers.told_before, told.messages]

    outcome, told_before, told = in_a_process(watch)
    assert outcome == Outcome.UNMOUNTED.value
    assert told_before == [[], []]
    (death,) = told
    assert "died (exit status 1) after serving 10.0 s" in death


ASKS = """
import fcntl, os, sys
path, monitor, number, byte = sys.argv[1], *map(int, sys.argv[2:])
file = open(path, "a+b")
if byte >= 0:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
os.kill(monitor, number)
print("asked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("locks", "ends"), [(True, Outcome.HANDED_OVER), (False, Outcome.UNMOUNTED)]
)
def test_held_pages_go_to_a_proven_successor_only(
    config: Config, tmp_path: Path, locks: bool, ends: Outcome
) -> None:
    """A stranger's signal changes nothing: here the mount ends after it was refused."""
    lock = tmp_path / "unit.lock"

    def hold() -> str:
        lock_fd = instance_lock.acquire(lock)
        assert lock_fd is not None
        read_end, fuse_fd = os.pipe()
        told = Told(lambda text: os.close(read_end) if "nothing changes" in text else None)
        logging.getLogger().addHandler(told)
        byte = instance_lock.UPGRADE_BYTE if locks else -1
        words = (lock, os.getpid(), int(RETIRE_SIGNAL), byte)
        with subprocess.Popen(
            [sys.executable, "-c", ASKS, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"asked\n"
            held = Holdings(config, None, [], fuse_fd, lock_fd)  # type: ignore[arg-type]
            state = HeldState(config, held, SIGNALS, Shutdown("unit", config.runtime_dir))
            outcome = state.wait()
            other.kill()
        return outcome.value if outcome else "another server"

    assert in_a_process(hold) == ends.value

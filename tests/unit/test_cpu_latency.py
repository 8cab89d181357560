"""The PM QoS device as a server opens it; what the session does with it is in test_session_loop."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from swapfs.server.cpu_latency import CpuLatency

STARTED = """
import sys
from pathlib import Path
from swapfs.server.cpu_latency import CpuLatency
latency = CpuLatency(sys.argv[1], Path(sys.argv[2]))
latency.start()
found = latency.status()
print(found.mode, found.held, found.holds, found.problem or "fine")
"""


def start(mode: str, device: Path) -> str:
    """Return what another process says of itself, as a session keeps awake once in a process."""
    command = [sys.executable, "-c", STARTED, mode, str(device)]
    return subprocess.check_output(command, text=True).strip()


@pytest.fixture
def device(tmp_path: Path) -> Path:
    file = tmp_path / "cpu_dma_latency"
    file.touch()
    return file


def test_adaptive_holds_nothing_before_a_read(device: Path) -> None:
    assert start("adaptive", device) == "adaptive False 0 fine"
    assert device.read_bytes() == b""


def test_always_holds_from_the_start(device: Path) -> None:
    assert start("always", device) == "always True 1 fine"
    assert device.read_bytes() == bytes(4)


def test_off_does_not_open_the_device(device: Path) -> None:
    device.unlink()
    assert start("off", device) == "off False 0 fine"


def test_without_a_device_it_goes_on_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    latency = CpuLatency("adaptive", tmp_path / "absent")
    with caplog.at_level(logging.WARNING):
        latency.start()
    assert [record.message for record in caplog.records] == [
        f"swap-ins wait for CPUs that sleep: {tmp_path}/absent: No such file or directory"
    ]
    assert latency.status().problem == f"{tmp_path}/absent: No such file or directory"
    assert latency.status().held is False

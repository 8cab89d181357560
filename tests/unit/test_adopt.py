"""A start of our unit takes over what still runs in it, and nothing that runs elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swapfs.command import adopt, stale
from swapfs.config.model import Config
from swapfs.errors import OperationError
from swapfs.host import swap
from swapfs.host.loop import LoopDevice
from swapfs.host.swap import SwapEntry
from swapfs.wire import state_file

UNIT = "0::/swapfs.slice/swapfs.service\n"
SESSION = "0::/user.slice/session-1.scope\n"
MONITOR, SERVER = 71, 72
LOOP = Path("/dev/loop7")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """An instance with both processes alive in UNIT, and swap on."""
    run = tmp_path / "run"
    for pid in (os.getpid(), MONITOR, SERVER):
        put(tmp_path, pid, UNIT)
    born = {str(MONITOR): "1", str(SERVER): "2"}
    monkeypatch.setattr(state_file, "read", lambda *_: (0.0, {"born": born}))
    monkeypatch.setattr(adopt, "daemon_lives", lambda *_: True)
    monkeypatch.setattr(adopt, "was_born", lambda pid, _: (tmp_path / f"proc/{pid}").exists())
    device = LoopDevice(LOOP, f"{run}/swapfs/mnt/swap", False, True, 4096, 4096)
    monkeypatch.setattr(stale, "loops_of", lambda *_: [device])
    area = SwapEntry(str(LOOP), "partition", 4096, 0, 100, False)
    monkeypatch.setattr(swap, "find", lambda _: area)
    return Config(
        mountpoint=run / "swapfs/mnt", runtime_dir=run, size_bytes=1 << 24, pool_bytes=1 << 24
    )


def put(root: Path, pid: int, cgroup: str) -> None:
    (root / f"proc/{pid}").mkdir(parents=True, exist_ok=True)
    (root / f"proc/{pid}/cgroup").write_text(cgroup)


def test_what_runs_in_the_unit_is_taken_over(tmp_path: Path, config: Config) -> None:
    assert adopt.running(config, tmp_path) == [LOOP]


def test_so_is_a_server_whose_monitor_is_dead(tmp_path: Path, config: Config) -> None:
    put(tmp_path, MONITOR, SESSION)  # the number is another's now
    assert adopt.running(config, tmp_path) == [LOOP]


def test_what_runs_in_a_session_is_refused(tmp_path: Path, config: Config) -> None:
    for pid in (MONITOR, SERVER):
        put(tmp_path, pid, SESSION)
    with pytest.raises(OperationError, match=r"not in swapfs\.service: run 'swapfs down swapfs'"):
        adopt.running(config, tmp_path)


def test_without_systemd_nothing_is_taken_over(tmp_path: Path, config: Config) -> None:
    put(tmp_path, os.getpid(), SESSION)
    assert adopt.running(config, tmp_path) == []


def test_one_without_swap_is_left_to_up(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "find", lambda _: None)
    assert adopt.running(config, tmp_path) == []


def test_the_dead_are_left_to_up(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt, "daemon_lives", lambda *_: False)
    assert adopt.running(config, tmp_path) == []

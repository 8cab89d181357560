"""Units and the main process, without systemd."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from swapfs.errors import OperationError
from swapfs.host import systemd


def put(root: Path, pid: int, cgroup: str) -> None:
    (root / f"proc/{pid}").mkdir(parents=True)
    (root / f"proc/{pid}/cgroup").write_text(cgroup)


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/swapfs.service\n", "swapfs.service"),
        ("0::/system.slice/system-swapfs.slice/swapfs@a.service\n", "swapfs@a.service"),
        ("4:memory:/x\n1:name=systemd:/system.slice/swapfs.service\n", "swapfs.service"),
        ("4:memory:/system.slice/swapfs.service\n0::/\n", None),
        ("0::/swapfs.slice/swapfs@a.b.service\n", "swapfs@a.b.service"),
        ("0::/system.slice/cron.service\n", None),
        ("0::/system.slice/swapfs-sleep.service\n", None),
        ("0::/user.slice/user-0.slice/session-1.scope\n", None),
    ],
)
def test_unit_of(tmp_path: Path, cgroup: str, unit: str | None) -> None:
    put(tmp_path, 7, cgroup)
    assert systemd.unit_of(7, tmp_path) == unit
    assert systemd.unit_of(8, tmp_path) is None


def test_a_service_is_replaced_only_from_inside(tmp_path: Path) -> None:
    put(tmp_path, 7, "0::/system.slice/swapfs.service\n")
    put(tmp_path, os.getpid(), "0::/user.slice/session-1.scope\n")
    put(tmp_path, 8, "0::/user.slice/session-2.scope\n")
    systemd.refuse_other_unit(8, tmp_path)
    with pytest.raises(OperationError, match=r"use 'systemctl reload swapfs\.service'"):
        systemd.refuse_other_unit(7, tmp_path)
    (tmp_path / f"proc/{os.getpid()}/cgroup").write_text("0::/system.slice/swapfs.service\n")
    systemd.refuse_other_unit(7, tmp_path)


def test_main_process_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.announce_main_process(4711)
    address = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(address))
    with pytest.raises(OperationError, match="cannot tell systemd of process 4711"):
        systemd.announce_main_process(4711)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        systemd.announce_main_process(4711)
        assert listener.recv(100) == b"MAINPID=4711\n"

"""Tiers that are added, removed and changed while pages are read and written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from swapfs.command import waiting
from swapfs.wire import control
from tests.fuse.instance import Instance, Start, is_alive, run, wait_until
from tests.fuse.load import Load, fill

pytestmark = pytest.mark.timeout(200)


def _tiers(instance: Instance) -> dict[str, dict[str, Any]]:
    sock = control.socket_path(instance.runtime_dir, instance.name)
    return {tier["name"]: tier for tier in waiting.tiers(sock)}


def _command(instance: Instance, *arguments: object) -> list[str]:
    where = ["--runtime-dir", str(instance.runtime_dir)]
    return [*instance.command, "tier", *map(str, arguments), instance.name, *where]


def _tier(instance: Instance, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(*_command(instance, *arguments))


def _kill_server(instance: Instance) -> None:
    server = instance.status()["server_pid"]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not is_alive(server), "the server to die")
    _tiers(instance)


def _holds_open(instance: Instance, path: Path) -> list[int]:
    """Return the processes of the instance that have *path* open."""
    status = instance.status()
    return [
        pid
        for pid in (status["pid"], status["server_pid"])
        for fd in Path(f"/proc/{pid}/fd").iterdir()
        if os.readlink(fd) == str(path)
    ]


def _add(instance: Instance, path: Path, *keys: str) -> subprocess.CompletedProcess[str]:
    return _tier(instance, "add", "file", f"path={path}", "size=64M", *keys)


def test_a_disk_is_replaced_while_pages_come_and_go(tmp_path: Path, start: Start) -> None:
    """Added, drained and removed, each with a server killed over it, and an upgrade at the end."""
    instance = start("48M", "4M", "48M", "--overcommit", "2")
    fill(instance, 2048, 8192)
    load = Load(instance, 2048)
    load.run(40, seed=1)
    old = Path(_tiers(instance)["file"]["path"])
    done = _add(instance, tmp_path / "new", "name=new", "priority=5")
    assert done.stdout == "new: added, 64M\n", done.stderr
    assert len(_holds_open(instance, tmp_path / "new")) == 2
    _kill_server(instance)
    assert list(_tiers(instance)) == ["new", "file"]

    loading = threading.Thread(target=load.run, args=(150, 2))
    loading.start()
    removal = subprocess.Popen(
        _command(instance, "remove", "file", "--json"), stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: _tiers(instance)["file"]["phase"] == "leaving", "the removal to begin")
    _kill_server(instance)
    said, _ = removal.communicate(timeout=60)
    assert removal.returncode == 0
    assert json.loads(said)["tier"] == "file"
    loading.join()
    assert list(_tiers(instance)) == ["new"]
    assert _holds_open(instance, old) == [], "the disk can be taken away"

    assert instance.cli("upgrade").returncode == 0
    load.run(40, seed=3)
    load.verify()
    assert list(_tiers(instance)) == ["new"]
    assert _tiers(instance)["new"]["slots"] > 0
    counters = instance.counters()
    assert counters["failed_read_io"] == counters["failed_read_checksum"] == 0
    assert counters["lost_pages"] == counters["handler_errors"] == 0
    assert counters["server_starts"] == 4, instance.log()


def test_a_tier_comes_to_an_instance_without_one_and_its_number_is_used_again(
    tmp_path: Path, start: Start
) -> None:
    instance = start("48M", "16M", None, "--overcommit", "20")
    fill(instance, 2048, 2500)
    assert instance.cli("demote", "--pages", 5).returncode == 1
    assert _add(instance, tmp_path / "a").stdout == "file1: added, 64M\n"
    fill(instance, 2500, 8000)
    load = Load(instance, 2048)
    load.run(40, seed=1)
    instance.demote(1000)
    for leaves, comes in (("file1", "b"), ("b", "c"), ("c", "d")):
        before = _tiers(instance)[leaves]["slots"]
        assert before > 0
        assert _add(instance, tmp_path / comes, f"name={comes}").returncode == 0
        done = _tier(instance, "remove", leaves)
        assert done.returncode == 0, done.stderr
        assert list(_tiers(instance)) == [comes]
        load.run(20, seed=before)
    done = _tier(instance, "remove", "d", "--force")
    assert done.returncode == 1
    assert "have no room for" in done.stderr
    load.verify()
    assert instance.counters()["handler_errors"] == 0


def test_what_cannot_be_added_or_removed_has_one_line_and_changes_nothing(
    tmp_path: Path, start: Start
) -> None:
    instance = start("24M", "4M", "32M")
    path = tmp_path / "x"
    (tmp_path / "data").write_bytes(b"somebody's data" + bytes(8 << 20))
    before = _tiers(instance)
    for arguments, expected in (
        (("add", "file", "size=8M"), "path is missing"),
        (("add", "file", f"path={path}"), "does not exist"),
        (("add", "file", f"path={path}", "size=8M", "name=file"), "another tier is called file"),
        (("add", "file", f"path={before['file']['path']}"), "another tier uses"),
        (("add", "file", f"path={tmp_path}/data"), "holds data that is not swapfs's"),
        (("add", "file", f"path={path}", "size=8M", "prio=3"), "unknown key"),
        (("add", "file", f"path={path}", "size=8M", "budget=3"), "is not text"),
        (("remove", "file"), "the size is 24M: add a tier first"),
        (("remove", "tape"), "there is no tier tape"),
        (("set", "file", "path=/x"), "unknown key"),
        (("set", "file", "priority=-1"), "priority"),
        (("set", "file", "budget=1G/day"), "the size is 24M"),
    ):
        done = _tier(instance, *arguments)
        assert done.returncode != 0, arguments
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
        assert _tiers(instance) == before
    assert not path.exists()


def test_priority_and_budget_are_set_and_outlive_servers(tmp_path: Path, start: Start) -> None:
    instance = start("48M", "4M", "48M", "--overcommit", "2")
    assert _add(instance, tmp_path / "more", "name=more").returncode == 0
    for key in ("priority=7", "budget=100M/hour, 1G/day", "budget-exceed=true"):
        done = _tier(instance, "set", "more", key)
        assert done.returncode == 0, done.stderr
    for change in (_kill_server, lambda each: each.cli("upgrade")):
        assert list(_tiers(instance)) == ["more", "file"]
        more = _tiers(instance)["more"]
        assert (more["priority"], more["budget_hour_bytes"]) == (7, 100 << 20)
        change(instance)
    table = instance.status()["config"]["tier"]
    assert table[1] == table[1] | {
        "name": "more", "priority": 7, "budget": "100M/hour, 1G/day", "budget-exceed": True
    }  # fmt: skip

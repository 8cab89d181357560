"""Several tiers below one pool: filled in the order of their priority, and kept over servers."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.instance import Instance, Start, check, run, wait_until
from tests.fuse.load import Load, fill, outlive_servers

pytestmark = pytest.mark.timeout(200)


def _write_config(tmp_path: Path) -> Path:
    config = tmp_path / "tiers.toml"
    config.write_text(
        f'[[tier]]\nname = "first"\npath = "{tmp_path}/first"\nsize = "8M"\npriority = 5\n'
        f'[[tier]]\nname = "last"\npath = "{tmp_path}/last"\nsize = "64M"\n'
        f"encryption = false\n"
    )
    return config


def _tiers(instance: Instance) -> dict[str, dict[str, Any]]:
    return {tier["name"]: tier for tier in instance.status()["tiers"]}


def test_tiers_are_filled_by_priority_and_outlive_servers(tmp_path: Path, start: Start) -> None:
    config = _write_config(tmp_path)
    instance = start("64M", "4M", "8M", "--config", config)
    fill(instance, 4096, 12288)
    load = Load(instance, 4096)
    load.run(60, seed=1)
    status = instance.status()
    tiers = {tier["name"]: tier for tier in status["tiers"]}
    assert list(tiers) == ["first", "file", "last"]
    assert all(tier["slots"] > 0 for tier in tiers.values())
    assert sum(tier["slots"] for tier in tiers.values()) == status["slots"]["file"]

    outlive_servers(instance, load)
    assert {name: tier["kind"] for name, tier in _tiers(instance).items()} == dict.fromkeys(
        ("first", "file", "last"), "file"
    )


def test_tiers_count_as_room_and_nothing_is_left_when_one_is_refused(
    tmp_path: Path, make_instance: Start
) -> None:
    config = _write_config(tmp_path)
    (tmp_path / "last").write_bytes(b"somebody's data")
    instance = make_instance()
    options = ("--config", config, "--size", "48M", "--pool", "4M")
    done = run(*instance.mount_command(*options))
    assert done.returncode != 0
    assert "holds data that is not swapfs's" in done.stderr
    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize("death", [False, True], ids=["", "a server dies meanwhile"])
def test_a_tier_is_drained_under_load(tmp_path: Path, start: Start, death: bool) -> None:
    config = _write_config(tmp_path)
    instance = start("64M", "4M", "8M", "--config", config)
    fill(instance, 4096, 8192)
    load = Load(instance, 4096)
    load.run(60, seed=1)
    assert _tiers(instance)["first"]["slots"] > 1000
    loading = threading.Thread(target=load.run, args=(200, 2))
    loading.start()
    drain = subprocess.Popen([*instance.command, *_drain(instance)], stdout=subprocess.PIPE)
    if death:
        wait_until(lambda: _tiers(instance)["first"]["phase"] == "draining", "the drain to begin")
        os.kill(instance.status()["server_pid"], signal.SIGKILL)
    assert drain.wait(60) == 0 or death  # its socket goes with the server; the drain does not
    drain.communicate()
    wait_until(lambda: _tiers(instance)["first"]["slots"] == 0, "the tier to be empty")
    loading.join()
    load.verify()
    assert _tiers(instance)["first"]["phase"] == "draining"
    counters = instance.counters()
    assert counters["drained_pages"] > 500
    assert counters["lost_pages"] == counters["failed_read_checksum"] == 0

    check(*instance.command, *_drain(instance), "--stop")
    table = check(*instance.command, "tier", "list", instance.name, *_where(instance))
    assert table.split("\n")[1].split()[:4] == ["first", "file", "5", "active"]


def test_a_tier_is_not_drained_when_the_others_have_no_room(start: Start) -> None:
    instance = start("32M", "4M", "48M")
    fill(instance, 0, 8192)
    done = run(*instance.command, "tier", "drain", "file", instance.name, *_where(instance))
    assert done.returncode == 1
    assert "have no room for" in done.stderr
    assert _tiers(instance)["file"]["phase"] == "active"
    done = run(*instance.command, "tier", "drain", "tape", instance.name, *_where(instance))
    assert done.stderr == "swapfs: there is no tier tape\n"


def _where(instance: Instance) -> list[str]:
    return ["--runtime-dir", str(instance.runtime_dir)]


def _drain(instance: Instance) -> list[str]:
    return ["tier", "drain", "first", instance.name, *_where(instance)]

"""``swapfs verify`` over a mounted instance."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.fuse.instance import Instance, Start, run
from tests.fuse.load import fill

pytestmark = pytest.mark.timeout(120)


def _command(instance: Instance, *options: object) -> list[str]:
    where = ["--runtime-dir", str(instance.runtime_dir)]
    return [*instance.command, "verify", instance.name, *where, *map(str, options)]


def test_damage_on_the_disk_is_found_by_slot(start: Start) -> None:
    instance = start("32M", "8M", "48M")
    fill(instance, 0, 6000)
    done = run(*_command(instance))
    assert done.returncode == 0, done.stderr
    assert "pages checked: 0 damaged, 0 unreadable, 0 lost\n" in done.stdout
    with instance.backing.open("r+b") as disk:
        disk.seek(700)
        disk.write(b"\xff\x00\xff")
        os.fsync(disk.fileno())
    done = run(*_command(instance, "--json"))
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["damaged"] == 1 == len(found["told"])
    assert "in tier file" in found["told"][0]
    before = instance.counters()
    assert run(*_command(instance, "--tier", "pool")).returncode == 0
    assert run(*_command(instance, "--tier", "file")).returncode == 1
    assert instance.counters() == before, "nothing is counted"
    done = run(*_command(instance, "--tier", "tape"))
    assert done.stderr == "swapfs: verify: there is no tier tape\n"


def test_it_is_begun_anew_when_the_server_dies(start: Start) -> None:
    instance = start("32M", "24M", None, "--overcommit", "2")
    fill(instance, 0, 6000)
    checking = subprocess.Popen(
        _command(instance, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.kill(instance.status()["server_pid"], signal.SIGKILL)
    said, problem = checking.communicate(timeout=60)
    assert checking.returncode == 0, problem
    assert json.loads(said)["checked"] > 5000

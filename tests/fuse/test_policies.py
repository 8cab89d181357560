"""Policies in a running server: built in, of one's own, and one that fails while pages move."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from swapfs.policy import BUILT_IN
from tests.fuse.instance import Start, is_alive, run, wait_until
from tests.fuse.load import Load, fill

pytestmark = pytest.mark.timeout(120)
SLOTS = 4096

OWN = """
from swapfs.policy.base import Listed
class Newest(Listed):
    name = "newest"
    fails = False
    def stored(self, slot, age):
        if self.fails and slot > 2000:
            raise RuntimeError("on purpose")
        self.pages.add(slot, 0)
    def victim(self):
        return self.pages.pick(0, 1)
class Failing(Newest):
    fails = True
"""


@pytest.mark.parametrize("policy", ["sieve", "s3-fifo", "refault-distance", "generations"])
def test_a_load_under_a_policy_over_a_servers_death(policy: str, start: Start) -> None:
    assert policy in BUILT_IN
    instance = start("64M", "16M", "128M", "--policy", policy)
    fill(instance, SLOTS, 12288)
    load = Load(instance, SLOTS)
    load.run(60, seed=1)
    server = instance.status()["server_pid"]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not is_alive(server), "the server to die")
    load.run(60, seed=2)
    wait_until(lambda: instance.status()["counters"]["demoted_pages"], "pages to go down")
    assert instance.status()["counters"]["policy_failures"] == 0


@pytest.mark.parametrize("name", ["Newest", "Failing"])
def test_a_policy_of_ones_own(name: str, tmp_path: Path, start: Start) -> None:
    (tmp_path / "own.py").write_text(OWN)
    instance = start("64M", "16M", "128M", "--policy", f"{tmp_path}/own.py:{name}")
    (tmp_path / "own.py").unlink()  # the next server reads no file
    fill(instance, SLOTS, 12288)
    load = Load(instance, SLOTS)
    load.run(60, seed=1)
    server = instance.status()["server_pid"]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not is_alive(server), "the server to die")
    load.run(60, seed=2)
    wait_until(lambda: instance.status()["counters"]["demoted_pages"], "pages to go down")
    counters = instance.status()["counters"]
    assert bool(counters["policy_failures"]) == (name == "Failing")
    assert not counters["handler_errors"]


def test_a_policy_that_is_none_starts_nothing(make_instance: Start) -> None:
    instance = make_instance()
    done = run(*instance.mount_command("--size", "8M", "--pool", "16M", "--policy", "nonsense"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no policy 'nonsense'" in line
    assert not os.path.ismount(instance.mountpoint)

"""A tier in the memory of an engine, under a real server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfs.testing.engine import TestEngine, program
from tests.fuse.instance import Instance, Start, run, wait_until
from tests.fuse.load import Load, fill, outlive_servers
from tests.fuse.test_recovery import kill_server, recovered

pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.skipif(program() is None, reason="install redis-server or valkey-server"),
]
PAGE = 4096


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[TestEngine]:
    made = TestEngine(tmp_path / "engine")
    yield made
    made.kill()


def _config(tmp_path: Path, engine: TestEngine, more: str = "") -> Path:
    config = tmp_path / "far.toml"
    config.write_text(
        f'[[tier]]\nkind = "valkey"\nname = "far"\npath = "{engine.socket}"\nsize = "64M"\n{more}'
    )
    return config


def _far(instance: Instance) -> dict[str, object]:
    (tier,) = instance.status()["tiers"]
    found: dict[str, object] = tier
    return found


def test_far_memory_outlives_servers_and_monitors(
    tmp_path: Path, engine: TestEngine, start: Start
) -> None:
    config = _config(tmp_path, engine)
    instance = start("32M", "4M", None, "--config", config, "--overcommit", 40, "--recompress")
    fill(instance, 2048, 4096)
    load = Load(instance, 2048)
    load.run(60, seed=1)
    far = _far(instance)
    assert (far["kind"], far["path"], far["encrypted"]) == ("valkey", f"unix:{engine.socket}", True)
    assert far["slots"]
    assert engine.client().dbsize() >= int(str(far["slots"])) // 2
    outlive_servers(instance, load)


def _tier(instance: Instance, *arguments: object) -> subprocess.CompletedProcess[str]:
    where = ("--runtime-dir", instance.runtime_dir)
    return run(*instance.command, "tier", *arguments, instance.name, *where)


def test_far_memory_comes_and_goes_while_pages_do(
    tmp_path: Path, engine: TestEngine, start: Start
) -> None:
    """Added to an instance whose processes have not loaded its client; a server is killed then."""
    instance = start("32M", "4M", "48M")
    fill(instance, 2048, 4096)
    load = Load(instance, 2048)
    load.run(40, seed=1)
    keys = ("name=far", f"path={engine.socket}", "size=64M", "priority=5")
    done = _tier(instance, "add", "valkey", *keys)
    assert done.stdout == "far: added, 64M\n", done.stderr
    fill(instance, 6144, 2048)
    load.run(60, seed=2)
    dead = kill_server(instance)
    wait_until(lambda: recovered(instance, dead), "another server")
    load.run(60, seed=3)
    tiers = {tier["name"]: tier for tier in instance.status()["tiers"]}
    assert (tiers["far"]["kind"], tiers["far"]["phase"]) == ("valkey", "active")
    assert tiers["far"]["slots"] > 0
    there = engine.client().dbsize()
    assert instance.cli("upgrade").returncode == 0
    assert engine.client().dbsize() >= there // 2, "an upgrade deletes nothing"
    load.run(40, seed=4)
    done = _tier(instance, "drain", "far")
    assert done.returncode == 0, done.stderr
    assert _tier(instance, "drain", "far", "--stop").returncode == 0
    load.run(40, seed=5)
    done = _tier(instance, "remove", "far")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: engine.client().dbsize() == 0, "nothing of it to be left there")
    load.verify()
    assert [tier["name"] for tier in instance.status()["tiers"]] == ["file"]
    counters = instance.counters()
    for counter in ("failed_read_io", "failed_read_checksum", "lost_pages", "handler_errors"):
        assert counters[counter] == 0, instance.log()


def test_far_memory_that_cannot_be_added_has_one_line_and_changes_nothing(
    tmp_path: Path, engine: TestEngine, start: Start
) -> None:
    instance = start("16M", "4M", "32M")
    other = TestEngine(tmp_path / "other", "--maxmemory-policy", "allkeys-lru")
    other.client().config_set("maxmemory-policy", "allkeys-lru")
    try:
        for keys, expected in (
            ((f"path={tmp_path}/none", "size=8M"), "No such file"),
            ((f"path={engine.socket}",), "size is missing"),
            (("size=8M",), "give path"),
            (("nodes=127.0.0.1:6379", "size=8M"), "network = true"),
            (("nodes=h:1", "size=8M", "network=true"), "is a name"),
            ((f"path={other.socket}", "size=8M"), "noeviction"),
            ((f"path={engine.socket}", "size=8M", "name=file"), "another tier is called file"),
            ((f"path={engine.socket}", "size=8M", "direct-io=on"), "has none"),
        ):
            done = _tier(instance, "add", "valkey", *keys)
            assert done.returncode != 0, keys
            assert expected in done.stderr
            assert done.stderr.count("\n") == 1
            assert len(instance.status()["tiers"]) == 1
    finally:
        other.kill()


def test_the_death_of_the_engine_costs_its_slots_until_it_is_back(
    tmp_path: Path, start: Start
) -> None:
    engine = TestEngine(tmp_path / "engine", "--appendonly", "yes")
    try:
        instance = start(
            *("16M", "4M", None, "--config", _config(tmp_path, engine), "--overcommit", 40)
        )
        fill(instance, 0, 4096)
        pages = _read_all(instance)
        assert None not in pages
        far = int(str(_far(instance)["slots"]))
        assert far
        engine.kill()
        now = _read_all(instance)
        assert now.count(None) == far
        assert all(page in (None, pages[slot]) for slot, page in enumerate(now))
        engine.start()
        wait_until(lambda: _read_all(instance) == pages, "its pages")
    finally:
        engine.kill()


def _read_all(instance: Instance) -> list[bytes | None]:
    fd = instance.open()
    pages: list[bytes | None] = []
    try:
        for slot in range(4096):
            try:
                pages.append(os.pread(fd, PAGE, slot * PAGE))
            except OSError:
                pages.append(None)
    finally:
        os.close(fd)
    return pages


@pytest.mark.parametrize("why", ["may evict", "nobody there"])
def test_an_unfit_engine_is_refused_in_one_line(
    tmp_path: Path, engine: TestEngine, make_instance: Start, why: str
) -> None:
    if why == "may evict":
        engine.client().config_set("maxmemory-policy", "allkeys-lru")
    else:
        engine.kill()
    instance = make_instance()
    options = ("--config", _config(tmp_path, engine), "--size", "16M", "--pool", "32M")
    done = run(*instance.mount_command(*options))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(engine.socket) in done.stderr
    assert ("maxmemory-policy noeviction" in done.stderr) == (why == "may evict")

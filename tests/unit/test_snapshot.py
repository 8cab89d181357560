"""The status snapshot: what it says when one server follows another over the same region."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swapfs import session
from swapfs.config.model import Config
from swapfs.host.guards import Guards
from swapfs.region.layout import Region
from swapfs.server.cpu_latency import CpuLatency
from swapfs.server.snapshot import SnapshotMaker
from swapfs.server.status import PoolStatus, Status, SwapStatus, TierStatus, meaning, value_at
from swapfs.testing.harness import Harness
from swapfs.tiers.state import TierState
from swapfs.units import MiB
from swapfs.wire import control
from swapfs.wire.handover import Handover

SLOTS = 1024
POOL_BYTES = 4 * MiB


def make_maker(path: Path, region: Region | None = None) -> tuple[SnapshotMaker, Region]:
    """Return the snapshots of a new server, over *region* if another has died."""
    harness = Harness(SLOTS, POOL_BYTES, region=region)
    config = Config(mountpoint=path, size_bytes=4 * MiB, pool_bytes=POOL_BYTES, runtime_dir=path)
    handover = Handover(pid=1, region_fd=3, fuse_fd=4, lock_fd=5, tier_fds=())
    guards = Guards(unsafe=True)
    awake = CpuLatency("off")
    maker = SnapshotMaker(config, harness.region, harness.layer, guards, handover, awake)
    return maker, harness.region


def handler_errors(maker: SnapshotMaker) -> int:
    return maker.make().counters["handler_errors"]


def test_handler_errors_of_the_session_loop_survive_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_loop = {**session.counts(), "handler_errors": 0}
    monkeypatch.setattr(session, "counts", lambda: in_loop)
    first, region = make_maker(tmp_path)
    assert handler_errors(first) == 0
    in_loop["handler_errors"] = 3
    assert [handler_errors(first), handler_errors(first)] == [3, 3]

    in_loop["handler_errors"] = 0  # as in every new process
    second, _ = make_maker(tmp_path, region)
    assert handler_errors(second) == 3
    in_loop["handler_errors"] = 2
    assert handler_errors(second) == 5


# the snapshot itself, between versions


def test_a_snapshot_goes_through_json_unchanged(tmp_path: Path) -> None:
    made = make_maker(tmp_path)[0].make()
    assert Status.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    assert made.latency.series, "the histogram is in it"


KEYS = {
    *("name", "version", "algorithm", "pid", "server_pid", "mountpoint", "size_bytes"),
    *("overcommit", "room_bytes", "started_unix_s", "slots", "orig_bytes", "compr_bytes", "pool"),
    *("metadata_bytes", "fixed_bytes", "metadata_bytes_per_slot", "clusters", "tiers", "counters"),
    *("latency", "requests_in_flight", "guards", "loop", "swap", "config", "handover", "kernel"),
    *("limits", "degraded"),
}
"""What scripts and other versions read: a key may be added, and none taken away."""


def test_the_keys_that_scripts_read_are_there(tmp_path: Path) -> None:
    answer = make_maker(tmp_path)[0].make().as_dict()
    assert answer.keys() >= KEYS
    assert "held" not in answer
    assert Status(held=True).as_dict()["held"] is True
    assert answer["pool"].keys() >= {"limit_bytes", "used_bytes", "payload_bytes", "peak_bytes"}
    assert answer["handover"].keys() >= {"pid", "region_fd", "fuse_fd", "lock_fd", "tier_fds"}
    assert answer["config"]["size"] == 4 * MiB
    tier = TierStatus(name="file", state=TierState.STUCK).as_dict()
    assert json.loads(json.dumps(tier))["state"] == "stuck"
    assert tier.keys() >= {"name", "path", "size_bytes", "used_bytes", "payload_bytes", "bad_bytes"}
    assert tier.keys() >= {"healthy", "state", "detail", "direct_io", "encrypted", "segments"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Status()),
        ({"a key of the next version": 1, "pid": 7}, Status(pid=7)),
        ({"pid": "seven", "size_bytes": True, "degraded": "all"}, Status()),
        ({"overcommit": 2}, Status(overcommit=2.0)),
        ({"pool": {"used_bytes": 5, "new": 1}}, Status(pool=PoolStatus(used_bytes=5))),
        ({"pool": 5, "swap": None}, Status()),
        ({"swap": {"priority": 3}}, Status(swap=SwapStatus(priority=3))),
        ({"slots": {"raw": 1, "odd": None}}, Status(slots={"raw": 1})),
        ({"tiers": [{"name": "a", "state": "full"}]}, "full"),
        ({"tiers": [{"name": "a", "state": "sulking"}]}, "unknown"),
        ({"tiers": ["a"]}, Status()),
    ],
)
def test_the_snapshot_of_another_version_is_read_as_far_as_it_is_understood(
    given: dict[str, Any], expected: Status | str
) -> None:
    found = Status.from_dict(given)
    if isinstance(expected, str):
        assert [str(tier.state) for tier in found.tiers] == [expected]
    else:
        assert found == expected


def test_swap_that_is_wanted_and_off_is_a_reason(tmp_path: Path) -> None:
    maker, _ = make_maker(tmp_path)
    before = maker.make().degraded
    control.wanted_path(tmp_path, "swapfs").touch()
    (reason,) = set(maker.make().degraded) - set(before)
    assert "'swapfs up' turns it on again" in reason


def test_what_is_as_it_should_be_is_healthy() -> None:
    healthy = {TierState.OK, TierState.FULL, TierState.SPENT}
    assert {state for state in TierState if state.healthy} == healthy


def test_a_figure_is_found_and_explained_by_its_path() -> None:
    status = Status(pool=PoolStatus(used_bytes=5), metadata_bytes=2, slots={"raw": 4})
    assert value_at(status, "pool.used_bytes") == 5
    assert value_at(status, "slots.raw") == 4
    assert value_at(status, "memory_bytes") == 7
    assert value_at(status, "swap.priority") is None
    assert meaning("pool.used_bytes") == "Pool in use, with its waste."
    assert meaning("memory_bytes").startswith("Memory used")
    assert meaning("bad_bytes", TierStatus)

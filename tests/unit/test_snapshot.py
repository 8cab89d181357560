"""The status snapshot: what it says when one server follows another over the same region."""

from __future__ import annotations

from pathlib import Path

import pytest

from swapfs import session
from swapfs.config.model import Config
from swapfs.host.guards import Guards
from swapfs.region.layout import Region
from swapfs.server.snapshot import SnapshotMaker
from swapfs.testing.harness import Rig
from swapfs.units import MiB
from swapfs.wire.handover import Handover

SLOTS = 1024
POOL_BYTES = 4 * MiB


def make_maker(path: Path, region: Region | None = None) -> tuple[SnapshotMaker, Region]:
    """Return the snapshots of a new server, over *region* if another has died."""
    rig = Rig(SLOTS, POOL_BYTES, region=region)
    config = Config(mountpoint=path, size_bytes=4 * MiB, pool_bytes=POOL_BYTES, runtime_dir=path)
    handover = Handover(pid=1, region_fd=3, fuse_fd=4, lock_fd=5, tier_fd=None)
    guards = Guards(unsafe=True)
    return SnapshotMaker(config, rig.region, rig.layer, guards, None, handover), rig.region


def handler_errors(maker: SnapshotMaker) -> int:
    count = maker.make()["counters"]["handler_errors"]
    assert isinstance(count, int)
    return count


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

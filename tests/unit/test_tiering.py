"""Tiers that leave while somebody changes his mind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swapfs.config.model import Config
from swapfs.server.tiering import Tiering
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.stack import Phase
from swapfs.wire.link import Link

SLOTS = CLUSTER_SLOTS


class _NoMonitor(Link):
    def __init__(self) -> None:
        pass

    def ask(self, operation: str, fd: int | None = None, **arguments: Any) -> Any:
        raise AssertionError(operation)


def test_a_tier_that_is_kept_after_all_is_not_let_go(tmp_path: Path) -> None:
    """It was seen empty; draining was ended before its turn came."""
    harness = Harness(SLOTS, 4 * MiB, MemoryTier(8))
    config = Config(
        mountpoint=tmp_path, runtime_dir=tmp_path, size_bytes=SLOTS * PAGE_SIZE, pool_bytes=4 * MiB
    )
    tiering = Tiering(
        *(config, harness.region, harness.layer, harness.down, _NoMonitor(), tmp_path / "lock"),
        grow=lambda: None,
        changed=lambda *_: None,
    )
    (level,) = harness.stack
    harness.down.drains.start(level, Phase.LEAVING)
    (leaving,) = tiering.leaving()
    assert leaving is level
    assert tiering.drain(level.name, stop=True) is level
    assert not tiering.let_go(level)
    assert list(harness.stack) == [level]
    harness.store(0, page("text", 1))
    assert harness.down.demote(1) == 1
    assert harness.load(0) == page("text", 1)
    harness.region.close()

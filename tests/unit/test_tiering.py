"""Tiers that leave while somebody changes his mind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swapfs.config.model import Config
from swapfs.errors import ConfigError, OperationError
from swapfs.server.tiering import Tiering
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.stack import Phase
from swapfs.wire.link import Link, NoAnswer

SLOTS = CLUSTER_SLOTS


class _NoMonitor(Link):
    def __init__(self) -> None:
        pass

    def ask(self, operation: str, fd: int | None = None, **arguments: Any) -> Any:
        raise AssertionError(operation)


class _Monitor(Link):
    """Fails as it is told to, and notes what it was told."""

    def __init__(self, error: OperationError) -> None:
        self.told: list[tuple[str, Any]] = []
        self._error = error

    def ask(self, operation: str, fd: int | None = None, **arguments: Any) -> Any:
        raise self._error

    def tell(self, operation: str, **arguments: Any) -> None:
        self.told.append((operation, arguments))


@pytest.mark.parametrize(
    ("error", "stays"),
    [(OperationError("it cannot"), False), (NoAnswer("the monitor does not answer"), True)],
    ids=["refused", "no answer"],
)
def test_a_file_that_the_monitor_may_have_stays(
    error: OperationError, stays: bool, tmp_path: Path
) -> None:
    """It was asked, and may take it yet: it is to let it go then, and pages may be in it."""
    harness = Harness(SLOTS, 4 * MiB, MemoryTier(8))
    monitor = _Monitor(error)
    tiering = Tiering(
        *(_config(tmp_path), harness.region, harness.layer, harness.down, monitor),
        tmp_path / "lock",
        grow=lambda: None,
        changed=lambda *_: None,
    )
    with pytest.raises(OperationError, match=str(error)):
        tiering.add({"kind": "file", "path": str(tmp_path / "more"), "size": "8M"})
    assert (tmp_path / "more").exists() == stays
    assert monitor.told == ([("forget", {"number": 2})] if stays else [])
    assert len(harness.stack) == 1
    harness.region.close()


def test_far_memory_that_could_keep_the_monitor_waiting_is_not_added(tmp_path: Path) -> None:
    harness = Harness(SLOTS, 4 * MiB, MemoryTier(8))
    tiering = Tiering(
        *(_config(tmp_path), harness.region, harness.layer, harness.down, _NoMonitor()),
        tmp_path / "lock",
        grow=lambda: None,
        changed=lambda *_: None,
    )
    table = {"kind": "valkey", "nodes": "engine.example:6379", "network": True, "size": "8M"}
    with pytest.raises(ConfigError, match=r"engine\.example is a name"):
        tiering.add(table)
    harness.region.close()


def _config(tmp_path: Path) -> Config:
    return Config(
        mountpoint=tmp_path, runtime_dir=tmp_path, size_bytes=SLOTS * PAGE_SIZE, pool_bytes=4 * MiB
    )


def test_a_tier_that_is_kept_after_all_is_not_let_go(tmp_path: Path) -> None:
    """It was seen empty; draining was ended before its turn came."""
    harness = Harness(SLOTS, 4 * MiB, MemoryTier(8))
    tiering = Tiering(
        *(
            _config(tmp_path),
            harness.region,
            harness.layer,
            harness.down,
            _NoMonitor(),
            tmp_path / "lock",
        ),
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

"""What a replay says is what the kernel saw: recorded in the VM, played over the same set-up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from swapfs.lab.player import Outcome, Player, Setup
from swapfs.lab.trace import Trace
from swapfs.policy import find

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.conftest import RunVm

TIMEOUT_S = 900
WORKLOADS = ("scan", "skewed", "uniform")
SHARE = 0.05
FEW_PAGES = 64
"""A batch or so: where there are hardly any, 5 % of them are none."""

pytestmark = [pytest.mark.vm, pytest.mark.timeout(TIMEOUT_S + 300)]


def play(path: Path, status: dict[str, Any]) -> tuple[Outcome, int]:
    """Return what the replay comes to, and the pages that it leaves in the pool."""
    setup = Setup(
        pool_bytes=status["pool"]["limit_bytes"],
        tier_bytes=[tier["size_bytes"] for tier in status["tiers"]],
    )
    player = Player(Trace(path), setup, find("second-chance"))
    outcome = player.run()
    states = player.layer.table.state_counts()
    player.close()
    return outcome, states["compressed"] + states["raw"]


def near(played: int, live: int) -> bool:
    return abs(played - live) <= max(SHARE * live, FEW_PAGES)


def test_a_replay_comes_to_what_the_live_run_counted(run_vm: RunVm, tmp_path: Path) -> None:
    run = run_vm("record", timeout_s=TIMEOUT_S, disks_mib=[512])
    assert run.failed == ()
    assert run.problems() == []
    found = {}
    for name in WORKLOADS:
        out = tmp_path / "results/out"
        status = json.loads((out / f"{name}.json").read_text())
        outcome, in_pool = play(out / f"{name}.trace", status)
        live, slots = status["counters"], status["slots"]
        found[name] = {
            "demoted": (outcome.demoted, live["demoted_pages"]),
            "refaults": (outcome.refaults, live["refaulted_pages"]),
            "misses": (outcome.misses, live["read_file_pages"]),
            "below": (sum(outcome.tiers), slots["file"]),
            "pool": (in_pool, slots["compressed"] + slots["raw"]),
        }
        assert live["demoted_pages"] > FEW_PAGES
    wrong = {
        (name, what): pair
        for name, pairs in found.items()
        for what, pair in pairs.items()
        if not near(*pair)
    }
    assert wrong == {}, found

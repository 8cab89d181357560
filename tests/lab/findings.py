"""What an experiment found: live figures, the same traces replayed, Belady's floor; all as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from swapfs.lab.beside import beside
from swapfs.lab.player import Setup
from swapfs.lab.replay import replay
from swapfs.lab.trace import Trace
from swapfs.policy import DEFAULT
from tests.lab.experiment import Experiment
from tests.lab.running import Found, Recorded

POOLS: Final = (0.5, 1, 2)
"""Sizes that a trace is replayed with, in pools of the run that it was recorded on."""
BETTER_SHARE: Final = 0.05
"""A policy that has so many fewer refaults everywhere becomes the default."""
_LIVE: Final = {
    "loads": ("read_pool_pages", "read_file_pages"),
    "misses": ("read_file_pages",),
    "refaults": ("refaulted_pages",),
    "demoted": ("demoted_pages",),
    "direct": ("write_direct_pages",),
    "written_bytes": ("file_written_bytes",),
}
Say = Callable[[str], None]


def gather(experiment: Experiment, found: Found, say: Say) -> dict[str, Any]:
    """Return all that is to be said of *found*; each trace of the first policy is replayed."""
    return {
        "experiment": asdict(experiment),
        "accel": found.accel,
        "problems": list(found.problems),
        "live": [_live(each, say) for each in found.recorded],
        "replayed": [
            _replayed(each, experiment, say)
            for each in found.recorded
            if each.run.policy == experiment.policies[0]
        ],
    }


def _live(each: Recorded, say: Say) -> dict[str, Any]:
    say(f"{each.run.name}: live beside its replay")
    counters = each.status["counters"]
    pairs = beside(Trace(each.trace), each.run.policy, counters, each.samples)
    return {
        "workload": each.run.workload.name,
        "setup": each.run.setup,
        "policy": each.run.policy,
        "seconds": round(each.seconds, 1),
        **{name: sum(counters[key] for key in keys) for name, keys in _LIVE.items()},
        "beside": {name: asdict(pair) for name, pair in pairs.items()},
    }


def _replayed(each: Recorded, experiment: Experiment, say: Say) -> dict[str, Any]:
    trace = Trace(each.trace)
    setup = Setup.recorded(trace.meta)
    pools = [int(setup.pool_bytes * times) for times in POOLS]
    told: set[str] = set()

    def progress(what: str, done: int, whole: int) -> None:
        if what not in told:
            told.add(what)
            say(f"{each.run.name}: replay under {what}")

    found = replay(trace, experiment.replayed, pools, setup, progress=progress)
    found.pop("meta")
    return {
        **found,
        "trace": each.trace.name,
        "workload": each.run.workload.name,
        "setup": each.run.setup,
        "recorded_under": each.run.policy,
        "pool_bytes": setup.pool_bytes,
    }


def runs_with(replayed: Mapping[str, Any], pool_bytes: int) -> list[dict[str, Any]]:
    """Return the replays with a pool of *pool_bytes*."""
    return [run for run in replayed["runs"] if run["pool_bytes"] == pool_bytes]


def better(replayed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the policies with 5 % fewer refaults than the default on every trace."""
    ratios: dict[str, list[float]] = {}
    for each in replayed:
        refaults = {run["policy"]: run["refaults"] for run in runs_with(each, each["pool_bytes"])}
        if DEFAULT not in refaults:
            return []
        for name, count in refaults.items():
            ratios.setdefault(name, []).append(count / max(1, refaults[DEFAULT]))
    return [name for name, all_ in ratios.items() if max(all_) < 1 - BETTER_SHARE]

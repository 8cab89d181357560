"""A replay beside the run that was recorded: does the one come to what the other counted?

The replay has the configuration of the run, and a batch is under way for as long as it was in the
run, which the demotions in the trace tell. Two live runs are never quite the same either.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Final

from swapfs.core._core import EVENT_KIND_SHIFT, EVENT_SIZE_SHIFT, NO_SIZE
from swapfs.lab.length_tier import taken_bytes
from swapfs.lab.player import Outcome, Player, Setup
from swapfs.lab.trace import Trace
from swapfs.policy import find
from swapfs.region.access_log import EventKind
from swapfs.tiers.segments import SEGMENT_BYTES
from swapfs.units import PAGE_SIZE

SHARE: Final = 0.05
_BATCHES_MIN: Final = 4
FEW_PAGES: Final = 64
"""So many pages are no difference: where there are hardly any, 5 % of them are none."""

Sample = tuple[float, int, int]
"""CLOCK_MONOTONIC in s, bytes of the pool in use, pages below it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What was played, and what the live run said of the same."""

    played: float
    live: float

    def near(self, share: float, slack: float) -> bool:
        """Whether they differ by *share* of the live one at most, or by no more than *slack*."""
        return abs(self.played - self.live) <= max(share * self.live, slack)


def batch_ns(trace: Trace) -> int:
    """Return how long a batch took that followed another at once, by the demotions in *trace*.

    A batch fills a segment, and is published in one go: so the longest pauses between demotions
    are those between batches. From the end of one to that of the next it takes as long as the
    second took, or that and a while in which nothing had to go: hence the lower quartile. 0: there
    were too few.
    """
    sizes, times, taken = trace.meta.class_sizes, [], 0
    for words in trace.chunks():
        for index in range(0, len(words), 2):
            if words[index] >> EVENT_KIND_SHIFT & 15 == EventKind.DEMOTE:
                size_class = words[index] >> EVENT_SIZE_SHIFT & NO_SIZE
                taken += taken_bytes(sizes[size_class] if size_class < len(sizes) else PAGE_SIZE)
                times.append(words[index + 1])
    batches = round(taken / SEGMENT_BYTES)
    if batches < _BATCHES_MIN:
        return 0
    pauses = sorted(range(len(times) - 1), key=lambda at: times[at] - times[at + 1])
    ends = [times[at] for at in sorted(pauses[: batches - 1])] + [times[-1]]
    took = sorted(after - before for before, after in pairwise(ends))
    return took[len(took) // 4]


def play(trace: Trace, policy: str, took_ns: int | None = None) -> Outcome:
    """Play *trace* under *policy* over what it was recorded on.

    :param took_ns: how long a batch takes; None: as the trace tells

    :raises ConfigError: there is no such policy, or the trace cannot be played
    """
    setup = replace(
        Setup.recorded(trace.meta), batch_ns=batch_ns(trace) if took_ns is None else took_ns
    )
    player = Player(trace, setup, find(policy))
    try:
        return player.run()
    finally:
        player.close()


def beside(
    trace: Trace,
    policy: str,
    counters: Mapping[str, int],
    samples: Sequence[Sample],
    took_ns: int | None = None,
) -> dict[str, Pair]:
    """Return what a replay of *trace* comes to, beside the *counters* of the run at its end.

    :param policy: that of the run
    :param samples: of the run, taken while it was recorded; their means are compared
    :param took_ns: as for ``play``
    """
    outcome = play(trace, policy, took_ns)
    found = {
        "demoted": Pair(outcome.demoted, counters["demoted_pages"]),
        "refaults": Pair(outcome.refaults, counters["refaulted_pages"]),
        "misses": Pair(outcome.misses, counters["read_file_pages"]),
        "prefetched": Pair(outcome.prefetched, counters["prefetched_pages"]),
    }
    began_s = trace.meta.monotonic_ns / 1e9
    times = [at_s for at_s, _ in outcome.ram]
    rows = []
    for at_s, pool_bytes, below in samples:
        index = bisect_right(times, at_s - began_s) - 1
        if index >= 0:
            rows.append((outcome.ram[index][1], pool_bytes, outcome.below[index], below))
    if rows:
        means = [fmean(column) for column in zip(*rows, strict=True)]
        found["pool bytes"] = Pair(means[0], means[1])
        found["pages below"] = Pair(means[2], means[3])
    return found


def far(found: Mapping[str, Pair], share: float = SHARE) -> dict[str, Pair]:
    """Return the pairs that differ by more than *share*."""
    return {name: pair for name, pair in found.items() if not pair.near(share, FEW_PAGES)}

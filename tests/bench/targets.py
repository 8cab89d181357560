"""What swapfs wants to reach, as data, and the verdict on a run.

A target is a limit for the median of ratios that were taken round by round in one run, or for the
median of a figure as it is. A target that nobody measured is neither met nor missed, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.bench import names
from tests.bench.ratios import Spread, ratio, spread
from tests.bench.record import Results


@dataclass(frozen=True)
class Place:
    """Where a figure is found."""

    part: str
    test: str
    subject: str
    metric: str


@dataclass(frozen=True)
class Target:
    """One limit."""

    title: str
    figure: Place
    over: Place | None
    """What the figure is divided by; None if the limit is for the figure itself."""
    limit: float
    at_most: bool = True
    """Whether the limit is the most (a latency) or the least (a throughput)."""

    @property
    def wanted(self) -> str:
        """Return the limit in words: ``at most 1.15``."""
        return f"at {'most' if self.at_most else 'least'} {self.limit:g}"


@dataclass(frozen=True)
class Verdict:
    """How one target stands."""

    target: Target
    found: Spread | None
    """None if it was not measured."""
    unit: str
    why: str
    """Why it was not measured."""

    @property
    def met(self) -> bool | None:
        """Return whether the median is within the limit; None if there is none."""
        if self.found is None:
            return None
        if self.target.at_most:
            return self.found.median <= self.target.limit
        return self.found.median >= self.target.limit

    @property
    def word(self) -> str:
        """Return ``met``, ``missed`` or ``not measured``."""
        return {True: "met", False: "missed", None: "not measured"}[self.met]


def _against(
    title: str,
    figure: tuple[str, str, str, str],
    other: str,
    limit: float = 1.0,
    *,
    at_most: bool = True,
) -> Target:
    part, test, subject, metric = figure
    over = Place(part, test, other, metric)
    return Target(title, Place(part, test, subject, metric), over, limit, at_most)


_RANDOM_READ: Final = names.random_read(4)

_BASE_CPU_US: Final = {
    names.SWAP_OUT: 27.0,
    names.SEQUENTIAL_SWAP_IN: 9.0,
    names.RANDOM_SWAP_IN: 37.0,
}
"""CPU time of a page at 0.1.0, natively, on two virtual CPUs with Linux 6.18."""


def _natively(*, awake: bool) -> tuple[Target, ...]:
    """Return the targets of a native run in one power state."""

    def test(name: str) -> str:
        return names.natively(name, awake=awake)

    def beside(
        name: str, metric: str, subject: str, other: str, limit: float, *, at_most: bool = True
    ) -> Target:
        title = f"{test(name)}: {metric}, {subject} / {other}"
        figure = (names.SWAP, test(name), subject, metric)
        return _against(title, figure, other, limit, at_most=at_most)

    def cpu(name: str, share: float) -> Target:
        place = Place(names.SWAP, test(name), names.SWAPFS, names.CPU_PER_PAGE)
        return Target(f"{test(name)}: CPU a page", place, None, share * _BASE_CPU_US[name])

    pool, disk, plain = names.SWAPFS, names.SWAPFS_DISK, names.SWAPFILE
    speed, out = names.THROUGHPUT, names.SWAP_OUT
    in_order, at_random = names.SEQUENTIAL_SWAP_IN, names.RANDOM_SWAP_IN
    return (
        beside(at_random, names.P50, pool, plain, 0.5),
        beside(at_random, names.P99, pool, plain, 0.8),
        beside(in_order, speed, pool, plain, 1.3, at_most=False),
        beside(out, speed, pool, names.ZRAM, 1.3, at_most=False),
        beside(at_random, names.P50, disk, plain, 1.25),
        beside(in_order, speed, disk, plain, 1.0, at_most=False),
        cpu(out, 0.5),
        cpu(in_order, 0.8),
        cpu(at_random, 0.6),
        beside(names.REDIS, names.TIME, pool, plain, 0.8),
        beside(names.REDIS, names.TIME, pool, names.ZRAM, 1.6),
        beside(names.SQLITE, names.TIME, disk, plain, 1.2),
        beside(names.SWAPOFF, names.TIME, pool, plain, 1.0),
        beside(names.SWAPOFF, names.TIME, disk, plain, 1.0),
    )


TARGETS: Final = (
    _against(
        "4 KiB random read p50 / C no-op FUSE server",
        (names.BLOCK, _RANDOM_READ, names.SWAPFS_POOL, names.P50),
        names.FLOOR,
        1.15,
    ),
    _against(
        "32 KiB random read p50 / C no-op FUSE server",
        (names.BLOCK, names.random_read(32), names.SWAPFS_POOL, names.P50),
        names.FLOOR,
        1.5,
    ),
    _against(
        "swap-out throughput / zram",
        (names.SWAP, names.SWAP_OUT, names.SWAPFS, names.THROUGHPUT),
        names.ZRAM,
        at_most=False,
    ),
    _against(
        "sequential swap-in throughput / swapfile",
        (names.SWAP, names.SEQUENTIAL_SWAP_IN, names.SWAPFS, names.THROUGHPUT),
        names.SWAPFILE,
        at_most=False,
    ),
    _against(
        "random swap-in p50 / swapfile",
        (names.SWAP, names.RANDOM_SWAP_IN, names.SWAPFS, names.P50),
        names.SWAPFILE,
    ),
    _against(
        "RAM per stored page / zram lz4",
        (names.MEMORY, names.REAL_MEMORY, names.SWAPFS, names.RAM_PER_PAGE),
        names.ZRAM_LZ4,
    ),
    Target(
        "metadata per slot, bytes",
        Place(names.MEMORY, names.REAL_MEMORY, names.SWAPFS, names.METADATA_PER_SLOT),
        None,
        16,
    ),
    _against(
        "read p99 while metrics are scraped / idle",
        (names.INTERFERENCE, _RANDOM_READ, names.SCRAPING, names.P99),
        names.IDLE,
        2.0,
    ),
    _against(
        "read p99 while demoting / idle",
        (names.INTERFERENCE, _RANDOM_READ, names.DEMOTING, names.P99),
        names.IDLE,
        2.0,
    ),
    Target(
        "fixed memory, MiB",
        Place(names.MEMORY, names.FIXED_MEMORY, names.SWAPFS, names.HELD),
        None,
        40,
    ),
    Target(
        "fixed memory with an encrypted file, MiB",
        Place(names.MEMORY, names.FIXED_MEMORY_WITH_FILE, names.SWAPFS, names.HELD),
        None,
        48,
    ),
    *_natively(awake=False),
    *_natively(awake=True),
)


def judge(results: Results, targets: tuple[Target, ...] = TARGETS) -> list[Verdict]:
    """Return how each target stands in *results*, in the order of the targets."""
    return [_judge(results, target) for target in targets]


def _judge(results: Results, target: Target) -> Verdict:
    places = [target.figure] if target.over is None else [target.figure, target.over]
    figures = [results.find(p.part, p.test, p.subject, p.metric) for p in places]
    for place, figure in zip(places, figures, strict=True):
        if figure is None:
            return Verdict(target, None, "", why_absent(results, place))
    top = figures[0]
    assert top is not None
    if target.over is None:
        return Verdict(target, spread(top.samples), top.unit, "")
    bottom = figures[1]
    assert bottom is not None
    found = ratio(top, bottom)
    why = "" if found else f"{bottom.subject} has only zeros"
    return Verdict(target, found, "", why)


def why_absent(results: Results, place: Place) -> str:
    """Return why a run has no such figure, in a few words; the report has the whole reasons."""
    if any(failure.part == place.part for failure in results.failed):
        return f"part {place.part} failed"
    if any((skip.part, skip.subject) == (place.part, place.subject) for skip in results.skipped):
        return f"{place.subject} skipped"
    if place.part not in results.parts():
        return f"part {place.part} did not run"
    if not any(figure.part == place.part for figure in results.figures):
        return f"part {place.part} skipped"
    return f"no {place.metric} of {place.subject}"

"""What a trace is played over, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from swapfs.errors import ConfigError
from swapfs.lab.trace import Meta
from swapfs.vlayer.prefetch import PAGES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a trace is played over; sizes in bytes. The tiers are filled in their order."""

    pool_bytes: int
    tier_bytes: Sequence[int] = ()
    high_percent: int = 90
    low_percent: int = 80
    promote: bool = False
    raw_first: bool = False
    prefetch: int = 0
    batch_ns: int = 0
    """How long a batch is under way on its way down, in the time of the trace; 0: none is."""

    @classmethod
    def recorded(cls, meta: Meta) -> Setup:
        """Return what the trace that says *meta* of itself was recorded on.

        A trace that does not say how large the tiers were gets one of twice the swap file, which
        has room for all.

        :raises ConfigError: its configuration is none
        """
        config = meta.config
        found = cls(
            pool_bytes=meta.pool_bytes,
            tier_bytes=meta.tier_bytes or [2 * meta.size_bytes],
            high_percent=config.get("high-watermark", 90),
            low_percent=config.get("low-watermark", 80),
            promote=bool(config.get("promote", False)),
            raw_first=bool(config.get("raw-first", False)),
            prefetch=config.get("prefetch", 0),
        )
        marks = (found.low_percent, found.high_percent)
        if not all(type(mark) is int for mark in marks) or not 0 < marks[0] < marks[1] <= 100:
            raise ConfigError("trace", "the watermarks in its header are damaged")
        if type(found.prefetch) is not int or not 0 <= found.prefetch <= PAGES_MAX:
            raise ConfigError("trace", "prefetch in its header is damaged")
        return found


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a trace. Pages, but for what says otherwise.

    :param loads: of pages that were stored since the trace began
    :param misses: loads that found their page below the pool
    :param refaults: those of them that followed soon on the demotion
    :param prefetched: came up along with others, and ``prefetch_used`` of them were seen to be read
    :param refused: stores that found no room
    :param peak_pages: blobs in the pool, at most
    :param ram: seconds since the beginning, and bytes of the pool in use then
    :param below: pages below the pool, at the same times
    """

    policy: str
    pool_bytes: int
    events: int = 0
    loads: int = 0
    misses: int = 0
    refaults: int = 0
    demoted: int = 0
    promoted: int = 0
    prefetched: int = 0
    prefetch_used: int = 0
    refused: int = 0
    written_bytes: int = 0
    peak_pages: int = 0
    policy_failures: int = 0
    seconds: float = 0.0
    tiers: list[int] = field(default_factory=list)
    ram: list[tuple[float, int]] = field(default_factory=list)
    below: list[int] = field(default_factory=list)

"""A cache of so many pages, exactly: what a policy is worth when sizes and batches are left out.

The very classes of ``swapfs.policy``, driven one page at a time: a page that is asked for and not
there comes in, and one goes for it when the cache is full. So simulators of caches can be compared
with (tests/lab), and Belady's optimum is defined.
"""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from swapfs.lab.trace import Trace
from swapfs.policy import Policy
from swapfs.policy.base import NOTHING_YET, POOL, Facts
from swapfs.region.access_log import SLOT_MASK, EventKind
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS

_NEVER: Final = 1 << 62


def requests_of(trace: Trace) -> Iterator[int]:
    """Yield the slots that *trace* stores to or loads, in order; -2 - slot for a discard."""
    for words in trace.chunks():
        for word in words[::2]:
            kind = word >> 40 & 15
            if kind in (EventKind.STORE, EventKind.LOAD):
                yield word & SLOT_MASK
            elif kind == EventKind.DISCARD:
                yield -2 - (word & SLOT_MASK)


class Heat:
    """``policy.Eyes`` over a set of pages: one bit a page, clusters in the order of first use."""

    def __init__(self) -> None:
        self.hot: dict[int, bool] = {}
        self._clusters: OrderedDict[int, int] = OrderedDict()

    def add(self, page: int) -> None:
        """Have *page*, hot."""
        cluster = page >> CLUSTER_SHIFT
        if page not in self.hot:
            self._clusters[cluster] = self._clusters.get(cluster, 0) + 1
        self.hot[page] = True

    def remove(self, page: int) -> None:
        """Have it no more."""
        if self.hot.pop(page, None) is None:
            return
        cluster = page >> CLUSTER_SHIFT
        self._clusters[cluster] -= 1
        if not self._clusters[cluster]:
            del self._clusters[cluster]

    def live_clusters(self) -> int:  # noqa: D102
        return len(self._clusters)

    def next_cluster(self) -> int | None:  # noqa: D102
        cluster = next(iter(self._clusters), None)
        if cluster is not None:
            self._clusters.move_to_end(cluster)
        return cluster

    def cool(self, slot: int, count: int) -> list[int]:  # noqa: D102
        hot, cold = self.hot, []
        for page in range(slot + min(count, CLUSTER_SLOTS) - 1, slot - 1, -1):
            if page in hot:
                if hot[page]:
                    hot[page] = False
                else:
                    cold.append(page)
        return cold


class PageCache:
    """At most *capacity* pages under a policy of class *kind*. ``misses`` counts."""

    def __init__(self, kind: type[Policy], capacity: int, slots: int) -> None:
        self._heat = Heat()
        self._policy = kind(Facts(slots, capacity, fixed=True), self._heat)
        self._capacity = capacity
        self._there: set[int] = set()
        self.misses = 0

    def run(self, requests: Iterable[int]) -> int:
        """Serve *requests*; return how many were misses so far."""
        policy, there, heat = self._policy, self._there, self._heat
        by_heat = policy.by_heat
        for page in requests:
            if page < 0:
                self._forget(-2 - page)
            elif page in there:
                if by_heat:
                    heat.hot[page] = True
                policy.read(page, 0)
            else:
                self.misses += 1
                if len(there) >= self._capacity:
                    self._evict()
                there.add(page)
                if by_heat:
                    heat.add(page)
                policy.stored(page, 0)
        return self.misses

    def _forget(self, page: int) -> None:
        self._there.discard(page)
        self._heat.remove(page)
        self._policy.left(page)

    def _evict(self) -> None:
        policy, there = self._policy, self._there
        for page in policy.candidates(POOL):
            if page == NOTHING_YET:
                continue
            if page in there and not (policy.by_heat and self._heat.hot[page]):
                there.discard(page)
                self._heat.remove(page)
                policy.demoted(page)
                return
        raise AssertionError(f"{policy.name} offers nothing of {len(there)} pages")


def next_requests(requests: array[int]) -> array[int]:
    """Return for each of *requests* the number of the next one of its page in this life."""
    following, after = array("q", bytes(8 * len(requests))), dict[int, int]()
    for index in range(len(requests) - 1, -1, -1):
        page = requests[index]
        if page < 0:
            after.pop(-2 - page, None)
        else:
            following[index] = after.get(page, _NEVER)
            after[page] = index
    return following


def belady(requests: array[int], capacity: int) -> int:
    """Return the fewest misses that *capacity* pages allow, if what is missed comes in.

    Source: Belady, "A study of replacement algorithms for a virtual-storage computer", 1966: what
    is asked for again last goes. Memory grows with the requests.
    """
    following = next_requests(requests)
    there: dict[int, int] = {}
    last: list[tuple[int, int]] = []  # -(number of the next request), page; old entries too
    misses = 0
    for index, page in enumerate(requests):
        if page < 0:
            there.pop(-2 - page, None)
            continue
        if page not in there:
            misses += 1
            if len(there) >= capacity:
                _evict_last(there, last)
        there[page] = following[index]
        heapq.heappush(last, (-following[index], page))
    return misses


def _evict_last(there: dict[int, int], last: list[tuple[int, int]]) -> None:
    while True:
        asked, page = heapq.heappop(last)
        if there.get(page) == -asked:
            del there[page]
            return


def floor(trace: Trace, capacity: int) -> int:
    """Return the fewest loads from below that *capacity* pages in memory allow for *trace*.

    A page that was stored may stay in memory or go; what is loaded next last goes, and what is
    stored again or discarded before goes at no cost. No policy that holds no more misses less.
    """
    events = array("q")
    for words in trace.chunks():
        for word in words[::2]:
            kind = word >> 40 & 15
            if kind < EventKind.DEMOTE:
                events.append((word & SLOT_MASK) << 2 | kind)
    costs = array("q", bytes(8 * len(events)))
    after: dict[int, int] = {}
    for index in range(len(events) - 1, -1, -1):
        page, kind = events[index] >> 2, events[index] & 3
        costs[index] = after.get(page, _NEVER)
        after[page] = index if kind == EventKind.LOAD else _NEVER
    there: dict[int, int] = {}
    known: set[int] = set()
    last: list[tuple[int, int]] = []
    misses = 0
    for index, event in enumerate(events):
        page, kind = event >> 2, event & 3
        if kind == EventKind.DISCARD:
            there.pop(page, None)
            known.discard(page)
            continue
        if kind == EventKind.LOAD:
            if page not in known:
                continue
            misses += page not in there
        known.add(page)
        there[page] = costs[index]
        heapq.heappush(last, (-costs[index], page))
        if len(there) > capacity:
            _evict_last(there, last)
    return misses

"""Choice: what a policy says, made safe for the layer.

The policy gets the access log before it is asked, and sees heat through ``TableEyes``. What it
offers is looked at here, under the lock: a slot whose blob is not in the pool, or is moving, is
passed over. When it raises, offers without end, or does not come to an answer (``policy.leash``),
the default takes its place for good; that is logged and counted, and swap goes on. What it does
not know is offered by the default after it, so that no page is in the pool for ever.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from operator import index
from typing import Final, TypeVar

from swapfs.core._core import cool
from swapfs.policy.base import NOTHING_YET, POOL, Facts, Place, Policy, TierFacts
from swapfs.policy.leash import LINES_MAX, Leash, RunsOn
from swapfs.policy.second_chance import SecondChance
from swapfs.region.access_log import LogReader
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS, PAGE_SIZE, TIERS_MAX
from swapfs.vlayer.entry import BACKING_MASK, HEAT_MASK, IN_POOL, MOVING
from swapfs.vlayer.exports import Export
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.stack import Level

log = logging.getLogger(__name__)

T = TypeVar("T")
_BUILT_IN: Final = "swapfs.policy."
_FAILURES: Final = (Exception, SystemExit, RunsOn)
_LINES_HEARD: Final = 1000
"""Lines of Python that a policy may run for each event that it hears, without the lock."""
_OLD_AGE: Final = 15
_USELESS_SHARE: Final = 4
"""What is offered in vain, in slots of the table: more means that there is no end to it."""


class TableEyes:
    """``policy.Eyes`` over the swap table; the layer's lock is held when they are used.

    :param raw_first: pages kept raw, which gain no room in memory, get no second chance unless
        they were read (zram: huge): so they go down a round before others
    :param export: the clusters of which export are shown, by its index
    """

    def __init__(
        self, layer: VirtualSlotLayer, *, raw_first: bool = False, export: int = 0
    ) -> None:
        self._layer = layer
        self._arena = layer.region.arena
        self._raw_first = raw_first
        self._export = export

    def live_clusters(self) -> int:  # noqa: D102
        return self._layer.table.live_clusters_of(self._export)

    def next_cluster(self) -> int | None:  # noqa: D102
        table = self._layer.table
        cluster = table.oldest_cluster(self._export)
        if cluster is not None:
            table.rotate(cluster)
        return cluster

    def cool(self, slot: int, count: int) -> list[int]:  # noqa: D102
        base = self._layer.table.base(slot)
        if base < 0:
            return []
        index = base + (slot & (CLUSTER_SLOTS - 1))
        return cool(self._arena, index, count, slot, self._raw_first)


def facts_of(layer: VirtualSlotLayer) -> Facts:
    """Return what a policy is told of *layer* at the start."""
    return Facts(layer.table.slots, layer.pool.limit_bytes // PAGE_SIZE)


class Chooser:
    """Asks a policy of class *kind*. ``hear`` and ``victims`` are the demoting thread's."""

    def __init__(
        self,
        layer: VirtualSlotLayer,
        kind: type[Policy] = SecondChance,
        *,
        raw_first: bool = False,
    ) -> None:
        self._layer = layer
        self._exports = layer.exports
        eyes = [
            TableEyes(layer, raw_first=raw_first, export=index)
            for index in range(len(layer.exports))
        ]
        # A hand for each export, over its own clusters: so that of one passes no page of another,
        # which would be cold before its time.
        self._hands = [SecondChance(facts_of(layer), each) for each in eyes]
        self._default = self._hands[0]
        same = kind is SecondChance
        self.policy: Policy = self._default if same else kind(facts_of(layer), eyes[0])
        self._offered_by: Policy = self.policy
        self._leashed = not kind.__module__.startswith(_BUILT_IN)
        self._log: LogReader | None = None
        if self.policy.hears and layer.log is not None:
            self._log = LogReader(layer.region.log_head, layer.region.log_events)
        self._knows_all = False

    @property
    def name(self) -> str:
        """The name of the policy that is in force."""
        return self.policy.name or type(self.policy).__name__

    # ---- safety ----

    def _failed(self, error: BaseException | str) -> None:
        """Put the default in the place of the policy. Reads no source file: a lock may be held."""
        where = ""
        if isinstance(error, BaseException):
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            if trace is not None:
                code = trace.tb_frame.f_code
                where = f" ({code.co_filename}:{trace.tb_lineno}, {code.co_name})"
            error = f"{type(error).__name__}: {error}"
        log.error("policy %s: %s%s; %s goes on", self.name, error, where, self._default.name)
        self._layer.counters.add("policy_failures")
        self.policy = self._default

    def _ask(self, question: Callable[[Policy], T], otherwise: T, lines: int = LINES_MAX) -> T:
        """Return the answer of the policy; the layer's lock is held, or need not be."""
        try:
            return self._run(partial(question, self.policy), lines)
        except _FAILURES as error:  # whatever it is, swap goes on
            self._failed(error)
            return otherwise

    def _run(self, call: Callable[[], T], lines: int = LINES_MAX) -> T:
        """Return what *call* of the policy returns, which is not ours if it is leashed.

        :raises RunsOn: it does not come to an end
        """
        if self._leashed and self.policy is not self._default:
            return Leash(lines).run(call)
        return call()

    # ---- hearing ----

    def hear(self) -> None:
        """Tell the policy what happened. Nobody's lock is held."""
        if self._log is None or self.policy is self._default:
            return
        if not self._knows_all:
            self._tell_all()
        reader, relax = self._log, self._layer.lock.relax
        dropped = reader.dropped
        while count := reader.take():
            hear = partial(_hear, words=reader.words, count=count)
            if not self._ask(hear, False, _LINES_HEARD * count):
                return
            relax()
        if reader.dropped != dropped:
            self._knows_all = False

    def _tell_all(self) -> None:
        """Tell the policy of what is in the pool and it does not know: of another server's time."""
        layer, wanted = self._layer, IN_POOL
        self._knows_all = True
        for cluster in layer.live_clusters(0, layer.table.slots):
            first = cluster << CLUSTER_SHIFT
            with layer.lock:
                words = layer.table.run(first, CLUSTER_SLOTS)
            there = [first + i for i, word in enumerate(words) if word & BACKING_MASK == wanted]
            if not self._ask(partial(_meet, slots=there), False, _LINES_HEARD * CLUSTER_SLOTS):
                return
            layer.lock.relax()

    # ---- choosing ----

    def groups(self) -> list[tuple[Export, ...]]:
        """Return the exports in groups, in the order in which they shall be asked for pages.

        The one that has most in the pool is asked first, and nobody whose share is smaller while
        it has any that may go: so who presses gets an even share, and who needs less keeps it
        (max-min fairness). Of another policy than the default this is not asked: it says itself
        which page is the next, and what groups have in common is where they may go.
        """
        exports = tuple(self._exports)
        if len(exports) == 1:
            return [exports]
        together: dict[object, list[Export]] = {}
        for export in exports:
            key = export.index if self.policy is self._default else export.tiers
            together.setdefault(key, []).append(export)
        with self._layer.lock:
            return sorted(
                (tuple(group) for group in together.values()),
                key=lambda group: -sum(export.bytes_in(POOL) for export in group),
            )

    def victims(self, group: Sequence[Export] | None = None) -> Iterator[tuple[int, int]]:
        """Yield slots that shall go down, and their words; the layer's lock is held.

        The caller may let it go between two of them.

        :param group: one of ``groups``; None: whatever they are in
        """
        among = tuple(self._exports) if group is None else group
        wanted = None if len(among) == len(self._exports) else among
        policy = self.policy
        if policy is not self._default:
            yield from self._from(policy, wanted)
        for export in among:
            yield from self._from(self._hands[export.index], None)

    def _from(self, policy: Policy, wanted: Sequence[Export] | None) -> Iterator[tuple[int, int]]:
        """Yield what *policy* offers, of the exports *wanted* if it does not know of them."""
        resched, at = self._layer.lock.resched, self._exports.at
        self._offered_by, in_vain = policy, _USELESS_SHARE * self._layer.table.slots
        try:
            for slot in self._offers(policy):
                if slot == NOTHING_YET:
                    resched()
                elif (wanted is None or at(slot) in wanted) and (word := self._look(slot, policy)):
                    yield slot, word
                    continue
                in_vain -= 1
                if not in_vain:
                    raise ValueError("it offers what cannot go, without end")
                if wanted is not None:  # there may be many that are others'
                    resched()
        except _FAILURES as error:
            if policy in self._hands:
                raise
            self._failed(error)

    def _offers(self, policy: Policy) -> Iterator[int]:
        """Yield what *policy* offers, on its leash from one to the next."""
        if policy is self._default or not self._leashed:
            yield from policy.candidates(POOL)
            return
        offers = self._run(partial(policy.candidates, POOL))
        following = partial(next, offers, None)
        while (slot := self._run(following)) is not None:
            yield slot

    def _look(self, slot: int, policy: Policy) -> int:
        """Return the word of *slot* if it may go down now, and 0 else.

        :raises ValueError: there is no such slot
        """
        table = self._layer.table
        if not 0 <= slot < table.slots:
            raise ValueError(f"{slot} is no slot")
        word = table.get(slot)
        if word & BACKING_MASK != IN_POOL:
            self._run(partial(policy.left, slot))
            return 0
        if word & MOVING or slot in self._layer.copied or (policy.by_heat and word & HEAT_MASK):
            return 0
        if word & HEAT_MASK:  # so that a read is seen while it moves
            table.mark(slot, HEAT_MASK, on=False)
        return word & ~HEAT_MASK

    def back(self, slot: int) -> None:
        """Hand *slot* back, offered last and not taken."""
        if self._offered_by in self._hands:
            self._offered_by.refused(slot)
        else:
            self._ask(lambda policy: policy.refused(slot), None)

    # ---- where pages go ----

    def brings_back(self, slot: int, *, refaulted: bool, otherwise: bool) -> bool:
        """Whether a page read from below goes back to the pool; the layer's lock is held."""
        answer = self._ask(lambda policy: policy.brings_back(slot, refaulted=refaulted), None)
        return otherwise if answer is None else answer

    @property
    def leaves_below(self) -> bool:
        """Whether the policy brings no page back but as configured."""
        return type(self.policy).brings_back is Policy.brings_back

    def prefetch(self, slot: int, count: int, most: int) -> int:
        """Return how many of the pages after those that are read shall come up with them."""

        def choose(policy: Policy) -> int:
            return max(0, min(index(policy.prefetch(slot, count, most)), most))

        return self._ask(choose, 0)

    def place(self, slot: int, count: int) -> Place:
        """Return where pages go that are written; no lock is held."""
        return self._ask(lambda policy: policy.places(slot, count), Place.POOL)

    def targets(self, levels: Sequence[Level]) -> Sequence[Sequence[Level]]:
        """Return *levels* in groups, in the order in which a batch of victims shall try them."""
        if type(self.policy).targets is Policy.targets:
            return [levels]  # by priority, and equals by turns
        slots_in = self._layer.table.slots_in
        tiers = [
            TierFacts(level.number, level.name, level.priority, slots_in(level.number))
            for level in levels
        ]
        by_number = {level.number: level for level in levels}

        def choose(policy: Policy) -> list[Level]:
            numbers = islice(policy.targets(tiers), TIERS_MAX)
            return [by_number[number] for number in numbers if number in by_number]

        none: list[Level] = []
        wanted = self._ask(choose, none)
        return [*([level] for level in wanted), [level for level in levels if level not in wanted]]


def _hear(policy: Policy, words: array[int], count: int) -> bool:
    policy.hear(words, count)
    return True


def _meet(policy: Policy, slots: Sequence[int]) -> bool:
    for slot in slots:
        if not policy.knows(slot):
            policy.stored(slot, _OLD_AGE)
    return True

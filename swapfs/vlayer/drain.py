"""Emptying a tier into others: by a walk over the table, a load at a time, between other work.

Draining takes all of it, and is done when no word names the tier; sinking takes so many pages, to
make room in a tier for warmer ones. A blob that its tier cannot read stays and is counted; one
that is damaged is lost for certain, so its slot says so and the tier can be given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from swapfs.errors import BlobCorrupt
from swapfs.tiers.base import NOT_READ, Failure, Wanted
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS
from swapfs.vlayer.entry import (
    BACKING_MASK,
    FLAGS,
    MOVING,
    Kind,
    blob_codec,
    encode_below,
    ref_of,
)
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.mover import Mover
from swapfs.vlayer.stack import Level, Phase

_READ_BYTES: Final = 256 * 1024
_ROUNDS_MAX: Final = 4
"""Walks over the table that may gain nothing: slots may move meanwhile, or be in others' hands."""
_COUNTERS: Final = {"drain": "drained_pages", "sink": "sunk_pages"}
_Found = tuple[int, list[int]]
"""A slot, and the words of it and those after it."""


@dataclass(slots=True)
class Emptying:
    """How far it has got, in pages. ``problem`` says why it ended before its end, or "" ."""

    moved: int = 0
    lost: int = 0
    unreadable: int = 0
    done: bool = False
    problem: str = ""


class Drain:
    """Moves blobs of *source* to *targets*, for the thread that owns *mover* and *scratch*.

    :param cause: of ``entry.MOVES``
    :param pages: how many to move; None: all
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        mover: Mover,
        scratch: memoryview,
        source: Level,
        targets: Callable[[], Sequence[Level]],
        *,
        cause: str = "drain",
        pages: int | None = None,
    ) -> None:
        self.progress = Emptying()
        self.source = source
        self._layer = layer
        self._mover = mover
        self._scratch = scratch
        self._targets = targets
        self._cause = cause
        self._pages = pages
        self._pending: _Found | None = None
        self._steps = self._work()

    def step(self) -> bool:
        """Move one load; False: it is at its end, which ``progress`` tells of."""
        return next(self._steps, None) is not None

    def run(self) -> Emptying:
        """Do all of it now."""
        while self.step():
            pass
        return self.progress

    # ---- the work ----

    def _work(self) -> Iterator[bool]:
        """Yield after each load; nothing is under way then."""
        progress, idle = self.progress, 0
        while self._left() and idle < _ROUNDS_MAX and not progress.problem:
            before = progress.moved + progress.lost
            progress.unreadable = 0
            walk = self._walk()
            while (found := self._pending or next(walk, None)) is not None and self._left():
                self._pending = found
                if not self._move(walk):
                    break
                yield True
            idle = 0 if progress.moved + progress.lost > before else idle + 1
        progress.done = not progress.problem and not self._left()
        if not progress.done and not progress.problem:
            progress.problem = f"{self._left()} pages cannot be moved"

    def _left(self) -> int:
        there = self._layer.table.slots_in(self.source.number)
        return there if self._pages is None else min(there, self._pages - self.progress.moved)

    def _walk(self) -> Iterator[_Found]:
        """Yield what is in the source and best read at once, in the order of the slots."""
        layer, tier = self._layer, self.source.tier
        wanted = encode_below(self.source.number, 0, 0) & BACKING_MASK
        for cluster in layer.live_clusters(0, layer.table.slots):
            first = cluster << CLUSTER_SHIFT
            with layer.lock:
                words = layer.table.run(first, CLUSTER_SLOTS)
            index = 0
            while index < CLUSTER_SLOTS:
                end = index
                while end < CLUSTER_SLOTS and words[end] & (BACKING_MASK | MOVING) == wanted:
                    end += 1
                if end > index:
                    refs = [ref_of(word) for word in words[index:end]]
                    end = index + tier.span(refs, _READ_BYTES)
                    yield first + index, words[index:end]
                index = max(end, index + 1)

    def _move(self, walk: Iterator[_Found]) -> bool:
        """Move one load; False: there is no room for it. What did not fit is pending then."""
        mover, progress = self._mover, self.progress
        targets = [level for level in self._targets() if level is not self.source]
        if not mover.begin(targets):
            progress.problem = "no other tier has room"
            return False
        try:
            while (found := self._pending or next(walk, None)) is not None:
                self._pending = found
                if not self._copy(*found):
                    break
                self._pending = None
        except BaseException:
            mover.abort()
            raise
        taken = mover.finish(self._cause)
        if taken is None:
            progress.problem = f"writes to {targets[0].name} fail"
            return False
        progress.moved += len(taken)
        with self._layer.lock:
            self._layer.counters.add(_COUNTERS[self._cause], len(taken))
        return True

    def _copy(self, slot: int, words: list[int]) -> bool:
        """Copy what can be read; False: the load is full."""
        wanted = [
            Wanted(slot + index, ref_of(word), blob_codec(word)) for index, word in enumerate(words)
        ]
        failed: list[Wanted] = []
        while wanted:
            self._load(wanted)
            unread = []
            for each in wanted:
                if each.failure is NOT_READ:
                    unread.append(each)
                elif each.failure is not None:
                    failed.append(each)
                elif not self._take(each, words[each.slot - slot]):
                    return False
            wanted = unread
        return all(self._try_again(each, words[each.slot - slot]) for each in failed)

    def _load(self, wanted: list[Wanted]) -> None:
        traffic = self.source.tier.load(wanted, self._scratch)
        with self._layer.lock:
            self._layer.counters.add("file_read_ops", traffic.reads)
            self._layer.counters.add("file_read_bytes", traffic.read_bytes)

    def _take(self, blob: Wanted, word: int) -> bool:
        """Copy a blob that was read; False: the load is full."""
        if self._is_enough() or not self._mover.fits(len(blob.payload)):
            return False
        self._mover.copy_if_still(blob.slot, word, blob.codec, blob.payload)
        return True

    def _try_again(self, blob: Wanted, word: int) -> bool:
        """Read a blob once more, which is given up only if it is damaged both times."""
        self._load([blob])
        if blob.failure is None:
            return self._take(blob, word)
        self._fail(blob.slot, word, blob.failure)
        return True

    def _is_enough(self) -> bool:
        return (
            self._pages is not None and len(self._mover.items) + self.progress.moved >= self._pages
        )

    def _fail(self, slot: int, word: int, failure: Failure) -> None:
        layer = self._layer
        with layer.lock:
            if (layer.table.get(slot) ^ word) & ~FLAGS:
                return
            if failure.kind is not BlobCorrupt:
                self.progress.unreadable += 1
                return
            layer.free(slot, layer.table.exchange(slot, Kind.LOST, "lose"))
            self.progress.lost += 1
            layer.counters.add("lost_pages")


class Drains:
    """What is moved from tier to tier in the thread that owns *mover* and *scratch*.

    Others may call what begins and ends it; the steps are the thread's.
    """

    def __init__(self, layer: VirtualSlotLayer, mover: Mover, scratch: memoryview) -> None:
        self._layer = layer
        self._mover = mover
        self._scratch = scratch
        self._under_way: dict[int, Drain] = {}  # by number of the tier

    def missing_pages(self, level: Level) -> int:
        """Return how many pages of *level* the other tiers might have no room for; 0: none."""
        table = self._layer.table
        room = sum(
            max(0, other.tier.guaranteed_pages() - table.slots_in(other.number))
            for other in self._layer.stack
            if other is not level and other.phase is Phase.ACTIVE
        )
        return max(0, table.slots_in(level.number) - room)

    def start(self, level: Level) -> None:
        """Have all that is in *level* moved to others, and nothing new go there."""
        level.note = ""
        self._layer.set_phase(level, Phase.DRAINING)

    def stop(self, level: Level) -> None:
        """Use *level* as before; what was moved stays where it is."""
        level.note = ""
        self._layer.set_phase(level, Phase.ACTIVE)

    # ---- the thread ----

    def step(self, go_on: Callable[[], bool]) -> bool:
        """Move one load out of each tier that is being drained; whether there is more to do now."""
        more = False
        for level in self._layer.stack:
            if level.phase is not Phase.DRAINING:
                self._under_way.pop(level.number, None)
            elif self._layer.table.slots_in(level.number) and go_on():
                more = self._step(level) or more
        return more

    def _step(self, level: Level) -> bool:
        drain = self._under_way.get(level.number) or self.drain(level.number)
        self._under_way[level.number] = drain
        if drain.step():
            level.note = ""
            return True
        level.note = drain.progress.problem  # again from the start, at the next look
        del self._under_way[level.number]
        return False

    def drain(self, number: int) -> Drain:
        """Return what moves all that is in tier *number* to others; nothing new goes there."""
        level = self._layer.stack[number]
        self._layer.set_phase(level, Phase.DRAINING)
        return self._make(level, lambda: tuple(self._layer.stack))

    def sink(self, number: int, pages: int) -> Drain:
        """Return what moves *pages* pages of tier *number* to tiers that come after it."""
        level = self._layer.stack[number]
        return self._make(level, lambda: self._layer.stack.below(level), "sink", pages)

    def _make(
        self,
        level: Level,
        targets: Callable[[], Sequence[Level]],
        cause: str = "drain",
        pages: int | None = None,
    ) -> Drain:
        return Drain(
            *(self._layer, self._mover, self._scratch, level, targets), cause=cause, pages=pages
        )

"""Emptying a tier into others, a load at a time, between other work.

Draining takes all of it, and is done when no word names the tier. First as it lies there, in long
reads, where the tier has an order (``Tier.sweep``): neighbours on a disk are no neighbours in the
table, and a read for each cost 10 ms a page. Then by a walk over the table, which finds the rest
and tells of what cannot be read. Sinking walks only, and takes what is cold, to make room in a tier
for warmer pages: what was read since the last walk came by is cooled and stays (second chance, as
in ``clock``). A blob that its tier cannot read stays and is counted; one that is damaged is lost
for certain, so its slot says so and the tier can be given up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from swapfs.errors import BlobCorrupt
from swapfs.tiers.base import NOT_READ, Failure, Room, Traffic, Wanted
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS
from swapfs.vlayer.entry import (
    BACKING_MASK,
    FLAGS,
    HEAT_MASK,
    MOVING,
    blob_codec,
    encode_below,
    ref_of,
)
from swapfs.vlayer.exports import Export
from swapfs.vlayer.layer import VirtualSlotLayer, lose
from swapfs.vlayer.mover import Mover
from swapfs.vlayer.relocate import Relocation, may_relocate
from swapfs.vlayer.stack import Level

_READ_BYTES: Final = 256 * 1024
_ROUNDS_MAX: Final = 4
"""Walks over the table that may gain nothing: slots may move meanwhile, or be in others' hands."""
_NO_ROOM: Final = "no other tier has room"
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
    :param first: the cluster to begin at
    :param cold: leave what is warm, and cool it
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
        first: int = 0,
        cold: bool = False,
    ) -> None:
        self.progress = Emptying()
        self.source = source
        self.cluster = first
        self._layer = layer
        self._mover = mover
        self._scratch = scratch
        self._targets = targets
        self.cause = cause
        self._pages = pages
        self._cold = cold
        self._pending: _Found | None = None
        self._place: int | None = 0
        self._relocation = Relocation(layer, mover.writer, source, scratch, self._count)
        self._shut_out: set[int] = set()  # exports that find no room, by index
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
        if self._pages is None and not self._cold and not self._layer.exports.masked:
            yield from self._sweep()  # which does not ask whose page it is
        progress, idle = self.progress, 0
        while self._left() and idle < _ROUNDS_MAX and not progress.problem:
            before = progress.moved + progress.lost
            progress.unreadable = 0
            self._shut_out.clear()
            walk = self._walk()
            while (found := self._pending or next(walk, None)) is not None and self._left():
                self._pending = found
                export = self._layer.exports.at(found[0])
                to = self._mover.reserve(_others(self._targets(), self.source, export))
                if to is None and self._pass_over(export):
                    continue
                if not self._move(to, lambda: self._copy_from(walk)):  # noqa: B023 - called at once
                    break
                yield True
            idle = 0 if progress.moved + progress.lost > before else idle + 1
            if idle and self._shut_out:
                progress.problem = _NO_ROOM
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
        asked = BACKING_MASK | MOVING | (HEAT_MASK if self._cold else 0)
        for cluster in self._clusters():
            self.cluster = cluster
            first = cluster << CLUSTER_SHIFT
            if layer.exports.at(first).index in self._shut_out:
                continue
            with layer.lock:
                words = layer.table.run(first, CLUSTER_SLOTS)
                if self._cold:
                    _cool(layer, first, words, wanted)
            index = 0
            while index < CLUSTER_SLOTS:
                end = index
                while end < CLUSTER_SLOTS and words[end] & asked == wanted:
                    end += 1
                if end > index:
                    refs = [ref_of(word) for word in words[index:end]]
                    end = index + tier.span(refs, _READ_BYTES)
                    yield first + index, words[index:end]
                index = max(end, index + 1)

    def _clusters(self) -> Iterator[int]:
        """Yield the clusters in use, from where this began on and then those before."""
        slots, start = self._layer.table.slots, self.cluster << CLUSTER_SHIFT
        yield from self._layer.live_clusters(start, slots)
        if start:
            yield from self._layer.live_clusters(0, start)

    def _pass_over(self, export: Export) -> bool:
        """Go on with what other exports have, as *export* finds no room; False: none is left."""
        self._shut_out.add(export.index)
        self._pending = None
        others = (other for other in self._layer.exports if other.index not in self._shut_out)
        return any(other.bytes_in(self.source.number) for other in others)

    def _move(self, to: tuple[Level, Room] | None, copy: Callable[[], None]) -> bool:
        """Move one load, which is what *copy* copies; False: there is no room for it."""
        if to is None:
            self.progress.problem = _NO_ROOM
            return False
        mover = self._mover
        mover.begin_in(to)
        with _in_use(self._layer, self.source):
            try:
                copy()
            except BaseException:
                mover.abort()
                raise
        taken = mover.finish(self.cause)
        return self._note(to[0], None if taken is None else len(taken))

    def _note(self, target: Level, taken: int | None) -> bool:
        """Note how many slots took a load, None if it could not be stored; whether it could."""
        if taken is None:
            self.progress.problem = f"writes to {target.name} fail"
            return False
        self.progress.moved += taken
        with self._layer.lock:
            self._layer.counters.add(_COUNTERS[self.cause], taken)
        return True

    # ---- as it lies ----

    def _sweep(self) -> Iterator[bool]:
        """Move what the tier can read in the order in which it lies; yield as ``_work``."""
        while self._place is not None and self._left() and self._move_as_it_lies(self._place):
            yield True

    def _move_as_it_lies(self, place: int) -> bool:
        """Move one load; False: there is no room for it, or it could not be stored."""
        to = self._mover.reserve(_others(self._targets(), self.source))
        if to is None or not may_relocate(self.source.tier, to[0].tier):
            return self._move(to, self._copy_as_it_lies)
        with _in_use(self._layer, self.source):
            self._place, taken = self._relocation.load(to, place)
        return self._note(to[0], taken)

    def _copy_as_it_lies(self) -> None:
        """Copy on from the place that this has come to, until the load is half full.

        The next stretch might not fit any more then, and would be read twice.
        """
        tier, number = self.source.tier, self.source.number
        while self._place is not None:
            swept = tier.sweep(
                self._place, functools.partial(_is_named, self._layer, number), self._scratch
            )
            if swept is None:
                self._place = None
                return
            self._count(swept.traffic)
            for blob in swept.blobs:
                if not self._take(blob, encode_below(number, blob.codec, blob.ref)):
                    self._place = tier.place_of(blob.ref)
                    return
            self._place = swept.after
            if self._mover.is_half_full():
                return

    # ---- as the table has it ----

    def _copy_from(self, walk: Iterator[_Found]) -> None:
        """Copy on from where the walk is; what does not fit, or may not go, is pending then."""
        target, exports = self._mover.target, self._layer.exports
        while (found := self._pending or next(walk, None)) is not None:
            self._pending = found
            if not exports.at(found[0]).may_use(target.number) or not self._copy(*found):
                break
            self._pending = None

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
        self._count(self.source.tier.load(wanted, self._scratch))

    def _count(self, traffic: Traffic) -> None:
        with self._layer.lock:
            self._layer.counters.add("file_read_ops", traffic.reads)
            self._layer.counters.add("file_read_bytes", traffic.read_bytes)
            self.source.figures.add("reads", traffic.reads)
            self.source.figures.add("read_bytes", traffic.read_bytes)

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
        _fail(self._layer, self.progress, blob.slot, word, blob.failure)
        return True

    def _is_enough(self) -> bool:
        return (
            self._pages is not None and len(self._mover.items) + self.progress.moved >= self._pages
        )


@contextmanager
def _in_use(layer: VirtualSlotLayer, level: Level) -> Iterator[None]:
    """Keep *level* from being let go for the time of the block."""
    with layer.lock:
        level.users += 1
    try:
        yield
    finally:
        with layer.lock:
            level.users -= 1


def _is_named(layer: VirtualSlotLayer, number: int, slot: int, ref: int, codec: int) -> bool:
    """Whether *slot* is at *ref* in tier *number*, and nobody is moving it."""
    if slot >= layer.table.slots:
        return False
    with layer.lock:
        current = layer.table.get(slot)
    return not (current ^ encode_below(number, codec, ref)) & ~HEAT_MASK


def _cool(layer: VirtualSlotLayer, first: int, words: list[int], wanted: int) -> None:
    """Let what is warm in *words*, from slot *first* on, be cold when the walk comes again."""
    for index, word in enumerate(words):
        if word & HEAT_MASK and word & (BACKING_MASK | MOVING) == wanted:
            layer.table.mark(first + index, HEAT_MASK, on=False)


def _others(levels: Sequence[Level], source: Level, export: Export | None = None) -> list[Level]:
    """Return those of *levels* where pages may go, those of *export* if it matters."""
    return [
        level
        for level in levels
        if level is not source and (export is None or export.may_use(level.number))
    ]


def _fail(
    layer: VirtualSlotLayer, progress: Emptying, slot: int, word: int, failure: Failure
) -> None:
    """Note that the blob of *slot* cannot be read; a damaged one is lost."""
    with layer.lock:
        if (layer.table.get(slot) ^ word) & ~FLAGS:
            return
        if failure.kind is not BlobCorrupt:
            progress.unreadable += 1
            return
        lose(layer, slot)
        progress.lost += 1

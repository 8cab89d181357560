"""The mover: blobs from where they are to another place, while anybody reads and writes them.

Every move is one verb. Copy the blob and mark its slot as moving; store the copies off the lock;
publish those whose words are still the ones that were copied, and drop the others (I3). What
differs is where the blobs come from: the clock hand (demotion), sparse segments (cleaning), or a
walk over the table (draining). See ``entry.MOVES``.

A rewrite clears MOVING, so a word that still has it has not changed, even where the new blob came
to lie in the same place and looks the same. That holds as long as nobody else marks the slot: so
one mover at a time has it, and no load has it twice (``VirtualSlotLayer.copied``). The other mover
is ``recompress``, in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from swapfs.errors import TierFull
from swapfs.tiers.base import Room, Staged, Staging
from swapfs.vlayer.blob_writer import BATCH_PAGES, BlobWriter
from swapfs.vlayer.entry import HEAT_MASK, MOVING, encode_below
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.recode_staged import take_out_damaged
from swapfs.vlayer.stack import Level


class Mover:
    """Moves one load after the other, for the thread that owns *staging*."""

    def __init__(self, layer: VirtualSlotLayer, writer: BlobWriter, staging: Staging) -> None:
        self.writer = writer
        self._layer = layer
        self._staging = staging
        self._to: tuple[Level, Room] | None = None
        self._slots: list[int] = []

    @property
    def items(self) -> list[Staged]:
        """What is copied so far."""
        return self._staging.items

    @property
    def target(self) -> Level:
        """Where it goes."""
        assert self._to is not None
        return self._to[0]

    def begin(self, levels: Iterable[Level], pages: int = BATCH_PAGES) -> bool:
        """Begin a load, to the first of *levels* that may take one and has room; False: none."""
        to = self.reserve(levels, pages)
        if to is not None:
            self.begin_in(to)
        return to is not None

    def reserve(
        self, levels: Iterable[Level], pages: int = BATCH_PAGES
    ) -> tuple[Level, Room] | None:
        """Return room for a load in the first of *levels* that may take one; None: none has."""
        try:
            return self.writer.reserve_first(pages, levels)
        except TierFull:
            return None

    def begin_in(self, to: tuple[Level, Room]) -> None:
        """Begin a load that goes there."""
        self._to = to
        self._staging.reset(to[1])

    def begin_within(self, level: Level) -> bool:
        """Begin a load from *level* to itself, for cleaning."""
        try:
            self.begin_in((level, self.writer.reserve(level, BATCH_PAGES, moving=True)))
        except TierFull:
            return False
        return True

    def fits(self, length: int) -> bool:
        """Whether a blob of *length* bytes still fits."""
        return self._staging.fits(length)

    def is_half_full(self) -> bool:
        """Whether as much again as is copied would not fit."""
        return self._staging.is_half_full()

    def copy(self, slot: int, word: int, codec: int, payload: bytes | memoryview) -> None:
        """Copy the blob of *slot*, whose word is *word* now; the caller holds the layer's lock.

        Unless a copy of what the slot held before is still in a mover's hands: then it stays.
        """
        if slot in self._layer.copied:
            return
        self._layer.copied.add(slot)
        self._slots.append(slot)
        self.writer.add(self._staging, slot, payload, codec, expected=word)
        self._layer.table.mark(slot, MOVING, on=True)

    def copy_if_still(self, slot: int, word: int, codec: int, payload: bytes | memoryview) -> None:
        """Copy a blob that was read without the lock; of one that has changed nothing comes.

        Its heat may have.
        """
        with self._layer.lock:
            current = self._layer.table.get(slot)
            if not (current ^ word) & ~HEAT_MASK:
                self.copy(slot, current, codec, payload)

    def finish(self, cause: str) -> list[Staged] | None:
        """Store and publish; return what its slots took, None if storing failed.

        Nothing is under way any more, whatever happens.
        """
        assert self._to is not None
        (level, room), self._to = self._to, None
        try:
            return self._finish(level, room, cause)
        finally:
            self._let_go()

    def _finish(self, level: Level, room: Room, cause: str) -> list[Staged] | None:
        writer, staging = self.writer, self._staging
        if cause == "demote":
            try:
                writer.lose(take_out_damaged(staging))
                writer.recompress(staging)
            except BaseException:  # a bug, or no memory
                writer.drop(level, room, staging)
                raise
        if not staging.items:
            writer.cancel(level, room)
            return []
        refs = writer.store_copies(level, room, staging)
        if refs is None:
            return None
        return writer.commit(level, room, staging, refs, cause)

    def _let_go(self) -> None:
        """Let other movers take the slots of this load."""
        with self._layer.lock:
            self._layer.copied.difference_update(self._slots)
        self._slots.clear()

    def abort(self) -> None:
        """Forget the load."""
        assert self._to is not None
        (level, room), self._to = self._to, None
        try:
            self.writer.drop(level, room, self._staging)
        finally:
            self._let_go()


class MoveWithin:
    """``base.Move`` for one step of cleaning in *level*."""

    def __init__(self, layer: VirtualSlotLayer, mover: Mover, level: Level) -> None:
        self._layer = layer
        self._mover = mover
        self._level = level

    def begin(self) -> bool:  # noqa: D102
        return self._mover.begin_within(self._level)

    def _word(self, slot: int, ref: int, codec: int) -> int:
        return encode_below(self._level.number, codec, ref)

    def wants(self, slot: int, ref: int, codec: int) -> bool:  # noqa: D102
        table = self._layer.table
        if slot >= table.slots:
            return False
        with self._layer.lock:
            return table.get(slot) & ~HEAT_MASK == self._word(slot, ref, codec)

    def add(self, slot: int, ref: int, codec: int, payload: bytes | memoryview) -> bool:  # noqa: D102
        if not self._mover.fits(len(payload)):
            return False
        self._mover.copy_if_still(slot, self._word(slot, ref, codec), codec, payload)
        return True

    def finish(self) -> int | None:  # noqa: D102
        taken = self._mover.finish("clean")
        if taken is None:
            return None
        with self._layer.lock:
            self._layer.counters.add("cleaned_pages", len(taken))
        return len(taken)

    def abort(self) -> None:  # noqa: D102
        self._mover.abort()

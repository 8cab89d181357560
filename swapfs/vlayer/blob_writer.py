"""Writing blobs down and publishing where they are.

What every way down has in common: demotion, cleaning, draining and direct writes. No I/O is done
under the layer's lock, and the lock is let go when it is contended so that requests come in
between (I5). Room is under way from ``reserve`` until it is settled, which ``drop``, ``commit``
and a ``store_copies`` that fails do too: what it holds is not lost meanwhile, only not to be seen.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from array import array
from collections.abc import Callable, Iterable
from typing import Final

from swapfs.errors import TierFull, TierIOError, TierNoSpace
from swapfs.tiers.base import Room, Staged, Staging, Stored
from swapfs.tiers.segments import SEGMENT_BYTES
from swapfs.units import PAGE_SIZE, SECTOR_SIZE
from swapfs.vlayer.entry import FLAGS, HEAT_MASK, MOVING, encode_below, is_below, ref_of, tier_of
from swapfs.vlayer.health import BACKOFF_MAX_S, NO_SPACE_PAUSE_MAX_S
from swapfs.vlayer.layer import VirtualSlotLayer, lose
from swapfs.vlayer.progress import WAIT_S, Progress
from swapfs.vlayer.recode_staged import StagedRecoder
from swapfs.vlayer.stack import Level, Phase

log = logging.getLogger(__name__)

BATCH_BYTES: Final = SEGMENT_BYTES
BATCH_PAGES: Final = BATCH_BYTES // PAGE_SIZE
_MOVES_WHAT_IS_WARM: Final = frozenset({"clean", "drain"})
"""Causes of moves that must come to an end, whatever is read meanwhile."""
_SERVER_SHIFT: Final = 40  # of the sequence numbers that one server may use


class BlobWriter:
    """Writes to the tiers of *layer*; any thread, each with its own staging."""

    def __init__(
        self, layer: VirtualSlotLayer, clock_s: Callable[[], float], wait_s: float = WAIT_S
    ) -> None:
        self.progress = Progress(clock_s, wait_s)
        self.newest = array("Q", [0])  # one word: the sequence number of the newest blob
        self.stack = layer.stack
        self.recoder: StagedRecoder | None = None
        self._layer = layer
        self._clock_s = clock_s
        # No number is used twice, not even by the server that comes after this one: they are
        # nonces (seal.py), and the clock may be set back.
        starts = layer.counters.get("server_starts")
        self._sequence = itertools.count((starts << _SERVER_SHIFT) + 1)

    def may_write(self, levels: Iterable[Level], *, urgent: bool = False) -> bool:
        """Whether a write to any of *levels* may be tried now."""
        now_s = self._clock_s()
        return any(level.may_take(now_s, urgent=urgent) for level in levels)

    # ---- room ----

    def reserve(self, level: Level, pages: int, *, moving: bool = False) -> Room:
        """Take room in *level* for *pages* pages or fewer; it is under way then.

        :raises TierFull: there is none now
        """
        with self._layer.lock:
            if level.phase is not Phase.ACTIVE and not moving:
                raise TierFull("it is being drained")
            level.users += 1
        self.progress.begin()
        try:
            room = level.tier.reserve(pages, moving=moving)
        except BaseException as error:
            self._let_go(level)
            self.progress.cancel()
            level.health.full |= isinstance(error, TierFull) and not moving
            raise
        level.health.full &= moving
        return room

    def reserve_first(
        self, pages: int, levels: Iterable[Level] | None = None, *, urgent: bool = False
    ) -> tuple[Level, Room]:
        """Take room in the first of *levels* (else, of all) that may take blobs and has some.

        :param urgent: no other room was found: if need be where the budget is spent
        :raises TierFull: none has
        """
        now_s = self._clock_s()
        in_turn = self.stack.in_turn(levels)
        for level in in_turn:
            if level.may_take(now_s):
                level.spent = False
                with contextlib.suppress(TierFull):
                    return self._take(level, pages)
            elif level.phase is Phase.ACTIVE:
                _say_spent(level, now_s)
        for level in in_turn if urgent else ():
            if level.may_take(now_s, urgent=True) and not level.budget.allows(now_s):
                with contextlib.suppress(TierFull):
                    return self._take(level, pages)
        raise TierFull("no tier has room")

    def _take(self, level: Level, pages: int) -> tuple[Level, Room]:
        room = self.reserve(level, pages)
        self.stack.took(level)
        return level, room

    def settle(self, level: Level, room: Room) -> None:
        """End what *room* was taken for: each blob in it is published or given back."""
        level.tier.settle(room)
        self._let_go(level)
        self.progress.end()

    def _let_go(self, level: Level) -> None:
        with self._layer.lock:
            level.users -= 1

    def cancel(self, level: Level, room: Room) -> None:
        """Give room back in which nothing was stored."""
        level.tier.cancel(room)
        self.settle(level, room)

    # ---- storing ----

    def add(
        self,
        staging: Staging,
        slot: int,
        payload: bytes | memoryview,
        codec: int,
        *,
        expected: int = 0,
    ) -> None:
        """Append a blob with the next sequence number to *staging*."""
        sequence = next(self._sequence)  # one step, so no two threads get the same
        self.newest[0] = sequence
        staging.add(slot, payload, codec, sequence, expected=expected)

    def recompress(self, staging: Staging) -> int:
        """Put what is in *staging* into zstd, if that is wanted.

        Returns how many blobs are damaged; they are taken out, and of copies the slots are lost.
        """
        if self.recoder is None:
            return 0
        changed, damaged = self.recoder.recode(staging)
        with self._layer.lock:
            self._layer.counters.add("recompressed_down_pages", changed)
        self.lose(damaged)
        return len(damaged)

    def lose(self, damaged: list[Staged]) -> None:
        """Let the slots of copies from the pool that are damaged be lost."""
        with self._layer.lock:
            for item in damaged:
                if self._layer.table.get(item.slot) == item.expected | MOVING:
                    lose(self._layer, item.slot)
        self.unmark(damaged)

    def store(self, level: Level, room: Room, staging: Staging) -> list[int] | None:
        """Store what is in *staging*; None when the tier failed, which is then noted."""
        stored = self.write(level, lambda: level.tier.store(room, staging))
        return None if stored is None else stored.refs

    def write(self, level: Level, store: Callable[[], Stored]) -> Stored | None:
        """Have *store* write to *level*; None when that failed, which is then noted."""
        writer = threading.get_ident()
        began_s = self._clock_s()
        level.health.begin(writer, began_s)
        bad_bytes = level.tier.stats().bad_bytes
        try:
            stored = store()
        except BaseException as error:
            with self._layer.lock:
                bad = level.tier.stats().bad_bytes - bad_bytes
                self._layer.counters.add("bad_sectors", max(0, bad) // SECTOR_SIZE)
                level.figures.add("write_errors")
            if not isinstance(error, TierIOError):  # a bug, or no memory
                raise
            _note_failure(level, error, self._clock_s())
            return None
        finally:
            level.health.end(writer)
        level.health.succeeded()
        with self._layer.lock:
            self._layer.counters.add("file_write_ops")
            self._layer.counters.add("file_written_bytes", stored.written_bytes)
            level.figures.add("writes")
            level.figures.add("written_bytes", stored.written_bytes)
            now_s = self._clock_s()
            level.budget.charge(stored.written_bytes, now_s)
            level.writing.note(now_s - began_s)
        return stored

    def store_copies(self, level: Level, room: Room, staging: Staging) -> list[int] | None:
        """``store`` copies; if it fails, settle the room, and their slots go on as before."""
        refs = None
        try:
            refs = self.store(level, room, staging)
        finally:
            if refs is None:
                self.unmark(staging.items)
                self.settle(level, room)
        return refs

    def drop(self, level: Level, room: Room, staging: Staging) -> None:
        """Give up copies of which nothing was stored, and settle their room."""
        level.tier.cancel(room)
        self.unmark(staging.items)
        self.settle(level, room)

    # ---- publishing ----

    def publish(self, level: Level, item: Staged, ref: int, cause: str, *, heat: int = 0) -> None:
        """Let *item*'s slot name its stored blob; the caller holds the layer's lock.

        :raises TierFull: no room for a page of the swap table; nothing has changed
        """
        layer = self._layer
        word = encode_below(level.number, item.codec, ref) | heat
        old = layer.table.exchange(item.slot, word, cause, item.length)
        level.payload_bytes += level.tier.payload_bytes(ref)
        layer.free(item.slot, old)

    def commit(
        self, level: Level, room: Room, staging: Staging, refs: list[int], cause: str
    ) -> list[Staged]:
        """Publish stored copies and settle their room; return those that their slots took."""
        taken: list[Staged] = []
        lock, items = self._layer.lock, staging.items
        done = 0
        try:
            with lock:
                try:
                    for item, ref in zip(items, refs, strict=True):
                        lock.resched()
                        if self._commit_one(level, item, ref, cause):
                            taken.append(item)
                        done += 1
                except BaseException:  # a bug, or no memory
                    self.give_back(level, items[done:], refs[done:])
                    raise
        except BaseException:
            self.unmark(items[done:])
            raise
        finally:
            self.settle(level, room)
        return taken

    def give_back(self, level: Level, items: list[Staged], refs: list[int]) -> None:
        """Release stored blobs that will not be published; the first may have been.

        The lock is held, and was since that one was tried: else its slot may have let go of it.
        """
        for item, ref in zip(items, refs, strict=True):
            word = self._layer.table.get(item.slot)
            if not is_below(word) or (tier_of(word), ref_of(word)) != (level.number, ref):
                level.tier.release(item.slot, ref)

    def _commit_one(self, level: Level, item: Staged, ref: int, cause: str) -> bool:
        table = self._layer.table
        current = table.get(item.slot)
        heat = HEAT_MASK if cause in _MOVES_WHAT_IS_WARM else 0
        if (current ^ (item.expected | MOVING)) & ~heat:
            # Rewritten or discarded; or read, which makes it warm: then it stays where it is.
            if current & ~HEAT_MASK == item.expected & ~HEAT_MASK | MOVING:
                table.mark(item.slot, MOVING, on=False)
            level.tier.release(item.slot, ref)
            return False
        self.publish(level, item, ref, cause, heat=current & heat)
        level.figures.add("moved_in_pages")
        if is_below(current) and (source := self.stack.get(tier_of(current))) is not None:
            source.figures.add("moved_out_pages")
        return True

    def unmark(self, items: list[Staged]) -> None:
        """Let the slots of copies that were not stored go on as before."""
        lock, table = self._layer.lock, self._layer.table
        with lock:
            for item in items:
                lock.resched()
                current = table.get(item.slot)
                if current & MOVING and not (current ^ item.expected) & ~FLAGS:
                    table.mark(item.slot, MOVING, on=False)


def _note_failure(level: Level, error: TierIOError, now_s: float) -> None:
    """Have nothing go to *level* for a while."""
    log.error("tier %s: %s", level.name, error)
    full = isinstance(error, TierNoSpace)
    level.health.failed(str(error), now_s, NO_SPACE_PAUSE_MAX_S if full else BACKOFF_MAX_S)


def _say_spent(level: Level, now_s: float) -> None:
    """Say once that a budget is spent."""
    if not level.spent and not level.budget.allows(now_s):
        level.spent = True
        log.warning("tier %s: %s", level.name, level.budget.problem(now_s))

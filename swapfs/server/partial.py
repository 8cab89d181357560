"""Writes of parts of pages; mkswap, blkid and file systems on 512-byte sectors make them.

The rest of the page must stay, whatever becomes of the slot meanwhile. In memory, reading,
changing and storing the page is one step under the layer's lock. A page in the file tier, or one
that must go there because the pool is full, is changed away from the lock; what comes of it is
published only if the slot still holds what it was made from, else it is made again. So a full
write, a discard or another part that is acknowledged meanwhile is never undone, and no part
waits for another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from errno import EAGAIN, EIO, ENOSPC
from typing import Final, Protocol

from swapfs.server.workers import Buffers
from swapfs.units import PAGE_SHIFT, PAGE_SIZE
from swapfs.vlayer.entry import BACKING_MASK, FLAGS, IN_POOL, is_below
from swapfs.vlayer.fetch import Fetcher
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.write_around import WriteAround

_OFFSET_MASK: Final = PAGE_SIZE - 1


class MakesRoom(Protocol):
    """``Compactor.make_room``."""

    def __call__(self, pages: int, *, look: bool) -> bool:
        """Move blobs together for *pages* pages; False if that gains nothing."""


class _Answer:
    """Waits for a direct write that a worker submitted on behalf of its request."""

    def __init__(self, on_disk: Callable[[], None]) -> None:
        self.used_file = on_disk
        self._done = threading.Event()
        self._result = -EIO

    def reply(self, result: int, /) -> None:
        self._result = result
        self._done.set()

    def wait(self) -> int:
        self._done.wait()
        return self._result


class PartialWrites:
    """Changes parts of the pages of *layer*.

    :param make_room: compacts the pool, in the thread that calls it
    :param fetcher: reads the file tier; None when there is none
    :param around: writes past a full pool; None when there is no file tier
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        make_room: MakesRoom,
        fetcher: Fetcher | None = None,
        around: WriteAround | None = None,
    ) -> None:
        self._layer = layer
        self._make_room = make_room
        self._fetcher = fetcher
        self._around = around
        self._page = bytearray(PAGE_SIZE)

    def write_now(self, offset: int, data: memoryview) -> bool:
        """Write *data* if that takes memory only; for the session thread.

        False: a page is in the file tier, or the pool is full; a worker must do all of it.

        :raises SlotDamaged: a page is damaged, so its other bytes are lost
        :raises OverQuota: a page would take its export above its quota
        """
        return all(
            self._layer.patch(slot, start, piece, self._page)
            for slot, start, piece in _pieces(offset, data)
        )

    def write(
        self, offset: int, data: memoryview, buffers: Buffers, on_disk: Callable[[], None]
    ) -> int:
        """Write *data*, waiting for what it takes; 0 or a negative errno value.

        :param on_disk: called before each wait for the file tier
        :raises TierError: a page cannot be read
        :raises SlotDamaged: likewise, in memory
        :raises OverQuota: a page would take its export above its quota
        """
        for slot, start, piece in _pieces(offset, data):
            result = self._write_piece(slot, start, piece, buffers, on_disk)
            if result < 0:
                return result
        return 0

    def _write_piece(
        self,
        slot: int,
        start: int,
        piece: memoryview,
        buffers: Buffers,
        on_disk: Callable[[], None],
    ) -> int:
        around, look = self._around, True
        while True:
            mark = around.mark() if around is not None else None
            if self._layer.patch(slot, start, piece, buffers.page):
                return 0
            result = self._write_outside(slot, start, piece, buffers, on_disk)
            if result == -EAGAIN:  # who was faster has been answered, so somebody gets on
                continue
            if result is not None:
                return result
            if self._make_room(1, look=look):
                # Room that was seen and then not used is none if a page of the table needs it.
                look = self._layer.has_table(slot)
                continue
            if around is None or mark is None or not around.wait_for_room(mark, slot):
                return -ENOSPC
            look = True

    def _write_outside(
        self,
        slot: int,
        start: int,
        piece: memoryview,
        buffers: Buffers,
        on_disk: Callable[[], None],
    ) -> int | None:
        """Change the page away from the lock and store it, in the file tier if need be.

        Returns 0, -EAGAIN if the slot has changed meanwhile, or another negative errno value;
        None: there is no room.
        """
        if self._fetcher is None or self._around is None:
            return None
        layer, page = self._layer, buffers.pages[:PAGE_SIZE]
        word, blob = layer.look(slot, page, memoryview(buffers.page))
        if is_below(word):
            self._fetcher.load(slot, 1, page, buffers.scratch, on_disk)
        page[start : start + len(piece)] = piece
        if is_below(word):
            done = layer.replace_file_page(slot, word, page)
            if done is not False:
                return 0 if done else -EAGAIN
        answer = _Answer(on_disk)
        if not self._around.submit_if(
            answer, slot, page, lambda: _still_holds(layer, slot, word, blob)
        ):
            return None
        return min(answer.wait(), 0)


def _pieces(offset: int, data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield (slot, first byte in its page, bytes) of each page that *data* touches."""
    done = 0
    while done < len(data):
        slot, start = (offset + done) >> PAGE_SHIFT, (offset + done) & _OFFSET_MASK
        piece = data[done : done + PAGE_SIZE - start]
        yield slot, start, piece
        done += len(piece)


def _still_holds(layer: VirtualSlotLayer, slot: int, word: int, blob: memoryview) -> bool:
    """Whether *slot* holds the page that ``look`` found; the caller holds the layer's lock.

    A word of the pool alone does not tell: after two full writes the same place may hold
    other bytes. One of a disk does: its 13 check bits are those of a blob that is written once.
    """
    if (layer.table.get(slot) ^ word) & ~FLAGS:
        return False
    return word & BACKING_MASK != IN_POOL or layer.blob(word) == blob

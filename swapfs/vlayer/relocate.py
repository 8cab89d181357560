"""Blobs of one disk moved to another as they lie, sealed: for draining, in C (``core/relocate.c``).

A seal covers slot and sequence number and not the place, so what one tier of sectors has is good in
another that seals alike; it is opened only to see that it is whole, as a read that went wrong would
else be written down for good. The order is that of ``mover``: copy with MOVING set, store off the
lock, publish if the word is still the one that was copied, free the old place (I3). Another mover
has no slot of a tier that is drained: what it takes is in the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swapfs.core._core import carry, runs
from swapfs.errors import TierIOError
from swapfs.tiers.base import Room, Tier, Traffic
from swapfs.tiers.blob import Batch
from swapfs.tiers.sector_tier import SectorRoom, SectorTier
from swapfs.tiers.segments import SEGMENT_SECTORS
from swapfs.units import SECTOR_SIZE, PSector
from swapfs.vlayer.blob_writer import BlobWriter
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.stack import Level

RECORD_BYTES: Final = 32
_RECORDS: Final = 2 * SEGMENT_SECTORS
"""A blob has a sector at least, and what is damaged takes none of the room."""
_STEP: Final = 64
"""Blobs that are claimed or published before others may have the lock."""


def may_relocate(source: Tier, target: Tier) -> bool:
    """Whether blobs of *source* may be good in *target* as they are; whether each is, is seen."""
    if not isinstance(source, SectorTier) or not isinstance(target, SectorTier):
        return False
    return type(source.sectors.seal) is type(target.sectors.seal)


class Relocation:
    """Moves one load after the other out of *source*, for the thread that owns *scratch*.

    :param count: told of each read
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        writer: BlobWriter,
        source: Level,
        scratch: memoryview,
        count: Callable[[Traffic], None],
    ) -> None:
        self._layer = layer
        self._writer = writer
        self._source = source
        self._scratch = scratch
        self._tell = count
        self._found = bytearray(RECORD_BYTES * _RECORDS)
        self._count = 0

    def load(self, to: tuple[Level, Room], place: int) -> tuple[int | None, int | None]:
        """Move what lies from *place* on, until the room, which this ends, is half used.

        The tiers are such that ``may_relocate``. Returns where to go on, None at the end; and how
        many slots took theirs, None if storing failed.
        """
        (level, room), tier, self._count = to, to[0].tier, 0
        assert isinstance(tier, SectorTier)
        assert isinstance(room, SectorRoom)
        batch, ours = tier.take_batch(room), True
        try:
            after = self._gather(level, tier, room, batch, place)
            if not batch.sectors:
                return after, 0
            ours = False
            if self._writer.write(level, lambda: tier.store_sealed(room, batch)) is None:
                return after, None
            return after, self._publish(level, tier)
        finally:
            if ours:
                tier.cancel(room)
            self._let_go()
            tier.give_batch(batch)
            self._writer.settle(level, room)

    def _gather(
        self, level: Level, tier: SectorTier, room: SectorRoom, batch: Batch, place: int
    ) -> int | None:
        """Claim and copy; return where to go on, None at the end."""
        source = self._source.tier
        assert isinstance(source, SectorTier)
        while 2 * batch.sectors < room.size:
            found = source.sectors.next_taken(place)
            if found is None:
                return None
            place = found.sector + found.sectors
            try:
                view = source.sectors.read(*found, self._scratch)
            except TierIOError:  # reads of fewer blobs tell whose sector is bad
                continue
            finally:
                self._tell(Traffic(1, found.sectors * SECTOR_SIZE))
            at, most = 0, _STEP
            while at < found.sectors:
                begun, most = self._count, min(_STEP, _RECORDS - self._count)
                with self._layer.lock:
                    self._count, at = self._layer.writer.claim(
                        *(view, at, found.sector, self._source.number, self._found),
                        *(self._count, room.size - batch.sectors, most),
                    )
                if self._count == begun:
                    break
                batch.sectors = carry(
                    *(tier.sectors.seal.sealer, view, self._found, begun, self._count),
                    *(batch.view, batch.sectors, level.number, room.extent.sector),
                )
            if at < found.sectors:
                return found.sector + at  # there is no room for more
        return place

    def _publish(self, level: Level, tier: SectorTier) -> int:
        layer, source, taken = self._layer, self._source, 0
        assert isinstance(source.tier, SectorTier)
        for first in range(0, self._count, _STEP):
            end = min(first + _STEP, self._count)
            with layer.lock:
                moved, payload_bytes = layer.writer.settle(self._found, first, end, True)
                for sector, sectors in runs(self._found, first, end, SEGMENT_SECTORS, True):
                    source.tier.sectors.release(PSector(sector), sectors)
                for sector, sectors in runs(self._found, first, end, SEGMENT_SECTORS, False):
                    tier.sectors.release(PSector(sector), sectors)
                level.payload_bytes += payload_bytes
                source.payload_bytes -= payload_bytes
                level.figures.add("moved_in_pages", moved)
                source.figures.add("moved_out_pages", moved)
            taken += moved
            layer.lock.relax()
        return taken

    def _let_go(self) -> None:
        """Let slots that took nothing go on as before."""
        layer = self._layer
        for first in range(0, self._count, _STEP):
            with layer.lock:
                layer.writer.settle(self._found, first, min(first + _STEP, self._count), False)

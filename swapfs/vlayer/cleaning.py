"""Cleaning: moving the live blobs of sparse segments of the file together.

Idea: the cleaner of log-structured file systems (Rosenblum and Ousterhout, 1991). One step
reads sparse segments until one fresh segment is filled, so each step leaves fewer sparse
segments than there were and cleaning comes to an end. Its sources are closed meanwhile: a new
blob in one of them would keep it from becoming free, and with it the segment that was filled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final

from swapfs.errors import BlobCorrupt, TierFull, TierIOError
from swapfs.tiers import sector_ref
from swapfs.tiers.base import Extent, LowerTier
from swapfs.tiers.blob import Batch, check_blob, peek
from swapfs.units import SECTOR_SIZE
from swapfs.vlayer.blob_writer import BATCH_SECTORS, BlobWriter
from swapfs.vlayer.entry import (
    MOVING,
    blob_codec,
    is_below,
    ref_of,
)
from swapfs.vlayer.layer import VirtualSlotLayer

log = logging.getLogger(__name__)

READ_AGAIN_S: Final = 60.0
"""The pause before segments that could not be read are tried again."""


class Cleaner:
    """Makes free segments; runs in the thread that owns *batch* and *scratch*."""

    def __init__(
        self,
        layer: VirtualSlotLayer,
        tier: LowerTier,
        writer: BlobWriter,
        batch: Batch,
        scratch: memoryview,
        clock_s: Callable[[], float],
    ) -> None:
        self._layer = layer
        self._tier = tier
        self._writer = writer
        self._batch = batch
        self._scratch = scratch
        self._clock_s = clock_s
        self._read_again_s = 0.0  # 0: every segment could be read

    def run(self, go_on: Callable[[], bool]) -> int:
        """Clean while free segments are short and *go_on* holds; return the slots moved."""
        moved = 0
        if self._read_again_s and self._clock_s() >= self._read_again_s:
            self._read_again_s = 0.0
            self._tier.retry_skipped()
        while go_on() and self._writer.may_write():
            step = self._step()
            if step is None:
                break
            moved += step
        return moved

    def _step(self) -> int | None:
        """Empty some segments; return the slots moved, None if there is nothing to do.

        Under way as a whole: a write must not look for room while the sources are closed.
        """
        progress = self._writer.progress
        progress.begin()
        sources = self._tier.segments_to_clean()
        if not sources:
            progress.cancel()
            return None
        emptied: list[Extent] = []
        try:
            return self._move(sources, emptied)
        finally:
            for source in sources:  # what should be empty and is not: bad or damaged sectors
                self._tier.end_cleaning(source, skip=source in emptied)
            progress.end()

    def _move(self, sources: list[Extent], emptied: list[Extent]) -> int | None:
        """Move what fits of *sources*; note in *emptied* those of which all was moved."""
        writer, batch = self._writer, self._batch
        try:
            extent = writer.allocate(BATCH_SECTORS, cleaning=True)
        except TierFull:  # not one segment is free, and no hole either
            return None
        batch.reset(extent.sectors)
        try:
            gathered = [source for source in sources if self._gather(source)]
        except BaseException:
            writer.drop(extent, batch)
            raise
        moved = 0
        if not batch.items:
            writer.drop(extent, batch)
        elif writer.write_copies(extent, batch):
            moved = len(writer.commit(extent, batch, "clean"))
            with self._layer.lock:
                self._layer.counters.add("cleaned_pages", moved)
        else:
            return 0
        emptied += gathered
        return moved

    def _gather(self, source: Extent) -> bool:
        """Copy the live blobs of *source* to the batch; False if they did not all fit."""
        try:
            view = self._tier.read(source.sector, source.sectors, self._scratch)
        except TierIOError as error:
            log.warning("cleaning the file tier: %s", error)
            self._read_again_s = self._read_again_s or self._clock_s() + READ_AGAIN_S
            return True
        for slot, word, blob in self._live_blobs(source, view):
            codec = blob_codec(word)
            if not self._batch.fits(sector_ref.longest(ref_of(word))):
                return False
            try:
                payload, _ = check_blob(blob, slot, codec, ref_of(word), self._tier.seal)
            except BlobCorrupt:
                continue  # its reader will be told; moving it would hide the damage
            self._writer.add(self._batch, slot, payload, codec, expected=word)
            with self._layer.lock:
                if self._layer.table.get(slot) == word:  # else the copy is dropped in the end
                    self._layer.table.mark(slot, MOVING, on=True)
        return True

    def _live_blobs(
        self, segment: Extent, view: memoryview
    ) -> Iterator[tuple[int, int, memoryview]]:
        """Yield (slot, word, blob) of what the table still names in *segment*."""
        position = 0
        slots = self._layer.table.slots
        while position < segment.sectors:
            found = peek(view[position * SECTOR_SIZE :])
            step = 1
            if found is not None and found[0] < slots:
                slot, sectors = found
                with self._layer.lock:
                    word = self._layer.table.get(slot)
                ref = ref_of(word)
                here = is_below(word) and sector_ref.sector(ref) == segment.sector + position
                if here and not word & MOVING and sectors == sector_ref.sectors(ref):
                    yield slot, word, view[position * SECTOR_SIZE :][: sectors * SECTOR_SIZE]
                    step = sectors
            position += step

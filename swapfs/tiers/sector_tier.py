"""A tier on sectors: blobs sealed, each on a sector of its own, in segments that are cleaned.

What is the same for a file, a block device and a test's memory; what differs is the
``SectorStore``.
"""

from __future__ import annotations

import logging
import mmap
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from swapfs.errors import BlobCorrupt, TierIOError, TierNoSpace
from swapfs.tiers import sector_ref
from swapfs.tiers.base import (
    Cleaning,
    Direct,
    Failure,
    Move,
    Named,
    Room,
    Staging,
    Stored,
    Swept,
    Tier,
    TierStats,
    Traffic,
    Wanted,
)
from swapfs.tiers.blob import Batch, blob_ref, check_blob
from swapfs.tiers.sector_ref import BLOB_SECTORS_MAX, blob_sectors
from swapfs.tiers.sectors import READ_SLACK_BYTES, Extent, SectorStore
from swapfs.tiers.segments import CLEANING_RESERVE, SEGMENT_BYTES, SEGMENT_SECTORS
from swapfs.units import PAGE_SIZE, SECTOR_SIZE, PSector

log = logging.getLogger(__name__)

BUFFERS: Final = 2
"""Batches that are sealed and written at once: that of the mover, and a direct one."""
CLEANING_SCRATCH_BYTES: Final = SEGMENT_BYTES + READ_SLACK_BYTES
_PAGE_SECTORS: Final = PAGE_SIZE // SECTOR_SIZE


class SectorRoom(Room):
    """An extent."""

    __slots__ = ("extent", "size")

    def __init__(self, extent: Extent) -> None:
        self.extent = extent
        self.size = extent.sectors

    def cost(self, length: int) -> int:  # noqa: D102
        return blob_sectors(length)


def _extent(room: Room) -> Extent:
    assert isinstance(room, SectorRoom)
    return room.extent


class SectorTier(Tier):
    """Blobs in *store*."""

    kind = "file"

    def __init__(self, store: SectorStore) -> None:
        self.sectors = store
        self._batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self._prepared = False
        self._written: Callable[[int, int], None] = lambda sector, sectors: None

    def prepare(self) -> None:  # noqa: D102
        if not self._prepared:
            self._prepared = True
            for _ in range(BUFFERS):
                self._batches.put(
                    Batch(memoryview(mmap.mmap(-1, SEGMENT_BYTES)), self.sectors.seal)
                )

    # ---- down ----

    def reserve(self, pages: int, *, moving: bool = False) -> SectorRoom:  # noqa: D102
        wanted = -(-pages * BLOB_SECTORS_MAX // _PAGE_SECTORS) * _PAGE_SECTORS
        return SectorRoom(self.sectors.allocate(min(wanted, SEGMENT_SECTORS), cleaning=moving))

    def cancel(self, room: Room) -> None:  # noqa: D102
        self.sectors.release(*_extent(room))

    def settle(self, room: Room) -> None:  # noqa: D102
        self.sectors.settle(_extent(room))

    def store(self, room: Room, staging: Staging) -> Stored:  # noqa: D102
        extent, batch = _extent(room), self._batches.get()
        try:
            refs = self._seal(extent, batch, staging)
            return Stored(refs, self.store_sealed(room, batch).written_bytes)
        finally:
            self._batches.put(batch)

    def take_batch(self, room: Room) -> Batch:
        """Return an empty batch for *room*, of which there are BUFFERS; ``give_batch`` follows."""
        batch = self._batches.get()
        batch.reset(_extent(room).sectors)
        return batch

    def give_batch(self, batch: Batch) -> None:
        """Take it back."""
        self._batches.put(batch)

    def store_sealed(self, room: Room, batch: Batch) -> Stored:
        """Store *batch* in *room* as it is; of what it raises see ``store``."""
        extent = _extent(room)
        try:
            self.sectors.write(extent, batch)
        except TierNoSpace:  # nothing is broken
            self.sectors.release(*extent)
            raise
        except BaseException:  # who knows what it wrote
            self._give_up(extent, batch.sectors)
            raise
        self._written(extent.sector, batch.sectors)
        return Stored([], batch.sectors * SECTOR_SIZE)

    def _seal(self, extent: Extent, batch: Batch, staging: Staging) -> list[int]:
        batch.reset(extent.sectors)
        try:
            return batch.fill(staging, extent.sector)
        except BaseException:  # a bug, or no memory: nothing is written
            self.sectors.release(*extent)
            raise

    def _give_up(self, extent: Extent, sectors: int) -> None:
        """Keep the sectors of a failed write out of use, and only those."""
        bad = min(extent.sectors, -(-sectors // _PAGE_SECTORS) * _PAGE_SECTORS)
        self.sectors.mark_bad(Extent(extent.sector, bad))
        if bad < extent.sectors:
            self.sectors.release(PSector(extent.sector + bad), extent.sectors - bad)

    def release(self, slot: int, ref: int) -> None:  # noqa: D102
        self.sectors.release(sector_ref.sector(ref), sector_ref.sectors(ref))

    # ---- up ----

    def direct(self, written: Callable[[int, int], None]) -> Direct | None:  # noqa: D102
        self._written = written
        return self.sectors.direct()

    def span(self, refs: Sequence[int], limit_bytes: int) -> int:
        """Count those that lie side by side."""
        return sector_ref.count_adjacent(refs, limit_bytes // SECTOR_SIZE)

    def load(self, wanted: Sequence[Wanted], scratch: memoryview) -> Traffic:
        """Read blobs that lie side by side, as ``span`` says, in one go."""
        start, last = sector_ref.sector(wanted[0].ref), wanted[-1].ref
        sectors = sector_ref.sector(last) + sector_ref.sectors(last) - start
        try:
            view = self.sectors.read(start, sectors, scratch)
        except TierIOError as error:
            if len(wanted) > 1:
                return self._load_one_by_one(wanted, scratch, sectors)
            wanted[0].failure = Failure.of(error)
        else:
            for each in wanted:
                self._check(view, each)
                view = view[sector_ref.sectors(each.ref) * SECTOR_SIZE :]
        return Traffic(1, sectors * SECTOR_SIZE)

    def _load_one_by_one(
        self, wanted: Sequence[Wanted], scratch: memoryview, tried_sectors: int
    ) -> Traffic:
        """Find out whose sector is bad (I4): it failed the whole read.

        Ends at the first that is, as a disk may take long to fail.
        """
        reads, read_sectors = 1, tried_sectors
        for each in wanted:
            sectors = sector_ref.sectors(each.ref)
            reads, read_sectors = reads + 1, read_sectors + sectors
            try:
                view = self.sectors.read(sector_ref.sector(each.ref), sectors, scratch)
            except TierIOError as error:
                each.failure = Failure.of(error)
                break
            self._check(view, each)
            each.payload = bytes(each.payload)  # the next one needs the scratch
        return Traffic(reads, read_sectors * SECTOR_SIZE)

    def _check(self, view: memoryview, each: Wanted) -> None:
        try:
            each.payload, each.sequence = check_blob(
                view, each.slot, each.codec, each.ref, self.sectors.seal
            )
            each.failure = None
        except BlobCorrupt as error:
            each.failure = Failure.of(error)

    def sweep(self, place: int, named: Named, scratch: memoryview) -> Swept | None:
        """Read what is taken of a segment: the headers name the slots, as for cleaning."""
        found = self.sectors.next_taken(place)
        if found is None:
            return None
        after, blobs = found.sector + found.sectors, []
        try:
            view = self.sectors.read(*found, scratch)
        except TierIOError:  # reads of fewer blobs tell whose sector is bad
            return Swept([], after, Traffic(1, 0))
        for slot, ref, codec, blob in _live_blobs(found, view, named):
            each = Wanted(slot, ref, codec)
            self._check(blob, each)
            if each.failure is None:
                blobs.append(each)
        return Swept(blobs, after, Traffic(1, found.sectors * SECTOR_SIZE))

    def place_of(self, ref: int) -> int:  # noqa: D102
        return sector_ref.sector(ref)

    # ---- the rest ----

    def begin_rebuild(self) -> None:  # noqa: D102
        self.sectors.begin_rebuild()

    def mark(self, slot: int, ref: int) -> None:  # noqa: D102
        self.sectors.mark(sector_ref.sector(ref), sector_ref.sectors(ref))

    def cleaning(self) -> Cleaning | None:  # noqa: D102
        sources = self.sectors.segments_to_clean()
        return SegmentCleaning(self.sectors, sources) if sources else None

    def retry(self) -> None:  # noqa: D102
        self.sectors.retry_skipped()

    def has_room(self) -> bool:  # noqa: D102
        return self.sectors.has_room()

    def guaranteed_pages(self) -> int:  # noqa: D102
        return self.sectors.room_pages()

    def free_bytes(self) -> int:
        """Count as ``guaranteed_pages`` does: a sixteenth of each segment may be lost in holes."""
        pages = self.sectors.room_pages()
        return pages * BLOB_SECTORS_MAX * SECTOR_SIZE - self.sectors.stats().used_bytes

    def fill_percent(self) -> int:
        """Leave out what cleaning keeps free."""
        stats = self.sectors.stats()
        kept_bytes = CLEANING_RESERVE * SEGMENT_BYTES + stats.bad_bytes
        return 100 * stats.used_bytes // max(1, stats.size_bytes - kept_bytes)

    def payload_bytes(self, ref: int) -> int:
        """Return the length to 16 bytes."""
        return sector_ref.longest(ref)

    def taken_bytes(self, ref: int) -> int:
        """Count whole sectors."""
        return sector_ref.sectors(ref) * SECTOR_SIZE

    def stats(self) -> TierStats:  # noqa: D102
        return self.sectors.stats()

    def descriptors(self) -> list[int]:  # noqa: D102
        return self.sectors.descriptors()

    def close(self) -> None:  # noqa: D102
        self.sectors.close()


class SegmentCleaning(Cleaning):
    """Moves the live blobs of sparse segments together.

    Idea: the cleaner of log-structured file systems (Rosenblum and Ousterhout, 1991). One step
    reads sparse segments until one fresh segment is filled, so each step leaves fewer sparse
    segments than there were and cleaning comes to an end. Its *sources* are closed meanwhile: a
    new blob in one of them would keep it from becoming free, and with it the segment that was
    filled.
    """

    def __init__(self, sectors: SectorStore, sources: list[Extent]) -> None:
        self._sectors = sectors
        self._sources = sources

    def run(self, move: Move, scratch: memoryview) -> int | None:  # noqa: D102
        emptied: list[Extent] = []
        try:
            if not move.begin():  # not one segment is free, and no hole either
                return None
            try:
                gathered = [each for each in self._sources if self._gather(each, move, scratch)]
            except BaseException:
                move.abort()
                raise
            moved = move.finish()
            if moved is None:
                return 0
            emptied += gathered
            return moved
        finally:
            for source in self._sources:  # what should be empty and is not: bad or damaged sectors
                self._sectors.end_cleaning(source, skip=source in emptied)

    def _gather(self, source: Extent, move: Move, scratch: memoryview) -> bool:
        """Have the live blobs of *source* copied; False if they did not all fit."""
        try:
            view = self._sectors.read(source.sector, source.sectors, scratch)
        except TierIOError as error:
            log.warning("cleaning: %s", error)
            self.unreadable = True
            return True
        for slot, ref, codec, blob in _live_blobs(source, view, move.wants):
            try:
                payload, _ = check_blob(blob, slot, codec, ref, self._sectors.seal)
            except BlobCorrupt:
                continue  # its reader will be told; moving it would hide the damage
            if not move.add(slot, ref, codec, payload):
                return False
        return True


def _live_blobs(
    extent: Extent, view: memoryview, named: Named
) -> Iterator[tuple[int, int, int, memoryview]]:
    """Yield (slot, ref, codec, blob) of what the table still names in *extent*."""
    position = 0
    while position < extent.sectors:
        found = blob_ref(view[position * SECTOR_SIZE :], extent.sector + position)
        step = 1
        if found is not None and named(*found):
            slot, ref, codec = found
            step = sector_ref.sectors(ref)
            yield slot, ref, codec, view[position * SECTOR_SIZE :][: step * SECTOR_SIZE]
        position += step

"""Reading slots whose blobs lie in the file tier; runs in worker threads, never in the loop.

Blobs that lie side by side are read in one go. Several reads of one blob share one disk read:
the first is the leader, the others wait for its bytes. A read never trusts a place after it
let the lock go: the header and checksum tell whether the bytes are the blob that the word
named, and if they are not, the word is looked at again before anything is called damaged.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from swapfs.errors import BlobCorrupt, TierError, TierIOError
from swapfs.tiers.base import READ_SLACK_BYTES, LowerTier
from swapfs.tiers.blob import blob_sectors, check_blob
from swapfs.tiers.pool import NO_PLACE
from swapfs.units import CLUSTER_SLOTS, PAGE_SHIFT, PAGE_SIZE, SECTOR_SIZE, PSector
from swapfs.vlayer.codec import decompress
from swapfs.vlayer.entry import (
    CHECK_MASK,
    FLAGS,
    REFERENCED,
    TAG_MASK,
    Tag,
    blob_codec,
    blob_length,
    encode_pool,
    file_check,
    file_sector,
)
from swapfs.vlayer.layer import SlotDamaged, VirtualSlotLayer

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 256 * 1024
"""The most that one disk read asks for."""
SCRATCH_BYTES: Final = WINDOW_BYTES + READ_SLACK_BYTES
"""Scratch that each worker brings, page aligned."""
_SLOT_MASK: Final = CLUSTER_SLOTS - 1


class _GivenUp(TierIOError):
    """The leader did not come to this blob."""


@dataclass(slots=True)
class _Flight:
    """One blob that is being read; its leader fills in the outcome."""

    waiters: int = 0
    landed: bool = False
    payload: bytes | memoryview = b""
    shared: bytes = b""
    sequence: int = 0
    error: TierError | None = None


@dataclass(slots=True)
class _Run:
    """Blobs of consecutive slots that lie side by side on the disk."""

    slot: int
    words: list[int] = field(default_factory=list)
    sectors: int = 0


class Fetcher:
    """Loads runs of slots, wherever they are.

    :param promote: may a blob that was read go back to the pool now? None: never
    :param newest_sequence: the number of the newest blob: one that was written no more than
        a pool full of pages ago counts as refaulted
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        tier: LowerTier,
        *,
        promote: Callable[[], bool] | None = None,
        newest_sequence: Callable[[], int] = lambda: 0,
    ) -> None:
        self._layer = layer
        self._tier = tier
        self._promote = promote
        self._newest_sequence = newest_sequence
        self._recent_blobs = layer.pool.limit_bytes // PAGE_SIZE
        self._landing = threading.Condition()
        self._flights: dict[tuple[int, int], _Flight] = {}

    def load(self, slot: int, count: int, out: memoryview, scratch: memoryview) -> int:
        """Fill *out* with the pages of *count* slots from *slot* on; blocks.

        Returns how many pages are good, from the first on; fewer than *count* means that the
        next slot is damaged or unreadable.

        :raises TierError: the first slot is (BlobCorrupt, TierIOError)
        :raises SlotDamaged: the first slot is, in memory
        """
        done = 0
        while done < count:
            try:
                done += self._layer.load_run(slot + done, count - done, out, done << PAGE_SHIFT)
                if done < count:
                    done += self._load_file_run(slot + done, count - done, out, done, scratch)
            except (TierError, SlotDamaged):
                if done == 0:
                    raise
                return done
        return done

    def file_word(self, slot: int) -> int:
        """Return the word of *slot* if it is in the file tier, else 0."""
        with self._layer.lock:
            word = self._layer.table.get(slot)
        return word if word & TAG_MASK == Tag.FILE else 0

    # ---- one disk read ----

    def _load_file_run(
        self, slot: int, count: int, out: memoryview, done: int, scratch: memoryview
    ) -> int:
        """Load at least one page from the disk; 0 when the first slot has changed meanwhile."""
        run, flights, follow = self._board(slot, count)
        if follow is not None:
            return self._follow(run, follow, out[done << PAGE_SHIFT :])
        if not run.words:
            return 0
        return self._lead(run, flights, out[done << PAGE_SHIFT :], scratch)

    def _board(self, slot: int, count: int) -> tuple[_Run, list[_Flight], _Flight | None]:
        """Find what one read can fetch; register as its leader or as a follower of the first."""
        run = _Run(slot)
        flights: list[_Flight] = []
        with self._landing:
            try:
                return run, flights, self._register(run, flights, self._file_words(slot, count))
            except BaseException:  # nobody can follow yet: we have the lock
                for index, word in enumerate(run.words):
                    self._flights.pop((slot + index, word & ~FLAGS), None)
                raise

    def _register(self, run: _Run, flights: list[_Flight], words: list[int]) -> _Flight | None:
        """Add to *run* and *flights* what lies side by side, or return whom to follow."""
        for index, word in enumerate(words):
            sectors = blob_sectors(blob_length(word))
            if run.words and (
                file_sector(word) != file_sector(run.words[0]) + run.sectors
                or (run.sectors + sectors) * SECTOR_SIZE > WINDOW_BYTES
            ):
                break
            key = (run.slot + index, word & ~FLAGS)
            flight = self._flights.get(key)
            if flight is not None:
                if run.words:
                    break
                flight.waiters += 1
                run.words.append(word)
                return flight
            flights.append(_Flight())
            run.words.append(word)
            run.sectors += sectors
            self._flights[key] = flights[-1]
        return None

    def _file_words(self, slot: int, count: int) -> list[int]:
        """Return the words of *slot* and those after it, up to the first not in the file."""
        with self._layer.lock:
            words = self._layer.table.run(slot, min(count, CLUSTER_SLOTS - (slot & _SLOT_MASK)))
        for index, word in enumerate(words):
            if word & TAG_MASK != Tag.FILE:
                return words[:index]
        return words

    def _lead(self, run: _Run, flights: list[_Flight], out: memoryview, scratch: memoryview) -> int:
        """Read *run*, land its flights and deliver its pages. Returns pages delivered."""
        try:
            self._read_run(run, flights, scratch)
        except BaseException:  # nobody may wait for these flights for ever
            for flight in flights:
                flight.error = _GivenUp()
            self._land(run, flights)
            raise
        self._land(run, flights)
        return self._deliver(run, flights, [flight.payload for flight in flights], out)

    def _read_run(self, run: _Run, flights: list[_Flight], scratch: memoryview) -> None:
        """Note in each of *flights* its bytes, in *scratch*, or why there are none."""
        try:
            view = self._read(file_sector(run.words[0]), run.sectors, scratch)
        except TierIOError as error:
            if len(flights) > 1:
                self._read_one_by_one(run, flights, scratch)
            else:
                flights[0].error = error
            return
        for index, flight in enumerate(flights):
            view = self._check(view, run.slot + index, run.words[index], flight)

    def _read_one_by_one(self, run: _Run, flights: list[_Flight], scratch: memoryview) -> None:
        """Find out whose sector is bad (I4): it failed the whole read.

        Ends at the first that is, as a disk may take long to fail; what comes after it is not
        delivered anyway, and whoever follows one of those reads it himself.
        """
        for index, flight in enumerate(flights):
            word = run.words[index]
            try:
                view = self._read(file_sector(word), blob_sectors(blob_length(word)), scratch)
            except TierIOError as error:
                flight.error = error
                for other in flights[index + 1 :]:
                    other.error = _GivenUp()
                return
            self._check(view, run.slot + index, word, flight)
            flight.payload = bytes(flight.payload)  # the next one needs the scratch

    def _read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:
        with self._layer.lock:
            self._layer.counters.add("file_read_ops")
            self._layer.counters.add("file_read_bytes", sectors * SECTOR_SIZE)
        return self._tier.read(sector, sectors, scratch)

    def _check(self, view: memoryview, slot: int, word: int, flight: _Flight) -> memoryview:
        """Note in *flight* what *view* starts with; return what follows it."""
        length = blob_length(word)
        try:
            flight.payload, flight.sequence = check_blob(
                view,
                slot,
                length,
                blob_codec(word),
                file_check(word),
                CHECK_MASK,
                self._tier.seal,
            )
        except BlobCorrupt as error:
            flight.error = error
        return view[blob_sectors(length) * SECTOR_SIZE :]

    def _land(self, run: _Run, flights: list[_Flight]) -> None:
        with self._landing:
            for index, flight in enumerate(flights):
                del self._flights[run.slot + index, run.words[index] & ~FLAGS]
                flight.landed = True
            waited_for = [flight for flight in flights if flight.waiters]
            for flight in waited_for:  # the leader's scratch is used again before they wake
                try:
                    flight.shared = bytes(flight.payload)
                except MemoryError:
                    flight.error = TierIOError("no memory for a copy")
            if waited_for:
                self._landing.notify_all()

    def _follow(self, run: _Run, flight: _Flight, out: memoryview) -> int:
        with self._landing:
            while not flight.landed:
                self._landing.wait()
        return self._deliver(run, [flight], [flight.shared], out)

    # ---- what becomes of it ----

    def _deliver(
        self,
        run: _Run,
        flights: list[_Flight],
        payloads: Sequence[bytes | memoryview],
        out: memoryview,
    ) -> int:
        """Put the pages of *run* into *out*, up to the first that is none; return how many.

        0 when the first is none and its slot has changed meanwhile; else that one's error.
        """
        good, problem = 0, None
        for flight, payload in zip(flights, payloads, strict=True):
            problem = flight.error
            codec = blob_codec(run.words[good])
            if problem is None and not decompress(payload, codec, out, good << PAGE_SHIFT):
                problem = BlobCorrupt("its blob does not decompress to a page")
            if problem is not None:
                break
            good += 1
        if problem is not None and not good:
            return self._verdict(run.slot, run.words[0], problem)
        self._account(run, flights[:good], payloads)
        return good  # the next round decides about the one after them

    def _account(
        self, run: _Run, flights: list[_Flight], payloads: Sequence[bytes | memoryview]
    ) -> None:
        """Count pages that were delivered, and bring them back to the pool if that is wanted."""
        layer = self._layer
        with layer.lock:
            layer.counters.add("read_file_pages", len(flights))
            oldest = self._newest_sequence() - self._recent_blobs
            refaulted = sum(flight.sequence >= oldest for flight in flights)
            layer.counters.add("refaulted_pages", refaulted)
            if self._promote is not None:
                for index, word in enumerate(run.words[: len(flights)]):
                    if index:
                        layer.lock.resched()
                    if self._promote():
                        self._bring_back(run.slot + index, word, payloads[index])

    def _bring_back(self, slot: int, word: int, payload: bytes | memoryview) -> None:
        layer = self._layer
        if (layer.table.get(slot) ^ word) & ~FLAGS:
            return
        length = blob_length(word)
        place = layer.pool.allocate(length)
        if place == NO_PLACE:
            return
        layer.put(place, payload)
        new = encode_pool(place, length, blob_codec(word)) | REFERENCED
        layer.free(layer.table.exchange(slot, new, "promote"))
        layer.counters.add("promoted_pages")

    def _verdict(self, slot: int, word: int, error: TierError) -> int:
        """Return 0 if *slot* has changed since *word* was read, for another look; else raise.

        Also if nobody has read it: then the other look will.
        """
        layer = self._layer
        with layer.lock:
            if isinstance(error, _GivenUp) or (layer.table.get(slot) ^ word) & ~FLAGS:
                return 0
            corrupt = isinstance(error, BlobCorrupt)
            layer.counters.add("failed_read_checksum" if corrupt else "failed_read_io")
        log.error("slot %d at sector %d: %s", slot, file_sector(word), error)
        raise error

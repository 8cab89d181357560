"""Far memory: blobs in a Valkey or Redis engine (``engine.py``).

A blob is a value sealed as on a disk; its key is the prefix of the instance, the slot, and the
reference, which no two blobs of an instance share, so what a dead server had still sent
cannot harm another.
Bits of a reference: 0-7 length as in ``sector_ref``, 8-42 number of the blob, 43-52 of the server.

The engine must not evict (``maxmemory-policy noeviction``): that is looked at before anything goes
there, and every few seconds. What it counts for a key is counted here too, so it is never asked for
more than the tier's size. No call waits longer than the time-outs below, and none is made under a
lock: what is released is noted, and deleted by a thread of the tier.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from valkey import exceptions

from swapfs.errors import BlobCorrupt, OperationError, TierFull, TierIOError, TierNoSpace
from swapfs.tiers import sector_ref
from swapfs.tiers.base import (
    Cleaning,
    Failure,
    Move,
    Room,
    Staging,
    Stored,
    Tier,
    TierStats,
    Traffic,
    Wanted,
)
from swapfs.tiers.blob import HEADER, MAGIC, check_value
from swapfs.tiers.engine import ANSWER_S, CONNECT_S, Engine, Place, bytes_for
from swapfs.tiers.released import Released
from swapfs.tiers.seal import Seal
from swapfs.units import PAGE_SIZE

log = logging.getLogger(__name__)

TEND_EVERY_S: Final = 0.1
LOOK_EVERY_S: Final = 5.0
_SHORT_PAGES: Final = 256
_DELETED_AT_ONCE: Final = 512
_NUMBER_BITS: Final = 35
_SERVER_SHIFT: Final = 40  # of the sequence numbers, as BlobWriter makes them
_SERVERS: Final = 1 << 10
_LENGTH_BITS: Final = 8


class _Bytes(Room):
    """Room for so many bytes, keys and all."""

    def __init__(self, size: int) -> None:
        self.size = size

    def cost(self, length: int) -> int:
        return _cost(sector_ref.encode(0, length, 0))


_COSTS: Final = tuple(
    bytes_for(sector_ref.HEADER_BYTES + sector_ref.longest(ref) + sector_ref.TAG_BYTES)
    for ref in range(1 << _LENGTH_BITS)
)


def _cost(ref: int) -> int:
    """Return the bytes that the engine needs for the blob at *ref*, at most."""
    return _COSTS[ref & (1 << _LENGTH_BITS) - 1]


_PAGE_COST: Final = _cost(sector_ref.encode(0, PAGE_SIZE, 0))


class _Deleting(Cleaning):
    def __init__(self, tier: ValkeyTier) -> None:
        self._tier = tier

    def run(self, move: Move, scratch: memoryview) -> int | None:
        try:
            return self._tier.delete_released()
        except TierIOError:
            return None


class ValkeyTier(Tier):
    """At most *size_bytes* of the memory of an engine.

    :param prefix: of every key; no other instance has it
    :param engine: what is at *place*, if not what it says
    """

    kind = "valkey"

    def __init__(
        self, place: Place, size_bytes: int, prefix: str, seal: Seal, engine: Engine | None = None
    ) -> None:
        self.place = place
        self._engine = engine or Engine(place)
        self._engine.load()
        self._size_bytes = size_bytes
        self._prefix = prefix
        self._seal = seal
        self._lock = threading.Lock()
        self._deleting = threading.Lock()
        self._taken_bytes = 0
        self._servers: set[int] = set()  # those that have blobs here
        self._released = Released(max(1024, size_bytes // _PAGE_COST))
        self._left_bytes = 0  # of blobs that were released and could not be noted
        self._refusal = "the engine has not been asked yet whether it may evict"
        # A hand-over between monitors gives a descriptor for each tier, and this one needs none.
        self.fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- before and after ----

    def check(self, purge: str = "") -> None:
        """See ``Engine.check``; to be called once, before the first server."""
        self._engine.check(purge, self._prefix)
        self._refusal = ""

    def prepare(self) -> None:  # noqa: D102
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="valkey", daemon=True)
            self._thread.start()

    def leave(self) -> None:  # noqa: D102
        with suppress(OperationError):
            self._engine.check(self._prefix)

    def close(self) -> None:  # noqa: D102
        self._stop.set()
        if self._thread is not None:
            self._thread.join(ANSWER_S + CONNECT_S)
        self._engine.close()
        os.close(self.fd)

    # ---- the tier's thread ----

    def _run(self) -> None:
        look_at_s = 0.0
        while not self._stop.wait(TEND_EVERY_S):
            try:
                self._engine.probe()
                if time.monotonic() >= look_at_s:
                    look_at_s = time.monotonic() + LOOK_EVERY_S
                    self.look()
                self.delete_released()
            except TierIOError:
                look_at_s = 0.0  # as soon as it is there again
            except Exception:  # without it nothing would be deleted any more
                log.exception("%s", self.place)

    def look(self) -> None:
        """Look whether the engine may evict; nothing new goes there while it may.

        :raises TierIOError: it does not answer
        """
        self._engine.probe(renew=True)
        reason = self._engine.why_unfit()
        if reason != self._refusal and reason:
            log.error("%s: %s", self.place, reason)
        self._refusal = reason

    def delete_released(self) -> int:
        """Delete what was released so far; return how many blobs.

        :raises TierIOError: it does not answer; what is left is deleted later
        """
        deleted = 0
        with self._deleting:  # by one at a time
            while self._released:
                deleted += self._delete_some()
        return deleted

    def _delete_some(self) -> int:
        with self._lock:
            gone = self._released.oldest(_DELETED_AT_ONCE)
        keys = [self._key(slot, ref) for slot, ref in gone]

        def fill(pipe: Any, number: int) -> None:
            pipe.unlink(keys[number])

        answers = self._engine.ask("delete", keys, fill)
        if failed := [each for each in answers if isinstance(each, Exception)]:
            raise TierIOError(f"{self.place}: {failed[0]}")
        with self._lock:
            self._released.forget(len(gone))
            self._taken_bytes -= sum(_cost(ref) for _, ref in gone)
        return len(gone)

    def cleaning(self) -> Cleaning | None:
        """Delete what was released, if room is short: a write may wait for it."""
        short = self._taken_bytes + _SHORT_PAGES * _PAGE_COST > self._size_bytes
        return _Deleting(self) if self._released and short else None

    def _key(self, slot: int, ref: int) -> str:
        return f"{self._prefix}{slot:x}.{ref:x}"

    # ---- down ----

    def reserve(self, pages: int, *, moving: bool = False) -> _Bytes:  # noqa: D102
        with self._lock:
            size = min(pages, (self._size_bytes - self._taken_bytes) // _PAGE_COST) * _PAGE_COST
            if self._refusal or size <= 0:
                raise TierFull(self._refusal or "its size is used up")
            self._taken_bytes += size
        return _Bytes(size)

    def cancel(self, room: Room) -> None:  # noqa: D102
        with self._lock:
            self._taken_bytes -= room.size

    def settle(self, room: Room) -> None:  # noqa: D102
        pass

    def store(self, room: Room, staging: Staging) -> Stored:  # noqa: D102
        try:
            refs = [self._ref(item.sequence, item.length) for item in staging.items]
            values = [self._sealed(staging, index) for index in range(len(refs))]
        except BaseException:  # nothing was sent
            self.cancel(room)
            raise
        with self._lock:
            self._taken_bytes -= room.size - sum(map(_cost, refs))
        keys = [self._key(item.slot, ref) for item, ref in zip(staging.items, refs, strict=True)]

        def fill(pipe: Any, number: int) -> None:
            pipe.set(keys[number], values[number])

        try:
            for answer in self._engine.ask("write", keys, fill, stores=True):
                if isinstance(answer, Exception):
                    full = isinstance(answer, exceptions.OutOfMemoryError)
                    raise (TierNoSpace if full else TierIOError)(f"{self.place}: {answer}")
        except BaseException:  # who knows what it has
            for item, ref in zip(staging.items, refs, strict=True):
                self.release(item.slot, ref)
            raise
        return Stored(refs, sum(map(len, values)))

    def _ref(self, sequence: int, length: int) -> int:
        server, number = sequence >> _SERVER_SHIFT & (_SERVERS - 1), sequence & (1 << 40) - 1
        if number >> _NUMBER_BITS or server in self._servers:
            raise TierNoSpace("references would come twice: start the server anew")
        return sector_ref.encode(0, length, 0) | (server << _NUMBER_BITS | number) << _LENGTH_BITS

    def _sealed(self, staging: Staging, index: int) -> bytes:
        item = staging.items[index]
        header = HEADER.pack(MAGIC, item.codec, item.length, item.sequence, item.slot)
        return header + self._seal.seal(header, item.sequence, staging.payload(item))

    def release(self, slot: int, ref: int) -> None:  # noqa: D102
        with self._lock:
            if not self._released.note(slot, ref):
                self._left_bytes += _cost(ref)  # it stays there, and counted

    # ---- up ----

    def span(self, refs: Sequence[int], limit_bytes: int) -> int:
        """As many as fit the reader's patience; where they are makes no difference."""
        return max(1, min(len(refs), limit_bytes // PAGE_SIZE))

    def load(self, wanted: Sequence[Wanted], scratch: memoryview) -> Traffic:  # noqa: D102
        keys = [self._key(each.slot, each.ref) for each in wanted]

        def fill(pipe: Any, number: int) -> None:
            pipe.get(keys[number])

        try:
            answers = self._engine.ask("read", keys, fill)
        except TierIOError as error:
            for each in wanted:
                each.failure = Failure.of(error)
            return Traffic(1, 0)
        for each, answer in zip(wanted, answers, strict=True):
            self._check(each, answer)
        return Traffic(1, sum(len(a) for a in answers if isinstance(a, bytes)))

    def _check(self, blob: Wanted, value: object) -> None:
        if isinstance(value, Exception):
            blob.failure = Failure(TierIOError, f"{self.place}: {value}")
            return
        if value is None:
            blob.failure = Failure(BlobCorrupt, f"slot {blob.slot}: {self.place} has lost it")
            return
        try:
            assert isinstance(value, bytes)
            found = check_value(value, blob.slot, blob.codec, blob.ref, self._seal)
            blob.payload, blob.sequence = found
            blob.failure = None
        except BlobCorrupt as error:
            blob.failure = Failure.of(error)

    # ---- after a death ----

    def begin_rebuild(self) -> None:  # noqa: D102
        with self._lock:
            self._taken_bytes = 0
            self._released.clear()
            self._refusal = ""  # pages are there already: a write is not refused for a look (I6)
            self._servers.clear()

    def mark(self, slot: int, ref: int) -> None:  # noqa: D102
        self._taken_bytes += _cost(ref)
        self._servers.add(ref >> _LENGTH_BITS + _NUMBER_BITS)

    # ---- what it holds ----

    def has_room(self) -> bool:  # noqa: D102
        room = self._taken_bytes + _PAGE_COST <= self._size_bytes
        return not self._refusal and (room or len(self._released) > 0)

    def guaranteed_pages(self) -> int:  # noqa: D102
        return self._size_bytes // _PAGE_COST

    def payload_bytes(self, ref: int) -> int:  # noqa: D102
        return sector_ref.longest(ref)

    def stats(self) -> TierStats:  # noqa: D102
        return TierStats(
            name=self.kind,
            path=str(self.place),
            size_bytes=self._size_bytes,
            used_bytes=self._taken_bytes,
            bad_bytes=self._left_bytes,
            map_bytes=self._released.map_bytes,
            direct_io=False,
            encrypted=self._seal.encrypted,
            free_segments=0,
            segments=0,
            cautions=(f"{self.place}: {self._refusal}",) if self._refusal else (),
        )

"""Reading and checking every blob where it lies, at low priority; nothing is changed.

Neither counted as reads nor made warm by it. What fails is looked at again, with the lock held or
alone, before it is called damaged: its slot may have changed meanwhile, and a disk may fail once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from swapfs.core._core import Decoder, is_intact
from swapfs.errors import BlobCorrupt
from swapfs.tiers.base import NOT_READ, Failure, Wanted
from swapfs.units import CLUSTER_SHIFT, CLUSTER_SLOTS, PAGE_SIZE
from swapfs.vlayer.entry import (
    BACKING_MASK,
    FLAGS,
    IN_POOL,
    KIND_MASK,
    Kind,
    blob_codec,
    is_below,
    ref_of,
    tier_of,
)
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.stack import Level

POOL: Final = 0
"""The number of the pool."""
TOLD_MAX: Final = 100
"""Damaged slots that are told one by one; all are counted."""
_STEP: Final = 32
"""Blobs of the pool checked before a pause."""
_READ_BYTES: Final = 256 * 1024
_NOT_IN_THE_POOL: Final = ("empty", "same", "lost", "file")
"""Of the states of slots that are published."""
_REST_SHARE: Final = 3
"""It rests so many times as long as it works."""


@dataclass(slots=True)
class Findings:
    """How far it is, in blobs, and what was found."""

    total: int = 0
    checked: int = 0
    damaged: int = 0
    unreadable: int = 0
    lost: int = 0
    told: list[str] = field(default_factory=list)

    def tell(self, slot: int, where: str, reason: str) -> None:
        """Note one slot in words, if there are not many already."""
        if len(self.told) < TOLD_MAX:
            self.told.append(f"slot {slot} in {where}: {reason}")


class Verify:
    """Checks the blobs of *layer*, in one thread.

    :param tier: of the tier of this number only, POOL for the pool; None: of all
    :param scratch: page aligned, ``fetch.SCRATCH_BYTES`` long
    :param rest: waits for so many seconds
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        tier: int | None,
        scratch: memoryview,
        *,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        self.findings = Findings()
        self._layer = layer
        self._tier = tier
        self._scratch = scratch
        self._rest = rest
        self._page = memoryview(bytearray(PAGE_SIZE))
        self._blob = memoryview(bytearray(PAGE_SIZE))
        self._decoder: Decoder = layer.decoder

    def run(self, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Check all of it; False: *go_on* has ended it before."""
        self.findings.total = self._count()
        for cluster in self._layer.live_clusters(0, self._layer.table.slots):
            for step in self._steps(cluster):
                if not go_on():
                    return False
                began_s = time.monotonic()
                step()
                self._rest(_REST_SHARE * (time.monotonic() - began_s))
        return True

    def _count(self) -> int:
        layer = self._layer
        with layer.lock:
            states = layer.table.state_counts()
            below = {level.number: layer.table.slots_in(level.number) for level in layer.stack}
        if self._tier not in (None, POOL):
            return below.get(self._tier, 0)
        pool = sum(states.values()) - sum(states[state] for state in _NOT_IN_THE_POOL)
        return pool + (sum(below.values()) if self._tier is None else 0)

    def _steps(self, cluster: int) -> Iterator[Callable[[], None]]:
        """Yield what to do for one cluster, piece by piece."""
        first = cluster << CLUSTER_SHIFT
        with self._layer.lock:
            words = self._layer.table.run(first, CLUSTER_SLOTS)
        if self._tier is None:
            self._note_lost(first, words)
        if self._tier in (None, POOL):
            slots = [first + n for n, word in enumerate(words) if word & BACKING_MASK == IN_POOL]
            for start in range(0, len(slots), _STEP):
                yield functools.partial(self._check_pool, slots[start : start + _STEP])
        index = 0
        while index < CLUSTER_SLOTS:
            run = self._run_below(words, index)
            if run:
                yield functools.partial(self._check_below, first + index, run)
            index += max(1, len(run))

    def _note_lost(self, first: int, words: list[int]) -> None:
        for index, word in enumerate(words):
            if word & KIND_MASK == Kind.LOST:
                self.findings.lost += 1
                self.findings.tell(first + index, "no tier", "its page is lost")

    # ---- the pool ----

    def _check_pool(self, slots: list[int]) -> None:
        layer, findings = self._layer, self.findings
        for slot in slots:
            with layer.lock:
                word = layer.table.get(slot)
                if word & BACKING_MASK != IN_POOL:
                    continue  # it has gone down, or away
                blob = layer.blob(word)
                length = len(blob)
                self._blob[:length] = blob
            findings.checked += 1
            if self._is_sound(word, self._blob[:length]):
                continue
            with layer.lock:  # not copied while it changed, for certain
                word = layer.table.get(slot)
                if word & BACKING_MASK != IN_POOL or self._is_sound(word, layer.blob(word)):
                    continue
            findings.damaged += 1
            findings.tell(slot, "the pool", "its blob does not match its check")

    def _is_sound(self, word: int, blob: memoryview) -> bool:
        return is_intact(word, blob) and self._is_page(blob, blob_codec(word))

    def _is_page(self, blob: bytes | memoryview, codec: int) -> bool:
        return self._decoder.unpack(blob, codec, self._page, 0)

    # ---- tiers below ----

    def _run_below(self, words: list[int], index: int) -> list[int]:
        """Return the words from *index* on of one tier, if it is wanted, best read at once."""
        first = words[index]
        if not is_below(first) or self._tier not in (None, tier_of(first)):
            return []
        level = self._layer.stack.get(tier_of(first))
        if level is None:
            return []
        end = index
        while end < CLUSTER_SLOTS and not (words[end] ^ first) & BACKING_MASK:
            end += 1
        refs = [ref_of(word) for word in words[index:end]]
        return words[index : index + level.tier.span(refs, _READ_BYTES)]

    def _check_below(self, slot: int, words: list[int]) -> None:
        layer = self._layer
        with layer.lock:
            level = layer.stack.get(tier_of(words[0]))
            if level is None:
                return
            level.users += 1
        try:
            wanted = [
                Wanted(slot + index, ref_of(word), blob_codec(word))
                for index, word in enumerate(words)
            ]
            while wanted:
                wanted = self._read(level, wanted, slot, words)
        finally:
            with layer.lock:
                level.users -= 1

    def _read(
        self, level: Level, wanted: list[Wanted], slot: int, words: list[int]
    ) -> list[Wanted]:
        """Check what can be read of *wanted*; return what was not tried."""
        level.tier.load(wanted, self._scratch)
        unread, failed = [], []
        for each in wanted:
            if each.failure is NOT_READ:
                unread.append(each)
                continue
            self.findings.checked += 1
            if each.failure is not None or not self._is_page(each.payload, each.codec):
                failed.append(each)
        for each in failed:  # the scratch is free now
            self._judge(level, each.slot, words[each.slot - slot])
        return unread

    def _judge(self, level: Level, slot: int, word: int) -> None:
        """Look again at a blob that failed, alone."""
        again = Wanted(slot, ref_of(word), blob_codec(word))
        level.tier.load([again], self._scratch)
        failure = again.failure
        if failure is None:
            if self._is_page(again.payload, again.codec):
                return
            failure = Failure(BlobCorrupt, "its blob does not decompress to a page")
        with self._layer.lock:
            if (self._layer.table.get(slot) ^ word) & ~FLAGS:
                return  # it is elsewhere by now
        if failure.kind is BlobCorrupt:
            self.findings.damaged += 1
        else:
            self.findings.unreadable += 1
        self.findings.tell(slot, f"tier {level.name}", failure.reason)

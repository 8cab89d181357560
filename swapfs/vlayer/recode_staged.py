"""Blobs on their way down go in zstd, so that a disk has less to write and to keep."""

from __future__ import annotations

import os
import queue
from array import array
from collections.abc import Sequence
from typing import Final

from swapfs.core._core import Recoder, is_intact, sign
from swapfs.tiers.base import Staged, Staging
from swapfs.vlayer.entry import Kind, blob_codec, blob_length, encode_pool

_CHUNK: Final = 8
"""Blobs between two looks whether others want the processor: 0.1 ms. 64 took 0.8, and a request on
the same processor waited so long: both are real-time, and neither comes before the other."""


class _Chunk:
    """One context, with what it is told."""

    def __init__(self, recoder: Recoder) -> None:
        self.recoder = recoder
        self.starts = array("I", bytes(4 * _CHUNK))
        self.drafts = array("Q", bytes(8 * _CHUNK))


class StagedRecoder:
    """Puts what is staged into zstd; for as many threads at once as there are *recoders*."""

    def __init__(self, recoders: Sequence[Recoder]) -> None:
        self._free: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()
        for recoder in recoders:
            self._free.put(_Chunk(recoder))

    def recode(self, staging: Staging) -> tuple[int, list[Staged]]:
        """Put the blobs in *staging* that get shorter by it into zstd; no lock is held.

        Returns how many did, and those that are damaged, which are taken out.
        """
        chunk, items, changed, damaged = self._free.get(), staging.items, 0, []
        try:
            for first in range(0, len(items), _CHUNK):
                part = items[first : first + _CHUNK]
                for index, item in enumerate(part):
                    chunk.starts[index] = item.start
                    draft = encode_pool(0, item.length, item.codec)
                    chunk.drafts[index] = sign(draft, staging.payload(item))
                chunk.recoder.recode(staging.view, chunk.starts, chunk.drafts, len(part), True, 0)
                os.sched_yield()
                for index, item in enumerate(part):
                    draft = chunk.drafts[index]
                    if draft == Kind.LOST:
                        damaged.append(item)
                    elif (codec := blob_codec(draft)) != item.codec:
                        length = blob_length(draft)
                        changed += length != item.length
                        items[first + index] = item._replace(length=length, codec=codec)
        finally:
            self._free.put(chunk)
        if damaged:
            staging.items[:] = [item for item in items if item not in damaged]
        return changed, damaged


def take_out_damaged(staging: Staging) -> list[Staged]:
    """Take out of *staging*, copied from the pool, what is damaged there; return it (I4).

    A tier would seal it, and give it back as if it were good.
    """
    items = staging.items
    damaged = [each for each in items if not is_intact(each.expected, staging.payload(each))]
    if damaged:
        items[:] = [each for each in items if each not in damaged]
    return damaged

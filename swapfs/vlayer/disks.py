"""Reads of disks without Python: which tiers take part, and where what they read is counted.

``core/disks.c`` does it. A tier whose blobs only it can read, or that stands behind a wrapper,
takes no part: its slots are read by ``Fetcher``, as is all that is damaged, and every slot where
a read may bring a page back to the pool.
"""

from __future__ import annotations

import functools
from array import array
from typing import Final

from swapfs.core._core import Disks
from swapfs.region.counters import COUNTER_INDEX
from swapfs.region.stack_rows import ROW_INDEX
from swapfs.units import PAGE_SIZE
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.stack import Level

REQUESTS: Final = 1024
"""Reads that wait for a thread; more than the kernel has under way for one file."""
_COUNTS: Final = (
    COUNTER_INDEX["file_read_ops"],
    COUNTER_INDEX["file_read_bytes"],
    COUNTER_INDEX["read_file_pages"],
    COUNTER_INDEX["refaulted_pages"],
    COUNTER_INDEX["read_ahead_ops"],
    COUNTER_INDEX["read_ahead_bytes"],
    COUNTER_INDEX["read_ahead_pages"],
)
_ROW: Final = (ROW_INDEX["reads"], ROW_INDEX["read_bytes"], ROW_INDEX["read_pages"])


def make_disks(layer: VirtualSlotLayer, newest_sequence: array[int], threads: int) -> Disks:
    """Return what reads the disks of *layer*, those that come later too, for *threads* threads.

    :param newest_sequence: one word, the number of the newest blob
    """
    recent_blobs = layer.pool.limit_bytes // PAGE_SIZE
    disks = Disks(layer.own_reader, newest_sequence, recent_blobs, threads, REQUESTS, _COUNTS)
    layer.stack.watch(functools.partial(_attach, disks), lambda level: disks.detach(level.number))
    return disks


def _attach(disks: Disks, level: Level) -> None:
    direct = level.tier.direct(functools.partial(disks.forget, level.number))
    if direct is None:
        return
    row, durations = level.figures.words, level.reading.words
    disks.attach(level.number, *direct, row, durations, level.readers, _ROW)

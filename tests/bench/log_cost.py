"""What an event of the access log costs, without kernel and FUSE.

    python -m tests.bench.log_cost

Reads and writes pages of memory in C, with the log and without, in turns; the difference by the
page is an event. Prints one JSON object, in ns.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from typing import Final

from swapfs.region.layout import Geometry, Region
from swapfs.units import PAGE_SIZE, MiB
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.packing import STORE_STEP, Packer

SLOTS: Final = 4096
ROUNDS: Final = 200


class Subject:
    """A layer with *log_bytes* of log. Its pages are zeros, which cost least besides an event."""

    def __init__(self, log_bytes: int) -> None:
        self._region = Region.create(Geometry(SLOTS * PAGE_SIZE, 64 * MiB, log_bytes))
        self._layer = VirtualSlotLayer(self._region)
        self._reader = self._layer.reader(SLOTS * PAGE_SIZE)
        self._source = memoryview(bytes(STORE_STEP * PAGE_SIZE))
        self._packer = Packer()
        self._out = bytearray(STORE_STEP * PAGE_SIZE)
        self.store()

    def store(self) -> None:
        """Write every slot once, a step at a time."""
        for slot in range(0, SLOTS, STORE_STEP):
            self._layer.store_run(slot, self._source, 0, STORE_STEP, self._packer)

    def load(self) -> None:
        """Read every slot once, a step at a time, as the session loop does."""
        step = STORE_STEP * PAGE_SIZE
        for offset in range(0, SLOTS * PAGE_SIZE, step):
            self._reader.read(offset, step, self._out)

    def load_single(self) -> None:
        """Read 1024 slots, one at a time."""
        for offset in range(0, SLOTS * PAGE_SIZE, 4 * PAGE_SIZE):
            self._reader.read(offset, PAGE_SIZE, self._out)


def _time_ns(work: Callable[[], None], pages: int) -> float:
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / pages


def measure() -> dict[str, float]:
    """Return ns a page without the log, and what the log adds, by operation: of the best rounds."""
    found: dict[str, float] = {}
    off, on = Subject(0), Subject(MiB)
    for name, count in (("load", SLOTS), ("load_single", SLOTS // 4), ("store", SLOTS)):
        best = [float("inf")] * 2
        for _ in range(ROUNDS):
            for index, subject in enumerate((off, on)):
                best[index] = min(best[index], _time_ns(getattr(subject, name), count))
        found[f"{name}_ns"] = round(best[0], 1)
        found[f"{name}_event_ns"] = round(best[1] - best[0], 1)
    return found


if __name__ == "__main__":
    gc.disable()
    print(json.dumps(measure(), indent=1))

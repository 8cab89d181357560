"""What storing and loading a page costs in the slot layer, without kernel and FUSE.

    python -m tests.bench.layer_cost CORPUS SLOTS

A process of its own, set up as a server is (C heap, no garbage collection), so that nothing of the
benchmark's disturbs it. Prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from swapfs.region.layout import ZSPAGE_BYTES, Geometry, Region
from swapfs.units import PAGE_SIZE
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.packing import STORE_STEP, Packer

SAMPLES: Final = 20_000
BATCH: Final = 100
_SEED: Final = 3


@dataclass(frozen=True)
class LayerCost:
    """Medians, in microseconds a page."""

    store_us: float
    """Into empty slots, one after the other."""
    load_us: float
    """Of slots at random, one at a time."""
    overwrite_us: float
    """Of slots at random, one at a time, by another page."""
    table_bytes: int
    pool_used_bytes: int


def measure_apart(corpus: Path, slots: int, pool_bytes: int, project: Path) -> LayerCost:
    """Measure in a new process."""
    command = [sys.executable, "-m", __name__, str(corpus), str(slots), str(pool_bytes)]
    done = subprocess.run(
        command,
        cwd=project,
        env={**os.environ, "PYTHONMALLOC": "malloc"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"the slot layer with {slots} slots: {last}")
    return LayerCost(**json.loads(done.stdout))


def measure(source: memoryview, slots: int, pool_bytes: int) -> LayerCost:
    """Fill *slots* slots with the pages of *source*, again and again; then load and overwrite."""
    pool_bytes = -(-pool_bytes // ZSPAGE_BYTES) * ZSPAGE_BYTES
    region = Region.create(Geometry(slots * PAGE_SIZE, pool_bytes))
    layer = VirtualSlotLayer(region, None)
    pages = len(source) // PAGE_SIZE
    gc.collect()
    gc.freeze()
    gc.disable()
    store_us = _fill(layer, source, slots)
    rng = random.Random(_SEED)
    out, packer = memoryview(bytearray(PAGE_SIZE)), Packer()

    def load() -> bool:
        return layer.load_run(rng.randrange(slots), 1, out, 0) == 1

    def overwrite() -> bool:
        position = rng.randrange(pages) * PAGE_SIZE
        return layer.store_run(rng.randrange(slots), source, position, 1, packer) == 1

    return LayerCost(
        store_us,
        _time_each(load),
        _time_each(overwrite),
        layer.table.table_bytes,
        layer.pool.used_bytes,
    )


def _fill(layer: VirtualSlotLayer, source: memoryview, slots: int) -> float:
    packer, pages, times_us, slot = Packer(), len(source) // PAGE_SIZE, [], 0
    while slot < slots:
        first = slot % pages
        count = min(STORE_STEP, slots - slot, pages - first)
        began = time.perf_counter()
        stored = layer.store_run(slot, source, first * PAGE_SIZE, count, packer)
        times_us.append((time.perf_counter() - began) * 1e6 / count)
        if stored < count:
            raise RuntimeError(f"the pool is full after {slot + stored} pages")
        slot += count
    return statistics.median(times_us)


def _time_each(operation: Callable[[], bool]) -> float:
    times_us = []
    for _ in range(SAMPLES // BATCH):
        began = time.perf_counter()
        good = [operation() for _ in range(BATCH)]
        times_us.append((time.perf_counter() - began) * 1e6 / BATCH)
        if not all(good):
            raise RuntimeError("a page could not be stored or loaded")
    return statistics.median(times_us)


def main() -> int:
    """Measure what the command line says."""
    corpus, slots, pool_bytes = sys.argv[1:]
    with open(corpus, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    print(json.dumps(asdict(measure(memoryview(mapped), int(slots), int(pool_bytes)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

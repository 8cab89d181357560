"""What recompression costs and gains in the slot layer, without kernel and FUSE.

    python -m tests.bench.recompress_cost [CORPUS]

Without a corpus the memory of running programs is taken (``corpus.py``). Times are those of the
thread, so that other work on the machine counts less. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from swapfs.core._core import Recoder
from swapfs.region.layout import ZSPAGE_BYTES, Geometry
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.tiers.segments import SEGMENT_BYTES
from swapfs.units import PAGE_SIZE
from swapfs.vlayer.packing import STORE_STEP, Packer
from swapfs.vlayer.recode_staged import StagedRecoder
from tests.bench.corpus import dump

CORPUS_PAGES: Final = 60_000
READS: Final = 20_000
WALKS: Final = 6
"""After a page was read three times, four cool it and the next one takes it."""
_PROJECT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cost:
    """Bytes and microseconds a page, all of one corpus."""

    pages: int
    lz4_bytes: float
    """Of the pool, in zspages, before ..."""
    zstd_bytes: float
    """... and after."""
    payload_lz4_bytes: float
    payload_zstd_bytes: float
    pages_a_second: float
    """Recompressed, by one core."""
    read_lz4_us: float
    read_zstd_us: float
    disk_lz4_bytes: float
    """Written for each page demoted."""
    disk_zstd_bytes: float


def _harness(corpus: memoryview, *, below: bool, recompress: bool = False) -> Harness:
    pages = len(corpus) // PAGE_SIZE
    pool_bytes = -(-pages * PAGE_SIZE // ZSPAGE_BYTES) * ZSPAGE_BYTES
    segments = pages * 5120 // SEGMENT_BYTES + 8
    harness = Harness(
        *(pages, Geometry(pages * PAGE_SIZE, pool_bytes).pool_bytes),
        MemoryTier(segments) if below else None,
    )
    if recompress:
        harness.down.writer.recoder = StagedRecoder([Recoder(3, False)])
    packer = Packer()
    for slot in range(0, pages, STORE_STEP):
        count = min(STORE_STEP, pages - slot)
        assert harness.layer.store_run(slot, corpus, slot * PAGE_SIZE, count, packer) == count
    return harness


def _read_us(harness: Harness, pages: int) -> float:
    out, step = memoryview(bytearray(PAGE_SIZE)), max(1, pages // READS)
    best = 1e9
    for _ in range(5):
        began = time.thread_time()
        for slot in range(0, pages, step):
            harness.layer.load_run(slot, 1, out, 0)
        best = min(best, (time.thread_time() - began) * 1e6 / len(range(0, pages, step)))
    return best


def _disk_bytes(corpus: memoryview, *, recompress: bool) -> float:
    harness = _harness(corpus, below=True, recompress=recompress)
    moved = harness.down.demote(len(corpus) // PAGE_SIZE)
    return harness.counter("file_written_bytes") / moved


def _timed(work: Callable[[], int]) -> tuple[int, float]:
    began = time.thread_time()
    done = work()
    return done, time.thread_time() - began


def measure(corpus: memoryview) -> Cost:
    """Return what recompression makes of *corpus*."""
    pages = len(corpus) // PAGE_SIZE
    harness = _harness(corpus, below=False)
    gc.collect()
    gc.freeze()
    gc.disable()
    before, read_lz4_us = harness.layer.pool.stats(), _read_us(harness, pages)
    walks = [_timed(harness.recompressor.walk) for _ in range(WALKS)]
    turned = sum(done for done, _ in walks)
    seconds = sum(used_s for done, used_s in walks if done)  # the others only cool
    after = harness.layer.pool.stats()
    return Cost(
        pages=pages,
        lz4_bytes=before.used_bytes / pages,
        zstd_bytes=after.used_bytes / pages,
        payload_lz4_bytes=before.payload_bytes / pages,
        payload_zstd_bytes=after.payload_bytes / pages,
        pages_a_second=turned / seconds,
        read_lz4_us=read_lz4_us,
        read_zstd_us=_read_us(harness, pages),
        disk_lz4_bytes=_disk_bytes(corpus, recompress=False),
        disk_zstd_bytes=_disk_bytes(corpus, recompress=True),
    )


def main() -> int:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", nargs="?", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swapfs-corpus-") as folder:
        path = given.corpus or dump(Path(folder), CORPUS_PAGES, _PROJECT).file
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        print(json.dumps(asdict(measure(memoryview(mapped))), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The part "memory": what a stored page costs in RAM, and whether cost grows with what is stored.

The same pages of real programs (corpus.py) are written to swapfs and to zram, each as a block
device. "RAM per stored page" is everything that goes away when the subject does, except for the
part of swapfs' pool that is still free; its parts are figures of their own. The daemon costs some
tens of MiB whatever is stored, so this falls with the number of pages.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs.units import PAGE_SIZE
from tests.bench import corpus as corpus_module
from tests.bench import fixed_memory
from tests.bench.corpus import Corpus
from tests.bench.layer_cost import measure_apart
from tests.bench.names import (
    MEMORY,
    METADATA_PER_SLOT,
    RAM_PER_PAGE,
    REAL_MEMORY,
    SWAPFS,
    ZRAM_LZ4,
    at_count,
)
from tests.bench.process_memory import meminfo, memory_of, together
from tests.bench.record import Plan, Recorder
from tests.bench.subjects import Mounted, UnavailableError, loop_device, swapfs_mount, zram

NAME: Final = MEMORY
STORED: Final = "RAM per stored page, without what is constant"
CONSTANT: Final = "RAM whatever is stored"
COMPRESSION: Final = "compression ratio"
SLAB: Final = "growth of the kernel's slab while filling"

CORPUS_PAGES: Final = 60_000
COUNTS: Final = (10_000, 100_000)
COUNTS_FULL: Final = (10_000, 100_000, 1_000_000)
POOL_MARGIN_BYTES: Final = 16 << 20
POOL_FACTOR: Final = 1.25
MEMORY_SHARE: Final = 0.6
"""Of what is available, no point may take more."""
ZRAM_HANDLE_BYTES: Final = 8
"""zsmalloc keeps a word for each object outside mem_used_total (ZS_HANDLE_SIZE, mm/zsmalloc.c)."""
_ENTRY_PROBE_BYTES: Final = 16 << 30
_ENTRY_BYTES_USUAL: Final = 16
"""struct zram_table_entry without CONFIG_ZRAM_TRACK_ENTRY_ACTIME."""

_SWAPFS_NOTE: Final = "both processes with their page tables, without the free part of the pool"
_ZRAM_NOTE: Final = "mem_used_total, table and handles"


@dataclass(frozen=True)
class Held:
    """RAM in bytes that a subject holds."""

    stored_bytes: int
    """What pages and their table take."""
    constant_bytes: int
    """What is there without pages: processes, page tables, streams."""
    metadata_bytes: int
    """Part of the above: what names the pages and finds room for them."""
    ratio: float
    """Bytes of pages to bytes that lz4 made of them; repeated words left out by both."""
    slab_bytes: int
    metadata_note: str


def run(plan: Plan, recorder: Recorder) -> None:
    """Measure and record."""
    fixed_memory.record(plan, recorder)
    corpus = corpus_module.dump(plan.work, CORPUS_PAGES, plan.project)
    try:
        _describe(corpus, recorder)
        counts = [corpus.pages, *(COUNTS_FULL if plan.full else COUNTS)]
        counts = [count for count in counts if fits(corpus, count, recorder)]
        for number in range(2 if plan.full else 1):
            for index, count in enumerate(counts):
                _hold(plan, recorder, corpus, count, real=index == 0, first=number == 0)
        for _ in range(plan.rounds):
            for count in counts[1:]:
                _cost(plan, recorder, corpus, count)
    finally:
        corpus.file.unlink()


def _describe(corpus: Corpus, recorder: Recorder) -> None:
    recorder.say(corpus.describe())
    recorder.say(corpus.mix.describe())
    for line in corpus.missing:
        program, _, why = line.partition(": ")
        recorder.skip(f"memory of {program}", why)
    mix = corpus.mix
    facts = {
        "zeros": mix.zero,
        "another repeated word": mix.same_filled,
        "incompressible": mix.incompressible,
    }
    for kind, pages in facts.items():
        share = 100 * pages / mix.pages
        recorder.add(REAL_MEMORY, "the corpus", kind, share, "%", better="none")
    for source in corpus.sources:
        recorder.add(
            REAL_MEMORY, "the corpus", f"pages of {source.program}", source.pages, "", better="none"
        )


def pool_bytes(corpus: Corpus, count: int) -> int:
    """Return a pool that holds *count* pages, with room to spare."""
    each = corpus.mix.lz4_bytes / corpus.pages * POOL_FACTOR + 8
    return (int(count * each) + POOL_MARGIN_BYTES) >> 20 << 20


def fits(corpus: Corpus, count: int, recorder: Recorder) -> bool:
    needed, have = pool_bytes(corpus, count), meminfo("MemAvailable")
    if needed <= have * MEMORY_SHARE:
        return True
    recorder.skip(f"{count} pages", f"needs {needed >> 20} MiB of {have >> 20} MiB available")
    return False


# ---- what is held ----


def _hold(
    plan: Plan, recorder: Recorder, corpus: Corpus, count: int, *, real: bool, first: bool
) -> None:
    """Store *count* pages in each subject and record what it holds then."""
    subjects: dict[str, tuple[Callable[[], Held], str]] = {
        SWAPFS: (lambda: hold_in_swapfs(plan.work, corpus, count), _SWAPFS_NOTE),
        ZRAM_LZ4: (lambda: hold_in_zram(corpus, count), _ZRAM_NOTE),
    }
    test = REAL_MEMORY if real else at_count("pages stored", count)
    for subject, (measure, note) in subjects.items():
        try:
            held = measure()
        except UnavailableError as error:
            recorder.skip(subject, str(error))
            continue
        whole = held.stored_bytes + held.constant_bytes
        recorder.add(test, subject, RAM_PER_PAGE, whole / count, "B", note=note)
        recorder.add(test, subject, STORED, held.stored_bytes / count, "B")
        metadata = held.metadata_bytes / count
        recorder.add(test, subject, METADATA_PER_SLOT, metadata, "B", note=held.metadata_note)
        if held.constant_bytes:
            recorder.add(test, subject, CONSTANT, held.constant_bytes / (1 << 20), "MiB")
        recorder.add(test, subject, COMPRESSION, held.ratio, "ratio", better="higher")
        slab_mib = held.slab_bytes / (1 << 20)
        recorder.add(test, subject, SLAB, slab_mib, "MiB", better="none", note="of all programs")
        if first:
            recorder.say(
                f"{count} pages in {subject}: {whole / count:.0f} bytes a page, of which"
                f" {held.stored_bytes / count:.0f} without what is constant"
            )


def hold_in_swapfs(directory: Path, corpus: Corpus, count: int) -> Held:
    """Store *count* pages in a new swapfs instance through a loop device."""
    size, pool = _whole_mib(count * PAGE_SIZE), pool_bytes(corpus, count)
    arguments = ("--overcommit", 1000)
    with (
        swapfs_mount(directory, size_bytes=size, pool_bytes=pool, arguments=arguments) as mounted,
        loop_device(mounted.swap) as device,
    ):
        slab = meminfo("Slab")
        write_pages(device, corpus, count)
        slab = meminfo("Slab") - slab
        return held_by(mounted, count, slab)


def held_by(mounted: Mounted, count: int, slab_bytes: int) -> Held:
    status = mounted.status()
    pool, slots = status["pool"], status["slots"]
    if sum(slots.values()) - slots["empty"] != count:
        raise RuntimeError(f"{count} pages were written, swapfs says {slots}")
    processes = together(memory_of(status["pid"]), memory_of(status["server_pid"]))
    unused = pool["limit_bytes"] - pool["used_bytes"]
    stored = pool["used_bytes"]
    return Held(
        stored_bytes=stored,
        constant_bytes=processes.total_bytes - unused - stored,
        metadata_bytes=status["metadata_bytes"] + status["fixed_bytes"],
        ratio=_ratio(count - slots["same"], status["compr_bytes"]),
        slab_bytes=slab_bytes,
        metadata_note="table in full clusters, directory and lists of the pool",
    )


def hold_in_zram(corpus: Corpus, count: int) -> Held:
    """Store *count* pages in a new zram device."""
    entry, how = zram_entry_bytes()
    with zram(count * PAGE_SIZE, "lz4") as device:
        slab = meminfo("Slab")
        write_pages(device, corpus, count)
        slab = meminfo("Slab") - slab
        values = Path(f"/sys/block/{device.name}/mm_stat").read_text().split()
    orig, compressed, used, same = (int(values[index]) for index in (0, 1, 2, 5))
    if orig != count * PAGE_SIZE:
        raise RuntimeError(f"{count} pages were written, zram says {orig // PAGE_SIZE}")
    metadata = count * entry + (count - same) * ZRAM_HANDLE_BYTES
    return Held(
        stored_bytes=used + metadata,
        constant_bytes=0,  # streams and classes: some 100 KiB, nowhere shown
        metadata_bytes=metadata,
        ratio=_ratio(count - same, compressed),
        slab_bytes=slab,
        metadata_note=f"table of {entry} bytes a slot ({how}) and zsmalloc's handles",
    )


def zram_entry_bytes() -> tuple[int, str]:
    """Return the bytes of zram's table for one slot, and how that is known.

    A large device is made, and what the kernel allocates for it is looked at.
    """

    def once() -> float:
        before = meminfo("VmallocUsed")
        with zram(_ENTRY_PROBE_BYTES, "lz4"):
            grown = meminfo("VmallocUsed") - before
        return grown / (_ENTRY_PROBE_BYTES // PAGE_SIZE)

    # Others allocate too, but nothing like the 64 MiB of this table; it is whole words.
    found = round(statistics.median(once() for _ in range(3)) / 8) * 8
    if 8 <= found <= 64:
        return found, "measured"
    return _ENTRY_BYTES_USUAL, "from the kernel's source; measuring failed"


def write_pages(device: Path, corpus: Corpus, count: int) -> None:
    """Write the first *count* pages of *corpus* to *device*, past the page cache."""
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        offset = 0
        with corpus.chunks(count) as chunks:
            for chunk in chunks:
                if os.pwrite(fd, chunk, offset) != len(chunk):
                    raise RuntimeError(f"{device}: a short write at {offset}")
                offset += len(chunk)
    finally:
        os.close(fd)


def _ratio(pages: int, compressed_bytes: int) -> float:
    return pages * PAGE_SIZE / compressed_bytes


def _whole_mib(size_bytes: int) -> int:
    return -(-size_bytes // (1 << 20)) << 20


# ---- what an operation costs ----


def _cost(plan: Plan, recorder: Recorder, corpus: Corpus, count: int) -> None:
    """Record what a page costs in the slot layer that holds *count* of them."""
    cost = measure_apart(corpus.file, count, pool_bytes(corpus, count), plan.project)
    test = at_count("slots in the layer", count)
    recorder.add(test, SWAPFS, "store", cost.store_us, "us")
    recorder.add(test, SWAPFS, "load", cost.load_us, "us")
    recorder.add(test, SWAPFS, "overwrite", cost.overwrite_us, "us")
    recorder.add(test, SWAPFS, "table per slot", cost.table_bytes / count, "B")

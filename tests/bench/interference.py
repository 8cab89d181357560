"""Part "interference": what other work of swapfs costs a read of a page that is in memory.

A few pages are read at random, one at a time, through a loop device: with nothing else going on,
while a client scrapes the metrics, while pages that nobody reads are demoted at full speed, and
while a program writes. All take turns, so that a percentile can be divided by that of the idle
instance in the same round. Every read must have been answered from memory; it is checked.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from swapfs.units import PAGE_SIZE, MiB
from tests.bench import contents, fio, names, subjects
from tests.bench.record import Better, Plan, Recorder

NAME: Final = names.INTERFERENCE

TEST: Final = names.random_read(4)
MEANWHILE: Final = "what ran during the reads"
SCRAPED_SELDOM: Final = "swapfs, scraped 1/s"
WRITING: Final = "swapfs, written to"
BUSY: Final = "swapfs, other program on one CPU"
P999: Final = "p99.9"

SIZE_BYTES: Final = 640 * MiB
POOL_BYTES: Final = 384 * MiB
"""Holds all of SIZE_BYTES below its high watermark: nothing is demoted unasked."""
TIER_BYTES: Final = 832 * MiB
READ_BYTES: Final = MiB
"""So little that each page is read often, and the clock hand never finds one cold."""
DEMOTED_AT_ONCE: Final = 2000
WRITE_KIB: Final = 256
"""What the kernel merges swap-out into."""

_COLD_SHARE: Final = 0.75
"""Part of the cold pages that one measurement may use up."""
_FIO_START_S: Final = 0.6
_FROM_FILE_MAX: Final = 0.002
"""Part of the reads that the file may have answered; below what p99 can show."""
_SCRAPE_TIMEOUT_S: Final = 10.0
_MB: Final = 1_000_000


@dataclass
class Instance:
    """The instance that is read, and what the other work needs."""

    mounted: subjects.Mounted
    device: Path
    data: Path
    writer: fio.Writer
    seconds: float = 0.0
    """Length of one measurement."""


@dataclass
class Meanwhile:
    """Something that runs during a measurement, and what it found out of itself."""

    stop: threading.Event = field(default_factory=threading.Event)
    samples: list[float] = field(default_factory=list)
    failure: Exception | None = None


@dataclass(frozen=True)
class Load:
    """One kind of other work. It is called with the instance and where to note samples."""

    subject: str
    work: Callable[[Instance, Meanwhile], None] | None
    metric: str = ""
    unit: str = ""
    total: bool = False
    """Whether samples add up to a speed; else their median counts."""


def run(plan: Plan, recorder: Recorder) -> None:
    """Read in turns under each load."""
    try:
        subjects.need_root()
        subjects.need_tools("fio", "dd", "losetup")
    except subjects.UnavailableError as error:
        for load in LOADS:
            recorder.skip(load.subject, str(error))
        return
    with ExitStack() as stack:
        instance = stack.enter_context(_instance(plan.work))
        instance.seconds = _seconds(instance, plan.seconds)
        recorder.say(f"each measurement takes {instance.seconds:.2f} s")
        for number in range(plan.rounds):
            recorder.say(f"round {number + 1} of {plan.rounds}")
            for load in LOADS if number % 2 == 0 else reversed(LOADS):
                _measure(instance, load, recorder)


def _measure(instance: Instance, load: Load, recorder: Recorder) -> None:
    if load.subject == names.DEMOTING:
        contents.fill(instance.device, instance.data)
    _warm(instance)
    before = instance.mounted.status()["counters"]
    with _running(load, instance) as meanwhile:
        started = time.monotonic()
        done_before = len(meanwhile.samples)
        centiles = _reads(instance)
        took_s, done = time.monotonic() - started, meanwhile.samples[done_before:]
        after = instance.mounted.status()["counters"]
    _check(load.subject, before, after)
    for metric, value in centiles.items():
        recorder.add(TEST, load.subject, metric, value, "us")
    if load.metric:
        value = sum(done) / took_s if load.total else statistics.median(meanwhile.samples)
        better: Better = "higher" if load.total else "lower"
        recorder.add(MEANWHILE, load.subject, load.metric, value, load.unit, better=better)


def _check(subject: str, before: dict[str, int], after: dict[str, int]) -> None:
    """Refuse figures of something else than reads from memory."""
    reads = {key: after[key] - before[key] for key in ("read_pool_pages", "read_same_pages")}
    from_file = after["read_file_pages"] - before["read_file_pages"]
    if from_file > sum(reads.values()) * _FROM_FILE_MAX:
        raise RuntimeError(f"{subject}: {from_file} reads came from the file, {reads} did not")
    demoted = after["demoted_pages"] - before["demoted_pages"]
    if (demoted > 0) != (subject == names.DEMOTING):
        raise RuntimeError(f"{subject}: {demoted} pages were demoted meanwhile")


# ---- the other work ----


def _scrape(rate: float) -> Callable[[Instance, Meanwhile], None]:
    """Scrape *rate* times a second, and note how long each took in ms."""

    def work(instance: Instance, meanwhile: Meanwhile) -> None:
        due = time.monotonic()
        while not meanwhile.stop.wait(max(0.0, due - time.monotonic())):
            started = time.monotonic()
            url = instance.mounted.metrics_url
            with urllib.request.urlopen(url, timeout=_SCRAPE_TIMEOUT_S) as answer:
                answer.read()
            meanwhile.samples.append((time.monotonic() - started) * 1000)
            due += 1 / rate

    return work


def _demote(instance: Instance, meanwhile: Meanwhile) -> None:
    """Have cold pages demoted without a pause, and note MB."""
    while not meanwhile.stop.is_set():
        pages = instance.mounted.demote(DEMOTED_AT_ONCE)
        if not pages:
            raise RuntimeError("no cold page was left to demote")
        meanwhile.samples.append(pages * PAGE_SIZE / _MB)


def _write(instance: Instance, meanwhile: Meanwhile) -> None:
    """Write anywhere for longer than the reads take, and note MiB/s."""
    measured = instance.writer.random_writes(
        instance.device,
        instance.data,
        block_kib=WRITE_KIB,
        depth=1,
        seconds=instance.seconds + _FIO_START_S,
    )
    meanwhile.samples.append(measured.mib_per_s)


def _burn(instance: Instance, meanwhile: Meanwhile) -> None:
    """Keep a processor busy with something that has nothing to do with swapfs."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as program:
        try:
            meanwhile.stop.wait()
        finally:
            program.kill()


LOADS: Final = (
    Load(names.IDLE, None),
    Load(SCRAPED_SELDOM, _scrape(1), "scrape", "ms"),
    Load(names.SCRAPING, _scrape(10), "scrape", "ms"),
    Load(names.DEMOTING, _demote, "pages moved", "MB/s", total=True),
    Load(WRITING, _write, names.THROUGHPUT, "MiB/s"),
    Load(BUSY, _burn),
)
"""The last is for comparison: what any neighbour costs, through the scheduler alone."""


@contextmanager
def _running(load: Load, instance: Instance) -> Iterator[Meanwhile]:
    """Run *load* in a thread; its failure is that of the measurement."""
    meanwhile, work = Meanwhile(), load.work
    if work is None:
        yield meanwhile
        return

    def guarded() -> None:
        try:
            work(instance, meanwhile)
        except Exception as error:  # noqa: BLE001 - raised again below, in the caller's thread
            meanwhile.failure = error

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield meanwhile
    finally:
        meanwhile.stop.set()
        thread.join()
    if meanwhile.failure is not None:
        raise RuntimeError(f"{load.subject}: {meanwhile.failure}") from meanwhile.failure


# ---- the instance and its reads ----


@contextmanager
def _instance(work: Path) -> Iterator[Instance]:
    with ExitStack() as stack:
        data, writer = contents.mixed(work), fio.Writer(work)
        mounted = stack.enter_context(
            subjects.swapfs_mount(
                work,
                size_bytes=SIZE_BYTES,
                pool_bytes=POOL_BYTES,
                file=f"{work / 'tier'}:{TIER_BYTES}",
                metrics=True,
            )
        )
        device = stack.enter_context(subjects.loop_device(mounted.swap))
        contents.fill(device, data)
        yield Instance(mounted, device, data, writer)


def _seconds(instance: Instance, wanted: float) -> float:
    """Return how long a measurement may take before every cold page has been demoted."""
    slots = instance.mounted.status()["slots"]
    cold: int = slots["compressed"] + slots["raw"]
    started = time.monotonic()
    moved = instance.mounted.demote(cold // 8)
    rate = moved / (time.monotonic() - started)
    contents.fill(instance.device, instance.data)
    return max(0.2, min(wanted, cold * _COLD_SHARE / rate - _FIO_START_S))


def _warm(instance: Instance) -> None:
    """Have the pages that will be read in memory, and the clock hand just past them."""
    instance.mounted.demote(1)
    subjects.run(
        "dd", f"if={instance.data}", f"of={instance.device}", "bs=1M",
        f"count={READ_BYTES // MiB}", "oflag=direct", "conv=notrunc", "status=none",
    )  # fmt: skip


def _reads(instance: Instance) -> dict[str, float]:
    """Read at random; return percentiles in microseconds."""
    done = fio.random_reads(
        instance.device, block_kib=4, depth=1, seconds=instance.seconds, first_bytes=READ_BYTES
    )
    assert done.p999_us is not None
    return {names.P50: done.p50_us, names.P99: done.p99_us, P999: done.p999_us}

"""The part "scale": what depends on the size of the swap file, on the pool, and on what is used.

Three curves. Over the virtual size and over the pool: how long `swapfs mount` takes until it
serves, and what its processes hold. Over the slots in use: what they hold then, how long a reader
waits when the server is killed, and what a read takes. The slots are filled with repeated words,
which need 8 bytes each, and with pages that compress to a few bytes, so that many of them fit into
little memory.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import random
import signal
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.names import P50, SCALE, SWAPFS, SWAPFS_POOL, at_bytes, at_count
from tests.bench.process_memory import meminfo, memory_of, together
from tests.bench.record import Plan, Recorder
from tests.bench.subjects import Mounted, loop_device, swapfs_mount

NAME: Final = SCALE
START: Final = "start time"
RSS_SERVER: Final = "RSS, server"
RSS_MONITOR: Final = "RSS, monitor"
BESIDES: Final = "RAM besides the pool, both"
RECOVERY: Final = "recovery time"
READ: Final = f"4 KiB read, {P50}"
SWAPFS_SAME: Final = "swapfs same-filled"

MiB: Final = 1 << 20
GiB: Final = 1 << 30
SIZES: Final = (64 * MiB, GiB, 64 * GiB, 1024 * GiB)
SMALL_POOL_BYTES: Final = 64 * MiB
POOLS: Final = (64 * MiB, GiB)
POOLS_FULL: Final = (64 * MiB, 256 * MiB, GiB, 4 * GiB)
STARTS: Final = 2
"""Of each size, unless the plan is full: a start takes a second."""
LEVELS: Final = (1 << 16, 1 << 18, 1 << 20)
LEVELS_FULL: Final = (1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
SLOW_LEVEL: Final = 1 << 20
"""Above it a server is killed once and not once a round."""
MEMORY_SHARE: Final = 0.6
"""Of what is available, no point may take more."""
READS: Final = 1500
PLACES: Final = 16
"""MiB written, spread over a file of any size."""
PAGE_SIZE: Final = 4096
LIVED_S: Final = 0.5
"""So long a server has lived before it is killed: to restart one that dies at once, the monitor
takes its time."""
END_TIMEOUT_S: Final = 10.0
RECOVERY_TIMEOUT_S: Final = 300.0
_SEED: Final = 5


@dataclass(frozen=True)
class Kind:
    """What slots are filled with."""

    subject: str
    page: bytes
    bytes_per_slot: int
    """Of the pool, table and all, rounded up."""


KINDS: Final = (
    Kind(SWAPFS_SAME, struct.pack("<Q", 0x5A5A) * 512, 10),
    Kind(SWAPFS_POOL, struct.pack("<QQ", 1, 2).ljust(2048, b"\0") * 2, 80),
)


def run(plan: Plan, recorder: Recorder) -> None:
    """Measure and record."""
    for number in range(plan.rounds if plan.full else STARTS):
        for size_bytes in SIZES:
            _at_size(plan, recorder, size_bytes)
        if number == 0 or plan.full:
            for pool_bytes in POOLS_FULL if plan.full else POOLS:
                _at_pool(plan, recorder, pool_bytes)
    recorder.say("started with every size")
    for kind in KINDS:
        _over_slots(plan, recorder, kind)


@contextlib.contextmanager
def timed_mount(
    directory: Path, size_bytes: int, pool_bytes: int
) -> Iterator[tuple[Mounted, float]]:
    """Mount; give the instance, and the seconds until the command said that it serves."""
    arguments = ("--overcommit", max(1, 2 * size_bytes // pool_bytes + 2))
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        mounted = stack.enter_context(
            swapfs_mount(
                directory, size_bytes=size_bytes, pool_bytes=pool_bytes, arguments=arguments
            )
        )
        yield mounted, time.monotonic() - began


def fits(recorder: Recorder, what: str, needed_bytes: int) -> bool:
    have = meminfo("MemAvailable")
    if needed_bytes <= have * MEMORY_SHARE:
        return True
    recorder.skip(what, f"needs {needed_bytes // MiB} MiB of {have // MiB} MiB available")
    return False


# ---- over sizes ----


def _at_size(plan: Plan, recorder: Recorder, size_bytes: int) -> None:
    test = at_bytes("virtual size", size_bytes)
    with timed_mount(plan.work, size_bytes, SMALL_POOL_BYTES) as (mounted, started_s):
        recorder.add(test, SWAPFS, START, started_s, "s")
        _record_memory(recorder, test, SWAPFS, mounted)
        step = (size_bytes - MiB) // (PLACES - 1) // MiB * MiB
        places = [number * step for number in range(PLACES)]
        page = KINDS[1].page
        write(mounted.swap, page, places)
        recovery_ms = 1000 * recover(mounted, places[-1], page)
        recorder.add(test, SWAPFS, RECOVERY, recovery_ms, "ms")
        with loop_device(mounted.swap) as device:
            recorder.add(test, SWAPFS, READ, read_p50_us(device, places), "us")


def _at_pool(plan: Plan, recorder: Recorder, pool_bytes: int) -> None:
    if not fits(recorder, f"a pool of {pool_bytes // MiB} MiB", pool_bytes):
        return
    test = at_bytes("pool", pool_bytes)
    with timed_mount(plan.work, 2 * pool_bytes, pool_bytes) as (mounted, started_s):
        recorder.add(test, SWAPFS, START, started_s, "s")
        _record_memory(recorder, test, SWAPFS, mounted)


# ---- over used slots ----


def _over_slots(plan: Plan, recorder: Recorder, kind: Kind) -> None:
    levels = [
        level
        for level in (LEVELS_FULL if plan.full else LEVELS)
        if fits(recorder, f"{level} slots, {kind.subject}", level * kind.bytes_per_slot)
    ]
    if not levels:
        return
    size_bytes = levels[-1] * PAGE_SIZE
    pool_bytes = levels[-1] * kind.bytes_per_slot // MiB * MiB + 16 * MiB
    with (
        timed_mount(plan.work, size_bytes, pool_bytes) as (mounted, _),
        loop_device(mounted.swap) as device,
    ):
        filled = 0
        for level in levels:
            write(mounted.swap, kind.page, range(filled * PAGE_SIZE, level * PAGE_SIZE, MiB))
            filled = level
            check_used(mounted, level)
            _at_level(plan, recorder, kind, mounted, device, level)


def _at_level(
    plan: Plan, recorder: Recorder, kind: Kind, mounted: Mounted, device: Path, level: int
) -> None:
    test = at_count("used slots", level)
    places = range(0, level * PAGE_SIZE, MiB)
    for _ in range(plan.rounds if level <= SLOW_LEVEL else 1):
        recorder.add(test, kind.subject, READ, read_p50_us(device, places), "us")
        recovery_ms = 1000 * recover(mounted, places[-1], kind.page)
        recorder.add(test, kind.subject, RECOVERY, recovery_ms, "ms")
        _record_memory(recorder, test, kind.subject, mounted)
    check_used(mounted, level)
    recorder.say(f"{level} slots, {kind.subject}: {recovery_ms:.0f} ms until the next server reads")


def check_used(mounted: Mounted, slots: int) -> None:
    """Raise unless *slots* slots are in use: else something else was measured."""
    found = mounted.status()["slots"]
    if (used := sum(found.values()) - found["empty"]) != slots:
        raise RuntimeError(f"{used} slots are in use, not {slots}")


# ---- measuring ----


def _record_memory(recorder: Recorder, test: str, subject: str, mounted: Mounted) -> None:
    status = mounted.status()
    monitor, server = memory_of(status["pid"]), memory_of(status["server_pid"])
    recorder.add(test, subject, RSS_SERVER, server.rss_bytes / MiB, "MiB")
    recorder.add(test, subject, RSS_MONITOR, monitor.rss_bytes / MiB, "MiB")
    besides = together(monitor, server).total_bytes - status["pool"]["limit_bytes"]
    recorder.add(test, subject, BESIDES, besides / MiB, "MiB")


def recover(mounted: Mounted, offset: int, expected: bytes) -> float:
    """Kill the server; return the seconds until a read of the page at *offset* is answered."""
    pid = mounted.server_pid
    time.sleep(max(0.0, LIVED_S - age_s(pid)))
    fd = os.open(mounted.swap, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        page = read_in_time(fd, offset)
        took_s = time.monotonic() - began
    finally:
        os.close(fd)
    if page != expected:
        raise RuntimeError(f"after a crash the page at {offset} is not what was written")
    if mounted.server_pid == pid:
        raise RuntimeError("the server that was killed still serves")
    return took_s


def age_s(pid: int) -> float:
    """Return how long ago process *pid* was made."""
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def read_in_time(fd: int, offset: int) -> bytes:
    """Return the page at *offset*; raise if nobody answers, so that the caller can unmount."""
    answers: queue.SimpleQueue[tuple[bytes, str]] = queue.SimpleQueue()

    def read() -> None:
        buffer = mmap.mmap(-1, PAGE_SIZE)
        try:
            size = os.preadv(fd, [buffer], offset)
        except OSError as error:
            answers.put((b"", f"a read after a crash failed: {error.strerror}"))
        else:
            answers.put((buffer[:size], ""))

    threading.Thread(target=read, daemon=True).start()
    try:
        page, problem = answers.get(timeout=RECOVERY_TIMEOUT_S)
    except queue.Empty:
        raise RuntimeError(f"no answer {RECOVERY_TIMEOUT_S:g} s after a crash") from None
    if problem:
        raise RuntimeError(problem)
    return page


def wait_for_end(pid: int) -> None:
    """Return when *pid* runs no more; its monitor may not have reaped it yet."""
    deadline = time.monotonic() + END_TIMEOUT_S
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            if time.monotonic() > deadline:
                raise RuntimeError("a killed server does not end")
            time.sleep(0.0005)


def read_p50_us(device: Path, places: range | list[int]) -> float:
    """Return the median of 4 KiB reads, one at a time, at random in the MiBs at *places*."""
    rng, times_ns = random.Random(_SEED), []
    with _direct(device, os.O_RDONLY) as (fd, buffer), memoryview(buffer)[:PAGE_SIZE] as page:
        for _ in range(READS):
            offset = rng.choice(places) + rng.randrange(MiB // PAGE_SIZE) * PAGE_SIZE
            began = time.perf_counter_ns()
            size = os.preadv(fd, [page], offset)
            times_ns.append(time.perf_counter_ns() - began)
            if size != PAGE_SIZE:
                raise RuntimeError(f"{device}: a short read at {offset}")
    return statistics.median(times_ns) / 1000


def write(file: Path, page: bytes, places: range | list[int]) -> None:
    """Write *page* again and again into the MiBs at *places*."""
    with _direct(file, os.O_WRONLY) as (fd, buffer):
        buffer[:] = page * (MiB // PAGE_SIZE)
        for offset in places:
            if os.pwrite(fd, buffer, offset) != MiB:
                raise RuntimeError(f"{file}: a short write at {offset}")


@contextlib.contextmanager
def _direct(file: Path, flags: int) -> Iterator[tuple[int, mmap.mmap]]:
    """Open *file* past the page cache; give a descriptor and a buffer of 1 MiB."""
    fd = os.open(file, flags | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, MiB) as buffer:
            yield fd, buffer
    finally:
        os.close(fd)

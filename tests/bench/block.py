"""Part "block": swapfs as a block device, beside what else could be swapped on.

Every subject holds pages of the same mix, except those that are named after what they hold, and is
read and overwritten at random by the same programs in turns: for each round, for each test, each
subject. No swap is turned on. What swapfs, nbdkit and the C server burn is read from /proc.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs.units import MiB
from tests.bench import contents, fio, names, subjects
from tests.bench.record import Plan, Recorder

NAME: Final = names.BLOCK
SIZE_BYTES: Final = 128 * MiB
"""Of each device."""
SMALL_POOL_BYTES: Final = 24 * MiB
"""Of the instance whose pages are in the file: writing soon means demoting."""
DEMOTE_PAGES: Final = 1 << 20
CPU_PER_OPERATION: Final = "CPU per op"
_CPU_NOTE: Final = "of the serving process; kernel threads and the caller not counted"
_FILE_SHARE_MIN: Final = 0.9
"""Least share of reads that the file must have answered: same-filled pages never go there."""


@dataclass(frozen=True)
class Test:
    """One kind of load."""

    name: str
    kib: int
    depth: int
    writes: bool = False
    every_class: bool = True
    """Whether the instances that hold one class of pages only take part too."""


TESTS: Final = (
    Test(names.random_read(4), 4, 1),
    Test(names.random_read(32), 32, 1, every_class=False),
    Test(names.random_read(32, 16), 32, 16),
    Test(names.random_read(128, 16), 128, 16, every_class=False),
    Test(names.random_write(4), 4, 1, writes=True),
    Test(names.random_write(32, 16), 32, 16, writes=True),
    Test(names.random_write(128, 16), 128, 16, writes=True, every_class=False),
)
"""Reads first: writes bring the pages of the file tier back to memory."""


@dataclass(frozen=True)
class Subject:
    """A device that is up, filled, and what it says it is."""

    name: str
    device: Path
    data: Path
    pid: int | None = None
    """The process that serves it, if one does."""
    reading: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    """Entered around each read test."""
    one_class: bool = False
    write_note: str = ""


def run(plan: Plan, recorder: Recorder) -> None:
    """Measure every subject that this machine can have."""
    try:
        subjects.need_tools("fio")
        writer = fio.Writer(plan.work)
    except subjects.UnavailableError as error:
        recorder.skip("every subject", str(error))
        return
    with ExitStack() as stack:
        ready = list(_bring_up(plan.work, stack, recorder))
        for number in range(plan.rounds):
            recorder.say(f"round {number + 1} of {plan.rounds}")
            for test in TESTS:
                taking_part = [s for s in ready if test.every_class or not s.one_class]
                # Whoever is first meets the machine as the last one left it: take turns.
                for subject in taking_part if number % 2 == 0 else reversed(taking_part):
                    _measure(test, subject, plan, writer, recorder)


def _measure(
    test: Test, subject: Subject, plan: Plan, writer: fio.Writer, recorder: Recorder
) -> None:
    """Run *test* on *subject* once; throughput settles sooner than percentiles do."""
    seconds = plan.seconds if test.depth == 1 else plan.seconds / 3
    with contextlib.nullcontext() if test.writes else subject.reading():
        cpu_before = subjects.cpu_seconds(subject.pid) if subject.pid else 0.0
        if test.writes:
            measured = writer.random_writes(
                subject.device, subject.data, block_kib=test.kib, depth=test.depth, seconds=seconds
            )
        else:
            measured = fio.random_reads(
                subject.device, block_kib=test.kib, depth=test.depth, seconds=seconds
            )
        cpu = subjects.cpu_seconds(subject.pid) - cpu_before if subject.pid else None
    note = subject.write_note if test.writes else ""
    if test.depth == 1:
        for metric, value in ((names.P50, measured.p50_us), (names.P99, measured.p99_us)):
            recorder.add(test.name, subject.name, metric, value, "us", note=note)
    else:
        speed = measured.mib_per_s
        recorder.add(
            test.name, subject.name, names.THROUGHPUT, speed, "MiB/s", better="higher", note=note
        )
    if cpu is not None:
        each_us = cpu / measured.operations * 1e6
        recorder.add(test.name, subject.name, CPU_PER_OPERATION, each_us, "us", note=_CPU_NOTE)


def _bring_up(work: Path, stack: ExitStack, recorder: Recorder) -> Iterator[Subject]:
    """Start, fill and check every subject; skip what cannot be here."""
    mixed = contents.mixed(work)
    same, noise = contents.same_filled(work), contents.incompressible(work)
    makers: dict[str, Callable[[str], Subject]] = {
        # The two that a target compares come one after the other: the machine changes.
        names.SWAPFS_POOL: lambda name: _swapfs(name, work, stack, mixed, "compressed"),
        names.FLOOR: lambda name: _floor(name, work, stack, mixed),
        "swapfs same-filled": lambda name: _swapfs(name, work, stack, same, "same"),
        "swapfs incompressible": lambda name: _swapfs(name, work, stack, noise, "raw"),
        names.ZRAM_LZ4: lambda name: _zram(name, stack, mixed),
        names.SWAPFS_FILE: lambda name: _swapfs_file(name, work, stack, mixed),
        "loop on file": lambda name: _loop_on_file(name, work, stack, mixed),
        "nbdkit malloc": lambda name: _nbdkit(name, work, stack, mixed, "malloc"),
        "nbdkit zstd": lambda name: _nbdkit(name, work, stack, mixed, "zstd"),
    }
    for name, make in makers.items():
        try:
            subject = make(name)
        except subjects.UnavailableError as error:
            recorder.skip(name, str(error))
        else:
            recorder.say(f"{name} is up")
            yield subject


def _swapfs(name: str, work: Path, stack: ExitStack, data: Path, state: str) -> Subject:
    """Everything in memory; most slots must be in *state*, and none in a file."""
    mounted = stack.enter_context(
        subjects.swapfs_mount(work, size_bytes=SIZE_BYTES, pool_bytes=SIZE_BYTES + 16 * MiB)
    )
    device = stack.enter_context(subjects.loop_device(mounted.swap))
    _fill(device, data)
    slots = mounted.status()["slots"]
    if slots[state] < sum(slots.values()) * 0.8 or slots["empty"] or slots["file"]:
        raise RuntimeError(f"{name}: slots are {slots}")
    return Subject(name, device, data, mounted.server_pid, one_class=state != "compressed")


def _swapfs_file(name: str, work: Path, stack: ExitStack, data: Path) -> Subject:
    """Pages in a file on the disk, behind a pool that is small beside them."""
    subjects.need_disk(work)
    mounted = stack.enter_context(
        subjects.swapfs_mount(
            work,
            size_bytes=SIZE_BYTES,
            pool_bytes=SMALL_POOL_BYTES,
            # Room for every page even if none compresses, and for the writes meanwhile.
            file=f"{work / 'tier'}:{SIZE_BYTES * 3 // 2}",
            arguments=["--file-direct-io", "on"],
        )
    )
    device = stack.enter_context(subjects.loop_device(mounted.swap))
    _fill(device, data)
    return Subject(
        name,
        device,
        data,
        mounted.server_pid,
        reading=lambda: _from_file(name, mounted),
        write_note=f"into a pool of {SMALL_POOL_BYTES // MiB} MiB, which is demoted meanwhile",
    )


@contextlib.contextmanager
def _from_file(name: str, mounted: subjects.Mounted) -> Iterator[None]:
    """Put every page into the file, and check that it answered the reads of the block."""
    for _ in range(100):
        before = mounted.status()
        if before["slots"]["compressed"] + before["slots"]["raw"] == 0:
            break
        mounted.demote(DEMOTE_PAGES)
    else:
        raise RuntimeError(f"{name}: pages stay in memory: {before['slots']}")
    yield
    after, before = mounted.status()["counters"], before["counters"]
    answered = [key for key in after if key.startswith("read_") and "ahead" not in key]
    reads = {key: after[key] - before[key] for key in answered}
    del reads["read_bytes"]
    if reads["read_file_pages"] < sum(reads.values()) * _FILE_SHARE_MIN:
        raise RuntimeError(f"{name}: reads came from elsewhere: {reads}")


def _floor(name: str, work: Path, stack: ExitStack, data: Path) -> Subject:
    """The C server, which reads zeros whatever is written."""
    served = stack.enter_context(subjects.noop_server(work, SIZE_BYTES))
    device = stack.enter_context(subjects.loop_device(served.path))
    return Subject(name, device, data, served.pid)


def _zram(name: str, stack: ExitStack, data: Path) -> Subject:
    device = stack.enter_context(subjects.zram(SIZE_BYTES, "lz4"))
    _fill(device, data)
    sysfs = Path("/sys/block", device.name)
    algorithm = (sysfs / "comp_algorithm").read_text()
    stored = int((sysfs / "mm_stat").read_text().split()[0])
    if "[lz4]" not in algorithm or stored != SIZE_BYTES:
        raise RuntimeError(f"{name}: {algorithm.strip()}, {stored} bytes stored")
    return Subject(name, device, data)


def _loop_on_file(name: str, work: Path, stack: ExitStack, data: Path) -> Subject:
    """A swap file as it is: no compression, same file system as the tier's file."""
    subjects.need_disk(work)
    file = stack.enter_context(subjects.plain_file(work, SIZE_BYTES))
    device = stack.enter_context(subjects.loop_device(file))
    _fill(device, data)
    return Subject(name, device, data)


def _nbdkit(name: str, work: Path, stack: ExitStack, data: Path, allocator: str) -> Subject:
    served = stack.enter_context(subjects.nbdkit(work, SIZE_BYTES, allocator))
    _fill(served.path, data)
    return Subject(name, served.path, data, served.pid)


def _fill(device: Path, data: Path) -> None:
    contents.fill(device, data)
    contents.verify(device, data)

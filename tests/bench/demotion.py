"""Part "demotion": what it costs to move cold pages from the pool to the disk.

Two tests on instances that hold pages in the usual mix. *At rest*: the pool is filled, and most of
it is demoted on request with nothing else to do, in turns with ``dd`` to another part of the same
file. *Under load*: random writes keep the pool above its high watermark, so that demotion, cleaning
and direct writes happen as they do when a machine swaps. A third test takes the seal by itself.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from swapfs.tiers.aead import KEY_BYTES, AeadSeal
from swapfs.tiers.seal import ChecksumSeal, Seal
from swapfs.units import PAGE_SIZE, MiB
from swapfs.vlayer.codec import compress
from tests.bench import contents, fio, names, subjects, threads
from tests.bench.demotion_readings import LOOK_EVERY_S, Change, Reading, Subject, write_sizes
from tests.bench.record import Better, Plan, Recorder

NAME: Final = names.DEMOTION

AT_REST: Final = "demotion at rest"
UNDER_LOAD: Final = "demotion under load"
SEALING: Final = "seal of one page"
ENCRYPTED: Final = "swapfs, AES-256-GCM"
CHECKED: Final = "swapfs, CRC-32"
ON_DEVICE: Final = "swapfs, block device"
DD: Final = "dd to the same file"

SIZE_BYTES: Final = 384 * MiB
POOL_BYTES: Final = 128 * MiB
TIER_BYTES: Final = 512 * MiB
FILLED_BYTES: Final = 192 * MiB
"""Written before demotion at rest: some 70 % of the pool, so nothing is demoted unasked."""
DEMOTED_PAGES: Final = 36_000
"""Of the 46,000 that FILLED_BYTES puts into the pool (the rest repeats one word)."""
DD_BYTES: Final = 64 * MiB
"""About what those pages come to on the disk."""
LOAD_KIB: Final = 256
"""What the kernel merges swap-out into."""
_SETTLE_S: Final = 0.1
_SEALED_PAGES: Final = 2000

_DISK_NOTE: Final = "what the block layer was given / pages moved down, uncompressed"
_CPU_NOTE: Final = "of the thread that demotes"
_DD_NOTE: Final = "MB that reach the disk; dd if=RANDOM bs=1M oflag=direct conv=notrunc"
_MB: Final = 1_000_000


def run(plan: Plan, recorder: Recorder) -> None:
    """Measure demotion to a file, sealed in both ways, and to a block device."""
    try:
        subjects.need_root()
        subjects.need_tools("dd", "losetup")
        subjects.need_disk(plan.work)
    except subjects.UnavailableError as error:
        for name in (ENCRYPTED, CHECKED, ON_DEVICE, DD):
            recorder.skip(name, str(error))
    else:
        _measure(plan, recorder)
    data = contents.mixed(plan.work)
    for _ in range(plan.rounds):
        _seals(data, recorder)


def _measure(plan: Plan, recorder: Recorder) -> None:
    with ExitStack() as stack:
        data, noise = contents.mixed(plan.work), _noise(plan.work)
        writer = fio.Writer(plan.work)
        files = {
            ENCRYPTED: stack.enter_context(_written_file(plan.work, TIER_BYTES + DD_BYTES)),
            CHECKED: stack.enter_context(_written_file(plan.work, TIER_BYTES)),
        }
        ready = [
            stack.enter_context(_mounted(ENCRYPTED, plan.work, files[ENCRYPTED], data)),
            stack.enter_context(
                _mounted(CHECKED, plan.work, files[CHECKED], data, "--no-file-encryption")
            ),
        ]
        under = stack.enter_context(_written_file(plan.work, TIER_BYTES))
        disk = stack.enter_context(subjects.loop_device(under))
        ready.append(stack.enter_context(_mounted(ON_DEVICE, plan.work, disk, data, disk=disk)))
        for number in range(plan.rounds):
            recorder.say(f"at rest, round {number + 1} of {plan.rounds}")
            for subject in ready:
                _at_rest(subject, data, recorder)
            speed = _dd(noise, files[ENCRYPTED]) / _MB
            recorder.add(
                AT_REST, DD, names.THROUGHPUT, speed, "MB/s", better="higher", note=_DD_NOTE
            )
        for number in range(plan.rounds):
            recorder.say(f"under load, round {number + 1} of {plan.rounds}")
            for subject in ready:
                _under_load(subject, writer, data, plan.seconds, recorder)
                _settle(subject)


# ---- the tests ----


def _at_rest(subject: Subject, data: Path, recorder: Recorder) -> None:
    """Fill the pool, then have most of it demoted."""
    _write(subject.device, data)
    before = Reading.of(subject)
    with write_sizes(subject.disk) as sizes:
        subject.mounted.demote(DEMOTED_PAGES)
        change = Change(before, Reading.of(subject))
    pages = change.count("demoted_pages")
    if pages < DEMOTED_PAGES * 0.9:
        raise RuntimeError(f"{subject.name}: {pages} pages were demoted, not {DEMOTED_PAGES}")
    if change.disk_bytes < change.count("file_written_bytes"):
        raise RuntimeError(
            f"{subject.name}: {change.disk_bytes} bytes reached the disk, and"
            f" {change.count('file_written_bytes')} were written"
        )

    def add(metric: str, value: float, unit: str, note: str = "") -> None:
        better: Better = "higher" if unit == "MB/s" else "none" if unit == "KiB" else "lower"
        recorder.add(AT_REST, subject.name, metric, value, unit, better=better, note=note)

    add("disk MB per MB demoted", change.disk_bytes / (pages * PAGE_SIZE), "", _DISK_NOTE)
    payload = change.count("demoted_payload_bytes")
    add("disk MB per MB of payload", change.disk_bytes / payload, "")
    batch = change.count("file_written_bytes") / change.count("file_write_ops")
    add("write size, mean of system calls", batch / 1024, "KiB")
    if subject.disk is not None:
        add("write size, mean in the block layer", change.disk_bytes / change.disk_writes / 1024,
            "KiB")  # fmt: skip
    if sizes:
        add("write size, p50 in the block layer", statistics.median(sizes) / 1024, "KiB",
            f"its counters read every {LOOK_EVERY_S * 1000:g} ms")  # fmt: skip
    add(names.THROUGHPUT, change.disk_bytes / change.seconds / _MB, "MB/s", _DD_NOTE)
    add("pages moved", pages * PAGE_SIZE / change.seconds / _MB, "MB/s", "uncompressed")
    add("CPU per page", change.demoter_s / pages * 1e6, "us", _CPU_NOTE)


def _under_load(
    subject: Subject, writer: fio.Writer, data: Path, seconds: float, recorder: Recorder
) -> None:
    """Write at random over more than the pool holds, and see what demotion takes."""
    # The writer begins with the same blocks each time: without this they would all be in memory.
    contents.fill(subject.device, data)
    before = Reading.of(subject)
    measured = writer.random_writes(
        subject.device, data, block_kib=LOAD_KIB, depth=1, seconds=seconds
    )
    change = Change(before, Reading.of(subject))
    demoted, direct = change.count("demoted_pages"), change.count("write_direct_pages")
    if not demoted:
        raise RuntimeError(f"{subject.name}: nothing was demoted under load")

    def add(metric: str, value: float, unit: str, note: str = "") -> None:
        better: Better = "higher" if unit == "MiB/s" else "lower"
        recorder.add(UNDER_LOAD, subject.name, metric, value, unit, better=better, note=note)

    add(names.THROUGHPUT, measured.mib_per_s, "MiB/s", f"random {LOAD_KIB} KiB writes, QD1")
    add("CPU share of demotion", change.demoter_s / change.seconds * 100, "%",
        "of one processor: the thread that demotes and cleans")  # fmt: skip
    add("share of the server's CPU", change.demoter_s / change.server_s * 100, "%", _CPU_NOTE)
    moved = (demoted + direct) * PAGE_SIZE
    add("disk MB per MB demoted", change.disk_bytes / moved, "", "cleaning and direct writes too")
    written = change.count("write_compressed_pages", "write_raw_pages") + direct
    add("direct writes", direct / written * 100, "%", "of the pages written: the pool was full")


def _settle(subject: Subject) -> None:
    """Wait until the demotion that a load set off has ended: it would slow the next subject."""
    moved, before = 0, -1
    while moved != before:
        time.sleep(_SETTLE_S)
        moved, before = subject.mounted.status()["counters"]["file_write_ops"], moved


def _seals(data: Path, recorder: Recorder) -> None:
    """Time both seals on compressed pages, in this process."""
    blobs = _blobs(data)
    kinds: dict[str, Seal] = {
        "AES-256-GCM": AeadSeal(os.urandom(KEY_BYTES)),
        "CRC-32": ChecksumSeal(),
    }
    for name, seal in kinds.items():
        header, sealed = bytes(24), []
        started = time.perf_counter()
        for number, blob in enumerate(blobs):
            sealed.append(seal.seal(header, number, blob))
        between = time.perf_counter()
        for number, body in enumerate(sealed):
            seal.open(header, number, memoryview(body))
        ended = time.perf_counter()
        each = 1e6 / len(blobs)
        recorder.add(SEALING, name, "seal", (between - started) * each, "us")
        recorder.add(SEALING, name, "open", (ended - between) * each, "us")


def _blobs(data: Path) -> list[bytes]:
    pages = memoryview(data.read_bytes())[: _SEALED_PAGES * PAGE_SIZE]
    return [
        bytes(compress(pages[start : start + PAGE_SIZE])[0])
        for start in range(0, len(pages), PAGE_SIZE)
    ]


# ---- the subjects ----


@contextmanager
def _mounted(
    name: str, work: Path, tier: Path, data: Path, *options: str, disk: Path | None = None
) -> Iterator[Subject]:
    """Mount an instance with *tier* below it, and find the thread that demotes."""
    with ExitStack() as stack:
        mounted = stack.enter_context(
            subjects.swapfs_mount(
                work,
                size_bytes=SIZE_BYTES,
                pool_bytes=POOL_BYTES,
                file=f"{tier}:{TIER_BYTES}",
                arguments=["--file-direct-io", "on", *options],
            )
        )
        device = stack.enter_context(subjects.loop_device(mounted.swap))
        _write(device, data)
        pid = mounted.server_pid
        demoter = threads.busiest(pid, lambda: mounted.demote(DEMOTED_PAGES))
        yield Subject(name, mounted, device, pid, demoter, disk)


@contextmanager
def _written_file(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Make a file whose blocks were all written once: the first write to one costs more."""
    with subjects.plain_file(directory, size_bytes) as path:
        subjects.run(
            "dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size_bytes // MiB}",
            "oflag=direct", "conv=notrunc", "status=none",
        )  # fmt: skip
        yield path


def _noise(work: Path) -> Path:
    """Make a file of random bytes, which is what sealed blobs look like to a disk."""
    path = work / "noise"
    path.write_bytes(os.urandom(DD_BYTES))
    return path


def _write(device: Path, data: Path) -> None:
    """Write the first FILLED_BYTES of *device* in order."""
    for start in range(0, FILLED_BYTES, data.stat().st_size):
        subjects.run(
            "dd", f"if={data}", f"of={device}", "bs=1M", f"seek={start // MiB}", "oflag=direct",
            "conv=notrunc", "status=none",
        )  # fmt: skip


def _dd(noise: Path, tier: Path) -> float:
    """Write behind the part of *tier* that swapfs uses; return bytes a second."""
    started = time.monotonic()
    subjects.run(
        "dd", f"if={noise}", f"of={tier}", "bs=1M", f"seek={TIER_BYTES // MiB}", "oflag=direct",
        "conv=notrunc", "status=none",
    )  # fmt: skip
    return DD_BYTES / (time.monotonic() - started)

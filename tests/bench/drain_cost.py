"""How fast a file is drained into another while it is read, beside ``dd`` from one to the other.

    python -m tests.bench.drain_cost [MIB]

An instance gets pages in the usual mix until MIB (1024) of them lie in its file. They are then read
at random through a loop device, one at a time, first with nothing else going on and then while all
is moved to a second file. ``dd`` copies as many bytes between two such files before and after.
Needs root and room for four times MIB in TMPDIR, on a disk. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from swapfs.units import PAGE_SIZE, MiB
from swapfs.wire import control
from tests.bench import contents, subjects

POOL_BYTES: Final = 64 * MiB
IDLE_S: Final = 8.0
_LOOK_EVERY_S: Final = 0.02
_BOUND_S: Final = 300.0
_CHUNK_BYTES: Final = MiB
_MB: Final = 1e6


@dataclass(frozen=True)
class Cost:
    """Rates in MB/s of bytes on the disk, times in microseconds."""

    moved_mb: float
    pages: int
    drain_mb_s: float
    dd_mb_s: list[float]
    """Before and after."""
    share_of_dd: float
    idle_reads: int
    idle_p50_us: float
    idle_p99_us: float
    drain_reads: int
    drain_p50_us: float
    drain_p99_us: float
    p99_ratio: float


@dataclass
class Reads:
    """Reads of random pages of *device*, one at a time, until ``stop``."""

    device: Path
    times_us: list[float] = field(default_factory=list)
    failure: Exception | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Read, in a thread."""
        fd = os.open(self.device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        pages, rng = os.lseek(fd, 0, os.SEEK_END) // PAGE_SIZE, random.Random(7)
        try:
            with mmap.mmap(-1, PAGE_SIZE) as page:
                while not self.stop.is_set():
                    began_s = time.perf_counter()
                    if os.preadv(fd, [page], rng.randrange(pages) * PAGE_SIZE) != PAGE_SIZE:
                        raise OSError("a short read")
                    self.times_us.append((time.perf_counter() - began_s) * 1e6)
        except OSError as error:
            self.failure = error
        finally:
            os.close(fd)

    def __enter__(self) -> Reads:
        """Begin."""
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; a read that failed is raised."""
        self.stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def percentile(self, share: float) -> float:
        """Return the time that *share* of the reads did not exceed."""
        ordered = sorted(self.times_us)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _written_file(path: Path, size_bytes: int) -> Path:
    """Make a file whose blocks have been written once, so that none is slow for being new."""
    subjects.run("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size_bytes // MiB}",
                 "oflag=direct")  # fmt: skip
    return path


def _dd(source: Path, target: Path, count_mib: int) -> float:
    began_s = time.monotonic()
    subjects.run("dd", f"if={source}", f"of={target}", "bs=1M", f"count={count_mib}",
                 "iflag=direct", "oflag=direct", "conv=notrunc")  # fmt: skip
    return count_mib * MiB / (time.monotonic() - began_s) / _MB


def _fill(mounted: subjects.Mounted, data: bytes, target_bytes: int) -> None:
    """Write over the swap file until *target_bytes* are used in the file below."""
    fd = os.open(mounted.swap, os.O_WRONLY | os.O_CLOEXEC)
    try:
        offset, end = 0, os.fstat(fd).st_size
        while offset < end and _tier(mounted, "file")["used_bytes"] < target_bytes:
            for _ in range(32):
                start = offset % len(data)
                os.pwrite(fd, data[start : start + _CHUNK_BYTES], offset)
                offset += _CHUNK_BYTES
    finally:
        os.close(fd)


def _tier(mounted: subjects.Mounted, name: str) -> dict[str, Any]:
    (found,) = (tier for tier in mounted.status()["tiers"] if tier["name"] == name)
    return dict(found)


def _drain(mounted: subjects.Mounted) -> float:
    """Drain the first file; return the seconds that it took."""
    sock = control.socket_path(mounted.runtime_dir, mounted.name)
    began_s = time.monotonic()
    control.request(sock, "drain", 60.0, tier="file", stop=False)
    while _tier(mounted, "file")["slots"]:
        if time.monotonic() - began_s > _BOUND_S:
            raise RuntimeError(f"not drained in {_BOUND_S:g} s: {_tier(mounted, 'file')}")
        time.sleep(_LOOK_EVERY_S)
    return time.monotonic() - began_s


def measure(work: Path, mib: int) -> Cost:
    """Measure with files in *work*."""
    tier_bytes = (mib + mib // 4 + 128) * MiB
    first, second = (_written_file(work / name, tier_bytes) for name in ("first", "second"))
    dd = [_dd(first, second, mib)]
    for path in (first, second):
        os.truncate(path, 0)  # it holds no data of anybody's; the space comes back at the mount
    data = contents.mixed(work).read_bytes()
    options = ("--overcommit", 6)
    with (
        subjects.swapfs_mount(
            work, size_bytes=4 * mib * MiB, pool_bytes=POOL_BYTES,
            file=f"{first}:{tier_bytes}", arguments=options,
        ) as mounted,
        subjects.loop_device(mounted.swap) as device,
    ):  # fmt: skip
        sock = control.socket_path(mounted.runtime_dir, mounted.name)
        table = {"kind": "file", "path": str(second), "size": tier_bytes, "name": "second"}
        control.request(sock, "add", 120.0, table=table)
        control.request(sock, "set", 60.0, tier="file", table={"priority": 1})
        _fill(mounted, data, mib * MiB)
        before = _tier(mounted, "file")
        with Reads(device) as idle:
            time.sleep(IDLE_S)
        with Reads(device) as meanwhile:
            took_s = _drain(mounted)
        counters = mounted.status()["counters"]
        assert counters["drained_pages"] >= before["slots"] * 0.99
        assert not counters["failed_read_checksum"] + counters["failed_read_io"]
    dd.append(_dd(first, second, mib))
    moved, rate = before["used_bytes"] / _MB, before["used_bytes"] / took_s / _MB
    return Cost(
        moved_mb=round(moved),
        pages=before["slots"],
        drain_mb_s=round(rate, 1),
        dd_mb_s=[round(each, 1) for each in dd],
        share_of_dd=round(rate / (sum(dd) / len(dd)), 3),
        idle_reads=len(idle.times_us),
        idle_p50_us=round(idle.percentile(0.5), 1),
        idle_p99_us=round(idle.percentile(0.99), 1),
        drain_reads=len(meanwhile.times_us),
        drain_p50_us=round(meanwhile.percentile(0.5), 1),
        drain_p99_us=round(meanwhile.percentile(0.99), 1),
        p99_ratio=round(meanwhile.percentile(0.99) / idle.percentile(0.99), 2),
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.drain_cost")
    parser.add_argument("mib", type=int, nargs="?", default=1024)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swapfs-drain-") as folder:
        try:
            subjects.need_root()
            subjects.need_disk(Path(folder))
        except subjects.UnavailableError as error:
            print(f"drain_cost: {error}", file=sys.stderr)
            return 1
        print(json.dumps(asdict(measure(Path(folder), given.mib)), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

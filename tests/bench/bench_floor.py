"""How far reads are from the floor: swapfs against a C libfuse server that does nothing.

    sudo python tests/bench/bench_floor.py [--rounds N] [--seconds S]

Both are mounted, with a loop device on each (direct I/O, 4096-byte sectors), and fio reads from
them at random, one request at a time, in turns: A B A B. What is compared is the median latency
within each round, so that a change in the machine's load hits both. swapfs is filled with pages
in the mix that programs have, all in memory. Exit code 0: within the limits; 1: not; 2: cannot be
measured here. Needs root, fio, losetup, a C compiler and libfuse3's headers; never swaps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs import kernel
from swapfs.testing.pages import mixed_pages

SIZE_BYTES: Final = 256 << 20
FILL_PAGES: Final = 4096
"""Distinct pages; they are written again and again until the file is full."""
LIMITS: Final = {4: 1.5, 32: 2.2}
"""Median latency, swapfs / floor, by request size in KiB."""
NOOP_SOURCE: Final = Path(__file__).with_name("noop_server.c")
_CAP_SYS_RESOURCE: Final = 24


@dataclass(frozen=True)
class Latency:
    """What fio measured, in microseconds."""

    p50_us: float
    p99_us: float


def run(*words: object, timeout_s: float = 60.0) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def noop_server(directory: Path) -> Iterator[Path]:
    """Build the floor and serve it; give its file."""
    program, mountpoint = directory / "noop_server", directory / "noop"
    mountpoint.mkdir()
    flags = run("pkg-config", "--cflags", "--libs", "fuse3").split()
    run("cc", "-O2", NOOP_SOURCE, "-o", program, *flags)
    with subprocess.Popen([program, mountpoint, str(SIZE_BYTES)]) as server:
        try:
            deadline = time.monotonic() + 10
            while kernel.mount_at(mountpoint) is None:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the floor did not mount")
                time.sleep(0.01)
            yield mountpoint / "swap"
        finally:
            if kernel.mount_at(mountpoint) is not None:
                run("umount", mountpoint)
            server.terminate()


@contextlib.contextmanager
def swapfs_server(directory: Path) -> Iterator[Path]:
    """Serve swapfs from memory alone; give its file."""
    name, mountpoint = f"bench-{os.getpid()}", directory / "swapfs"
    mountpoint.mkdir()
    command = [sys.executable, "-m", "swapfs"]
    where = ["--runtime-dir", directory / "run"]
    unsafe = [] if _may_set_guards() else ["--unsafe"]
    pool = SIZE_BYTES + (16 << 20)
    run(*command, "mount", mountpoint, "--name", name, *where, "--size", SIZE_BYTES,
        "--pool", pool, *unsafe)  # fmt: skip
    try:
        yield mountpoint / "swap"
    finally:
        run(*command, "down", name, *where)


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """Attach a loop device as ``swapfs up`` does."""
    device = kernel.attach_loop(file).device
    try:
        yield device
    finally:
        kernel.detach_loop(device)


def fill(device: Path) -> None:
    """Write every page of *device*."""
    blob = b"".join(mixed_pages(1, FILL_PAGES))
    fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for offset in range(0, SIZE_BYTES, len(blob)):
            os.pwrite(fd, blob, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def measure(device: Path, block_kib: int, seconds: float) -> Latency:
    """Read from *device* at random, one request at a time."""
    out = run(
        "fio", "--name=read", f"--filename={device}", "--readonly", "--rw=randread",
        f"--bs={block_kib}k", "--ioengine=psync", "--direct=1", "--time_based",
        f"--runtime={seconds}", "--ramp_time=0.3", "--randrepeat=0", "--norandommap",
        "--percentile_list=50:99", "--output-format=json", timeout_s=seconds + 60,
    )  # fmt: skip
    read = json.loads(out[out.index("{") :])["jobs"][0]["read"]["clat_ns"]["percentile"]
    return Latency(read["50.000000"] / 1000, read["99.000000"] / 1000)


def compare(floor: Path, swapfs: Path, block_kib: int, rounds: int, seconds: float) -> float:
    """Measure both in turns and print each round; return the median ratio."""
    print(f"\n{block_kib} KiB random reads, queue depth 1 (us)")
    print(f"{'round':>5} {'floor p50':>10} {'p99':>7} {'swapfs p50':>11} {'p99':>7} {'ratio':>6}")
    ratios = []
    for number in range(1, rounds + 1):
        low = measure(floor, block_kib, seconds)
        ours = measure(swapfs, block_kib, seconds)
        ratios.append(ours.p50_us / low.p50_us)
        print(
            f"{number:>5} {low.p50_us:>10.1f} {low.p99_us:>7.1f} {ours.p50_us:>11.1f}"
            f" {ours.p99_us:>7.1f} {ratios[-1]:>6.2f}",
            flush=True,
        )
    median, limit = statistics.median(ratios), LIMITS[block_kib]
    verdict = "ok" if median <= limit else "TOO SLOW"
    spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
    print(f"median ratio {median:.2f} (spread {spread}), limit {limit}: {verdict}")
    return median


def _may_set_guards() -> bool:
    found = re.search(r"^CapEff:\t(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(found and int(found[1], 16) >> _CAP_SYS_RESOURCE & 1)


def _missing() -> str:
    if os.geteuid() != 0:
        return "needs root"
    tools = ("fio", "losetup", "cc", "pkg-config")
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    if problem := _missing():
        print(f"bench_floor: {problem}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swapfs-bench-")))
        floor = stack.enter_context(loop_device(stack.enter_context(noop_server(directory))))
        swapfs = stack.enter_context(loop_device(stack.enter_context(swapfs_server(directory))))
        fill(swapfs)
        load = os.getloadavg()[0]
        print(f"{os.cpu_count()} processors, load {load:.1f}, {SIZE_BYTES >> 20} MiB each")
        medians = {
            kib: compare(floor, swapfs, kib, options.rounds, options.seconds) for kib in LIMITS
        }
    return 0 if all(medians[kib] <= limit for kib, limit in LIMITS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())

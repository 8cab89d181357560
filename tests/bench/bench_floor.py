"""How far reads are from the floor: swapfs against a C libfuse server that does nothing.

    sudo python -m tests.bench.bench_floor [--rounds N] [--seconds S]

The gate among the benchmarks: what part "block" says about these two, in half a minute and with a
verdict. Both are mounted, with a loop device on each, and fio reads from them at random, one
request at a time, in turns: A B A B. What is compared is the median latency within each round, so
that a change in the machine's load hits both. swapfs is filled with pages in the mix that programs
have, all in memory. Exit code 0: within the limits; 1: not; 2: cannot be measured here. Never
swaps.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from swapfs.units import MiB
from tests.bench import contents, fio, subjects

SIZE_BYTES: Final = 128 * MiB
LIMITS: Final = {4: 1.15, 32: 1.5}
"""Median latency, swapfs / floor, by request size in KiB."""


def compare(floor: Path, swapfs: Path, block_kib: int, rounds: int, seconds: float) -> bool:
    """Measure both in turns and print each round; return whether the median is in the limit."""
    print(f"\n{block_kib} KiB random reads, queue depth 1 (us)")
    print(f"{'round':>5} {'floor p50':>10} {'p99':>7} {'swapfs p50':>11} {'p99':>7} {'ratio':>6}")
    ratios = []
    for number in range(1, rounds + 1):
        low = fio.random_reads(floor, block_kib=block_kib, depth=1, seconds=seconds)
        ours = fio.random_reads(swapfs, block_kib=block_kib, depth=1, seconds=seconds)
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
    return median <= limit


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    # A signal must not leave mounts behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swapfs-bench-")))
        try:
            subjects.need_tools("fio")
            served = stack.enter_context(subjects.noop_server(work, SIZE_BYTES))
            floor = stack.enter_context(subjects.loop_device(served.path))
            mounted = stack.enter_context(
                subjects.swapfs_mount(work, size_bytes=SIZE_BYTES, pool_bytes=SIZE_BYTES + 16 * MiB)
            )
            swapfs = stack.enter_context(subjects.loop_device(mounted.swap))
        except subjects.UnavailableError as error:
            print(f"bench_floor: {error}", file=sys.stderr)
            return 2
        contents.fill(swapfs, contents.mixed(work))
        load = os.getloadavg()[0]
        print(f"{os.cpu_count()} processors, load {load:.1f}, {SIZE_BYTES >> 20} MiB each")
        within = [compare(floor, swapfs, kib, options.rounds, options.seconds) for kib in LIMITS]
    return 0 if all(within) else 1


if __name__ == "__main__":
    sys.exit(main())

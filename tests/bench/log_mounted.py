"""What the access log costs a block device: two mounts, with it and without, in turns.

    python -m tests.bench.log_mounted [SECONDS]

Reads of 4 KiB one at a time, writes of 128 KiB with 16 under way. Each round measures both, now
this one first and now that one, and gives a ratio; what is printed, as one JSON object, is the
median of the figures and of the ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from swapfs.units import MiB
from tests.bench import contents, fio, subjects

SIZE_BYTES: Final = 128 * MiB
SAMPLE_S: Final = 1.0
SECONDS: Final = 240.0
LOGS: Final = ("off", "1M")
Measure = Callable[[Path], float]


def measure(devices: dict[str, Path], what: Measure, end_s: float) -> dict[str, Any]:
    """Return medians of *what* for each of *devices*, and of the ratio of a round."""
    found: dict[str, list[float]] = {log: [] for log in LOGS}
    while time.monotonic() < end_s or len(found[LOGS[0]]) < 2:
        order = LOGS if len(found[LOGS[0]]) % 2 == 0 else LOGS[::-1]
        for log in order:
            found[log].append(what(devices[log]))
    off, on = (found[log] for log in LOGS)
    ratios = [with_log / without for without, with_log in zip(off, on, strict=True)]
    return {
        "rounds": len(ratios),
        "off": round(statistics.median(off), 3),
        "on": round(statistics.median(on), 3),
        "ratio": round(statistics.median(ratios), 4),
        "best_ratio": round(min(on) / min(off), 4),
    }


def main() -> int:
    """Measure and print."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with tempfile.TemporaryDirectory(prefix="swapfs-bench-") as folder, ExitStack() as stack:
        work = Path(folder)
        writer, data = fio.Writer(work), contents.mixed(work)
        devices = {}
        for log in LOGS:
            mounted = stack.enter_context(
                subjects.swapfs_mount(
                    work,
                    size_bytes=SIZE_BYTES,
                    pool_bytes=SIZE_BYTES + 16 * MiB,
                    arguments=["--access-log", log],
                )
            )
            devices[log] = stack.enter_context(subjects.loop_device(mounted.swap))
            contents.fill(devices[log], data)

        def read(device: Path) -> float:
            return fio.random_reads(device, block_kib=4, depth=1, seconds=SAMPLE_S).p50_us

        def write(device: Path) -> float:
            """Return seconds a GiB, so that less is better in both."""
            done = writer.random_writes(device, data, block_kib=128, depth=16, seconds=SAMPLE_S)
            return 1024 / done.mib_per_s

        now_s = time.monotonic()
        reads = measure(devices, read, now_s + seconds / 2)
        writes = measure(devices, write, now_s + seconds)
    print(json.dumps({"read 4 KiB p50 us": reads, "write 128 KiB s/GiB": writes}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A replay comes to what a mounted instance counted while it was recorded."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from swapfs.lab.beside import SHARE, Sample, beside, far
from swapfs.lab.trace import Trace
from swapfs.testing.pages import mixed_pages
from tests.fuse.instance import Instance, Start, wait_until

pytestmark = pytest.mark.timeout(240)
PAGE = 4096
SLOTS = 14336
RUN = 32
POOL_BYTES = 8 << 20
HIGH_BYTES = POOL_BYTES * 90 // 100


class Use:
    """Writes all, then reads and writes as a kernel does: runs, at places of which few get most.

    Waits for what goes down after each write, as a replay does.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.samples: list[Sample] = []

    def run(self) -> None:
        rng = random.Random(3)
        pages = b"".join(mixed_pages(99, 256))
        fd = self._instance.open()
        try:
            for slot in range(0, SLOTS, 64):
                start = slot % 192 * PAGE
                os.pwrite(fd, pages[start : start + 64 * PAGE], slot * PAGE)
                self._rest()
            for number in range(3000):
                slot = int(rng.paretovariate(0.9) * 300) if number % 2 else rng.randrange(SLOTS)
                slot = min(slot, SLOTS - RUN)
                if number % 4 == 0:
                    start = rng.randrange(256 - RUN) * PAGE
                    os.pwrite(fd, pages[start : start + RUN * PAGE], slot * PAGE)
                    self._rest()
                else:
                    os.pread(fd, 8 * PAGE, slot * PAGE)
        finally:
            os.close(fd)

    def _rest(self) -> None:
        """Wait until no more goes down: two looks find the same, below the high watermark."""
        seen = -1

        def at_rest() -> bool:
            nonlocal seen
            found = self._instance.status()
            used, demoted = found["pool"]["used_bytes"], found["counters"]["demoted_pages"]
            still = bool(used <= HIGH_BYTES and demoted == seen)
            seen = demoted
            if still:
                self.samples.append((time.monotonic(), used, found["slots"]["file"]))
            return still

        wait_until(at_rest, "demotion to end")


@pytest.mark.parametrize(
    "options",
    [("--policy", "second-chance"), ("--policy", "lru"), ("--policy", "clock", "--prefetch", "16")],
    ids="-".join,
)
def test_a_replay_comes_to_what_was_counted(
    options: tuple[str, ...], tmp_path: Path, start: Start
) -> None:
    policy = options[1]
    instance = start("64M", "8M", "256M", "--access-log", "16M", *options)
    out = tmp_path / "trace"
    command = [*instance.command, "trace", "record", str(out), "--name", instance.name]
    recorder = subprocess.Popen([*command, "--runtime-dir", str(instance.runtime_dir)])
    wait_until(out.exists, "the recorder to begin")
    use = Use(instance)
    try:
        use.run()
    finally:
        recorder.send_signal(signal.SIGINT)
        ended = recorder.wait(30)
    assert ended == 0
    counters = instance.status()["counters"]
    trace = Trace(out)
    assert trace.meta.config["policy"] == policy
    pairs = beside(trace, policy, counters, use.samples, took_ns=0)
    along = pairs.pop("prefetched")  # how far it goes is learned, and never twice the same
    assert bool(along.played) == bool(along.live) == ("--prefetch" in options)
    assert counters["demoted_pages"] > SLOTS
    assert pairs.keys() == {"demoted", "refaults", "misses", "pool bytes", "pages below"}
    # What came up beside a read is no refault later: 7 % fewer were seen, as it went farther.
    assert far(pairs, 0.15 if along.live else SHARE) == {}, pairs

"""A replay comes to what a mounted instance counted while it was recorded."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from swapfs.lab.beside import Sample, beside, far
from swapfs.lab.trace import Trace
from swapfs.testing.pages import mixed_pages
from tests.fuse.instance import Instance, Start, wait_until

pytestmark = pytest.mark.timeout(240)
PAGE = 4096
SLOTS = 14336
RUN = 32
SHARE = 0.1
"""Two live runs of so few requests differ by 5 % themselves, in their refaults."""


def _at_rest(instance: Instance) -> Sample:
    """Wait until no more goes down; return what the instance says of itself."""
    high = 90 * (8 << 20) // 100
    wait_until(lambda: instance.status()["pool"]["used_bytes"] <= high, "demotion to end")
    found = instance.status()
    return time.monotonic(), found["pool"]["used_bytes"], found["slots"]["file"]


def _use(instance: Instance) -> list[Sample]:
    """Write all, then read and write as a kernel does: runs, at places of which few get most."""
    rng, samples = random.Random(3), []
    pages = b"".join(mixed_pages(99, 256))
    fd = instance.open()
    try:
        for slot in range(0, SLOTS, 64):
            start = slot % 192 * PAGE
            os.pwrite(fd, pages[start : start + 64 * PAGE], slot * PAGE)
            if slot % 256 == 0:
                _at_rest(instance)
        for number in range(4000):
            slot = int(rng.paretovariate(0.9) * 300) if number % 2 else rng.randrange(SLOTS)
            slot = min(slot, SLOTS - RUN)
            if number % 4 == 0:
                start = rng.randrange(256 - RUN) * PAGE
                os.pwrite(fd, pages[start : start + RUN * PAGE], slot * PAGE)
            else:
                os.pread(fd, 8 * PAGE, slot * PAGE)
            if number % 40 == 0:
                samples.append(_at_rest(instance))
    finally:
        os.close(fd)
    return samples


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
    samples = _use(instance)
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait(30) == 0
    counters = instance.status()["counters"]
    trace = Trace(out)
    assert trace.meta.config["policy"] == policy
    pairs = beside(trace, policy, counters, samples)
    along = pairs.pop("prefetched")  # how far it goes is learned, and never twice the same
    assert bool(along.played) == bool(along.live) == ("--prefetch" in options)
    assert counters["demoted_pages"] > SLOTS
    assert pairs.keys() == {"demoted", "refaults", "misses", "pool bytes", "pages below"}
    assert far(pairs, SHARE) == {}, pairs

"""Threads that read, write and discard the same slots, and judge what they read.

Every page that was read is compared with what could legally be there: a value whose write had
begun before the read ended, and that no other write had certainly replaced before it began.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import struct
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from swapfs.testing.pages import mixed_pages
from tests.fuse.instance import Instance, is_alive, punch, wait_until

PAGE = 4096
ZERO = bytes(16)
BACKGROUND = mixed_pages(11, 64)


def make_page(slot: int, version: int) -> bytes:
    """Return a page that names its slot and version, compressible or not by its version."""
    stamp = struct.pack("<QQ", slot + 1, version)
    if version % 16 == 0:
        return stamp * (PAGE // 16)
    body = BACKGROUND[(slot * 7 + version) % len(BACKGROUND)]
    return stamp + body[16 : PAGE - 16] + stamp


@dataclass
class Register:
    """What was done to one slot: (start, end, stamp) of writes, and of reads."""

    writes: list[tuple[int, int, bytes]] = field(default_factory=lambda: [(-2, -1, ZERO)])
    reads: list[tuple[int, int, bytes]] = field(default_factory=list)

    def assert_legal(self, slot: int) -> None:
        by_end = sorted(self.writes, key=lambda write: write[1])
        ends = [end for _, end, _ in by_end]
        latest_starts = list(itertools.accumulate((start for start, _, _ in by_end), max))
        of_stamp: dict[bytes, list[tuple[int, int]]] = {}
        for start, end, stamp in self.writes:
            of_stamp.setdefault(stamp, []).append((start, end))
        for start, end, stamp in self.reads:
            done = bisect_right(ends, start)
            replaced = latest_starts[done - 1] if done else -3
            assert stamp in of_stamp, f"slot {slot} held {stamp.hex()}, which nobody wrote"
            assert any(began <= end and ended >= replaced for began, ended in of_stamp[stamp]), (
                f"slot {slot} held {stamp.hex()}, which was replaced before the read"
            )


class Load:
    """Threads on the first *slots* slots of an instance, for a fixed number of requests each."""

    def __init__(self, instance: Instance, slots: int, first: int = 0) -> None:
        self.fd = instance.open()
        self.slots = slots
        self.first = first
        self.registers = [Register() for _ in range(slots)]
        self.locks = [threading.Lock() for _ in range(slots)]  # of the lists, not of the slots
        self.versions = itertools.count(1)
        self.errors: list[str] = []

    def run(self, requests: int, seed: int, kinds: str = "wwwrrrd") -> None:
        """One thread for each letter: w(rites), r(eads), d(iscards), p(artial writes)."""
        calls = {"w": self._write, "r": self._read, "d": self._discard}
        threads = [
            threading.Thread(target=self._repeat, args=(calls[kind], requests, f"{seed}:{n}"))
            for n, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert self.errors == []

    def verify(self) -> None:
        """Read everything once more, and judge all reads."""
        for slot in range(0, self.slots, 16):
            self._read_run(slot, min(16, self.slots - slot))
        os.close(self.fd)
        for slot, register in enumerate(self.registers):
            register.assert_legal(slot)

    def _repeat(self, call: Callable[[random.Random], None], requests: int, seed: str) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(requests):
                call(rng)
        except Exception as error:  # noqa: BLE001 - a thread cannot fail a test
            self.errors.append(repr(error))

    def _range(self, rng: random.Random) -> tuple[int, int]:
        count = rng.choice([1, 1, 1, 2, 8, 64])
        return rng.randrange(self.slots - count + 1), count

    def _note(self, slot: int, start: int, stamp: bytes, *, write: bool) -> None:
        end = time.monotonic_ns()
        with self.locks[slot]:
            register = self.registers[slot]
            (register.writes if write else register.reads).append((start, end, stamp))

    def _write(self, rng: random.Random) -> None:
        slot, count = self._range(rng)
        version = next(self.versions)
        pages = [make_page(slot + index, version) for index in range(count)]
        start = time.monotonic_ns()
        wrote = os.pwrite(self.fd, b"".join(pages), (self.first + slot) * PAGE)
        assert wrote == count * PAGE, f"wrote {wrote} of {count * PAGE}"
        for index, page in enumerate(pages):
            self._note(slot + index, start, page[:16], write=True)

    def _discard(self, rng: random.Random) -> None:
        slot, count = self._range(rng)
        start = time.monotonic_ns()
        punch(self.fd, (self.first + slot) * PAGE, count * PAGE)
        for index in range(count):
            self._note(slot + index, start, ZERO, write=True)

    def _read(self, rng: random.Random) -> None:
        self._read_run(*self._range(rng))

    def _read_run(self, slot: int, count: int) -> None:
        start = time.monotonic_ns()
        data = os.pread(self.fd, count * PAGE, (self.first + slot) * PAGE)
        assert len(data) == count * PAGE, f"read {len(data)} of {count * PAGE}"
        for index in range(count):
            page = data[index * PAGE : (index + 1) * PAGE]
            stamp = page[:16]
            if stamp == ZERO:
                assert page == bytes(PAGE), f"slot {slot + index} is torn"
            else:
                named, version = struct.unpack("<QQ", stamp)
                assert named == slot + index + 1, f"slot {slot + index} holds a page of {named - 1}"
                assert page == make_page(slot + index, version), f"slot {slot + index} is torn"
            self._note(slot + index, start, stamp, write=False)


def fill(instance: Instance, first: int, pages: int) -> None:
    """Write pages that the test does not look at, to bring the pool to its limits."""
    fd = instance.open()
    try:
        blob = b"".join(mixed_pages(99, 256))
        for slot in range(first, first + pages, 256):
            assert os.pwrite(fd, blob, slot * PAGE) == len(blob)
    finally:
        os.close(fd)


def outlive_servers(instance: Instance, load: Load) -> None:
    """Have a server killed and the instance upgraded, with *load* in between; verify all of it."""
    server = instance.status()["server_pid"]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not is_alive(server), "the server to die")
    load.run(60, seed=2)
    done = instance.cli("upgrade")
    assert done.returncode == 0, done.stderr
    load.run(60, seed=3)
    load.verify()
    counters = instance.counters()
    assert counters["failed_read_io"] == counters["failed_read_checksum"] == 0
    assert counters["server_starts"] == 3

"""Copies the memory of one program that this module has started itself, and of no other.

What is taken is what a kernel would swap out: private anonymous pages that are present.
"""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Final

from swapfs.units import PAGE_SIZE
from tests.bench.programs import CorpusError, Program

RUN_PAGES: Final = 32
"""Neighbouring pages that stay together when the programs' pages are mixed."""
READY_TIMEOUT_S: Final = 30.0
SETTLE_TIMEOUT_S: Final = 6.0
SETTLED_S: Final = 0.2
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")

# Bits of /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst in the kernel's source.
_PRESENT: Final = 1 << 63
_FILE_OR_SHARED: Final = 1 << 61
_EXCLUSIVE: Final = 1 << 56
"""Not set for the kernel's one page of zeros, which is never swapped out."""


def dump_program(program: Program, file: Path, pages_max: int) -> list[int]:
    """Start *program*, copy up to *pages_max* of its pages to *file*, end it.

    Returns the lengths in pages of the runs in *file*: neighbours in the program's memory.

    :raises CorpusError: it ended, or never became ready
    """
    with _started(program) as process:
        runs = anonymous_runs(process.pid)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out:
            return _copy(process.pid, _sample(runs, pages_max), out.write)


@contextmanager
def _started(program: Program) -> Iterator[subprocess.Popen[bytes]]:
    """Start *program* and stop it when it is ready; it is killed in the end."""
    # Its stdout is a pipe of one page that nobody reads: a compiler that begins to write has
    # everything in memory, and waits. At the end of stdin those that wait for it end themselves.
    process = subprocess.Popen(
        program.command,
        stdin=subprocess.PIPE if program.waits else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pipesize=PAGE_SIZE,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
    )
    try:
        assert process.stdout is not None
        said = select.poll()  # select(2) ends at descriptor 1023
        said.register(process.stdout, select.POLLIN)
        if not said.poll(READY_TIMEOUT_S * 1000):
            raise CorpusError(f"not ready within {READY_TIMEOUT_S:g} s")
        _wait_until_settled(process)
        _stop(process)
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        process.wait()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while process.poll() is None:
        if _state(process.pid)[0] == "T":
            return
        if time.monotonic() > deadline:
            raise CorpusError("does not stop")
        time.sleep(0.01)
    raise CorpusError(f"ended with status {process.returncode} before it could be read")


def _wait_until_settled(process: subprocess.Popen[bytes]) -> None:
    """Return when *process* has used no time for a while, or has had long enough."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    since, before = time.monotonic(), _state(process.pid)[1]
    while (now := time.monotonic()) < deadline and process.poll() is None:
        used = _state(process.pid)[1]
        if used > before + _TICK_S:
            since, before = now, used
        elif now - since > SETTLED_S:
            return
        time.sleep(0.02)


def _state(pid: int) -> tuple[str, float]:
    """Return the state letter and the processor time in seconds of *pid*."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) * _TICK_S


def anonymous_runs(pid: int) -> list[tuple[int, int]]:
    """Return address and number of pages of each run of private anonymous pages of *pid*."""
    found: list[tuple[int, int]] = []
    with Path(f"/proc/{pid}/pagemap").open("rb") as pagemap:
        for start, end in _writable_private(Path(f"/proc/{pid}/maps").read_text()):
            pagemap.seek(start // PAGE_SIZE * 8)
            words = pagemap.read((end - start) // PAGE_SIZE * 8)
            address = start
            taken = map(_is_anonymous, struct.unpack(f"={len(words) // 8}Q", words))
            for good, group in groupby(taken):
                pages = sum(1 for _ in group)
                if good:
                    found.append((address, pages))
                address += pages * PAGE_SIZE
    return found


def _is_anonymous(word: int) -> bool:
    return word & (_PRESENT | _FILE_OR_SHARED | _EXCLUSIVE) == _PRESENT | _EXCLUSIVE


def _writable_private(maps: str) -> list[tuple[int, int]]:
    found = re.findall(r"^(\w+)-(\w+) .w.p ", maps, re.MULTILINE)
    return [(int(start, 16), int(end, 16)) for start, end in found]


def _sample(runs: list[tuple[int, int]], pages_max: int) -> list[tuple[int, int]]:
    """Return *runs* cut short, and of these as many as *pages_max* allows, evenly spread."""
    short = [
        (address + first * PAGE_SIZE, min(RUN_PAGES, pages - first))
        for address, pages in runs
        for first in range(0, pages, RUN_PAGES)
    ]
    total = sum(pages for _, pages in short)
    if total <= pages_max:
        return short
    kept: list[tuple[int, int]] = []
    have = seen = 0
    for address, pages in short:
        seen += pages
        if have + pages <= seen * pages_max // total:  # its fair share of what was seen so far
            kept.append((address, pages))
            have += pages
    return kept


def _copy(pid: int, runs: list[tuple[int, int]], write: Callable[[bytes], object]) -> list[int]:
    """Copy the *runs* of the memory of *pid*; return their lengths in pages."""
    lengths = []
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for address, pages in runs:
            data = os.pread(fd, pages * PAGE_SIZE, address)
            if len(data) == pages * PAGE_SIZE:
                write(data)
                lengths.append(pages)
    finally:
        os.close(fd)
    return lengths

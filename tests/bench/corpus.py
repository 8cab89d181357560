"""Pages of real memory: programs are started, and what they keep in memory is copied and mixed.

The pages are kept as found: zeros, repeated words and incompressible pages in the share in which
the programs have them, and counted.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs.units import PAGE_SIZE
from swapfs.vlayer.codec import compress
from tests.bench.page_dump import RUN_PAGES, dump_program
from tests.bench.programs import CorpusError, Program, programs

CHUNK_PAGES: Final = 256
SHARE_MAX: Final = 0.3
"""Of the pages wanted, at most this share is of one program."""
HUGE_BYTES: Final = PAGE_SIZE * 3 // 4
"""A page of which lz4 leaves more than this counts as incompressible (about zram's limit)."""
_SEED: Final = 1
_ZERO_PAGE: Final = bytes(PAGE_SIZE)


@dataclass(frozen=True)
class Source:
    """How many pages are of which program."""

    program: str
    pages: int


@dataclass(frozen=True)
class Mix:
    """What kinds of pages there are; a page counts once."""

    pages: int
    zero: int
    same_filled: int
    """Filled with one 8-byte word that is not zero."""
    incompressible: int
    lz4_bytes: int
    """What lz4 makes of all pages that are not filled with one word."""

    def describe(self) -> str:
        """Return one line for a person."""
        others = self.pages - self.zero - self.same_filled
        share = [100 * n / self.pages for n in (self.zero, self.same_filled, self.incompressible)]
        mean = self.lz4_bytes / others if others else 0.0
        return (
            f"{self.pages} pages: {share[0]:.1f} % zeros, {share[1]:.1f} % another repeated word,"
            f" {share[2]:.1f} % incompressible; lz4 makes {mean:.0f} bytes of a page that is"
            " not a repeated word"
        )


@dataclass(frozen=True)
class Corpus:
    """Pages in a file, in one order that every subject gets.

    Runs of the programs' pages are dealt in turn, so that the first n pages have the mix of all.
    """

    file: Path
    sources: tuple[Source, ...]
    missing: tuple[str, ...]
    """What could not be started or read, and why, a line each."""
    mix: Mix

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return self.mix.pages

    def describe(self) -> str:
        """Return one line that says which programs the pages are from."""
        parts = [f"{source.program} {source.pages}" for source in self.sources]
        return f"pages of {len(parts)} programs: {', '.join(parts)}"

    @contextmanager
    def chunks(self, count: int) -> Iterator[Iterator[memoryview]]:
        """Give *count* pages in pieces of up to 1 MiB; from the start again when they run out."""
        with self.file.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with mapped, memoryview(mapped) as view:
            yield _cut(view, count)


def _cut(view: memoryview, count: int) -> Iterator[memoryview]:
    have, done = len(view) // PAGE_SIZE, 0
    while done < count:
        start = done % have
        step = min(CHUNK_PAGES, count - done, have - start)
        with view[start * PAGE_SIZE : (start + step) * PAGE_SIZE] as piece:
            yield piece
        done += step


def dump(directory: Path, pages_max: int, project: Path) -> Corpus:
    """Start the programs that there are, copy up to *pages_max* of their pages, end them.

    The file is in *directory*, for its owner alone; the caller removes it.

    :raises CorpusError: not one program could be read
    """
    wanted, missing = programs(directory, project)
    each_max = max(RUN_PAGES, int(pages_max * SHARE_MAX))
    runs: list[tuple[int, int, int]] = []  # file, first page in it, pages
    sources: list[Source] = []
    files = [directory / f"dump-{number}" for number in range(len(wanted))]

    def take(program: Program, file: Path) -> list[int] | str:
        try:
            return dump_program(program, file, each_max)
        except (OSError, CorpusError) as error:
            return f"{program.name}: {error}"

    try:
        with ThreadPoolExecutor(2) as pool:  # no more, so that they need little memory at once
            taken = list(pool.map(take, wanted, files))
        for number, (program, lengths) in enumerate(zip(wanted, taken, strict=True)):
            if isinstance(lengths, str):
                missing.append(lengths)
                continue
            sources.append(Source(program.name, sum(lengths)))
            first = 0
            for length in lengths:
                runs.append((number, first, length))
                first += length
        out = directory / "corpus"
        _mix(runs, files, out, pages_max)
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    if not runs:
        raise CorpusError(f"no program's memory could be read: {'; '.join(missing)}")
    return Corpus(out, tuple(sources), tuple(missing), count_kinds(out))


def _mix(runs: list[tuple[int, int, int]], files: list[Path], out: Path, pages_max: int) -> None:
    """Deal the *runs* into the file *out*, in an order that depends on their number alone."""
    random.Random(_SEED).shuffle(runs)
    left = pages_max
    fds: dict[int, int] = {}
    try:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as mixed:
            for number, first, length in runs:
                fd = fds.get(number)
                if fd is None:
                    fd = fds[number] = os.open(files[number], os.O_RDONLY)
                size = min(left, length) * PAGE_SIZE
                mixed.write(os.pread(fd, size, first * PAGE_SIZE))
                left -= size // PAGE_SIZE
    finally:
        for fd in fds.values():
            os.close(fd)


def count_kinds(file: Path) -> Mix:
    """Count the kinds of pages in *file*."""
    zero = same = huge = lz4_bytes = total = 0
    with file.open("rb") as pages:
        while page := pages.read(PAGE_SIZE):
            total += 1
            if page == page[:8] * (PAGE_SIZE // 8):
                zero += page == _ZERO_PAGE
                same += page != _ZERO_PAGE
                continue
            size = len(compress(memoryview(page))[0])
            lz4_bytes += size
            huge += size > HUGE_BYTES
    return Mix(total, zero, same, huge, lz4_bytes)

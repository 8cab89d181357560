"""Pages of real memory: programs are started, and what they keep in memory is copied.

What is taken is what a kernel would swap out: private anonymous pages that are present. They are
read from /proc/PID/mem of programs that this module has started itself, and of no others. Programs
that are not installed are left out, and named. The pages are kept as found: zeros, repeated words
and incompressible pages in the share in which the programs have them, and counted.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

from swapfs.vlayer.codec import compress

PAGE_SIZE: Final = 4096
RUN_PAGES: Final = 32
"""Neighbouring pages that stay together when the programs' pages are mixed."""
CHUNK_PAGES: Final = 256
SHARE_MAX: Final = 0.3
"""Of the pages wanted, at most this share is of one program."""
HUGE_BYTES: Final = PAGE_SIZE * 3 // 4
"""A page of which lz4 leaves more than this counts as incompressible (about zram's limit)."""
READY_TIMEOUT_S: Final = 30.0
SETTLE_TIMEOUT_S: Final = 6.0
SETTLED_S: Final = 0.2
_SEED: Final = 1
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_ZERO_PAGE: Final = bytes(PAGE_SIZE)

# Bits of /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst in the kernel's source.
_PRESENT: Final = 1 << 63
_FILE_OR_SHARED: Final = 1 << 61
_EXCLUSIVE: Final = 1 << 56
"""Not set for the kernel's one page of zeros, which is never swapped out."""


class CorpusError(Exception):
    """There is no memory to measure with."""


@dataclass(frozen=True)
class Program:
    """What to start. It writes to stdout when its memory is as it should be, then waits."""

    name: str
    command: tuple[str, ...]
    waits: bool = True
    """For the end of its stdin; the others wait because nobody reads what they write."""


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


# ---- one program ----


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
        if not select.select([process.stdout], [], [], READY_TIMEOUT_S)[0]:
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


# ---- which programs ----

_HOLD: Final = "print('ready', flush=True); sys.stdin.read()"
_PYTHON: Final = f"""
import argparse, ast, decimal, email.message, http.server, json, logging, pathlib, sys, xml.dom
files = sorted(pathlib.Path(sys.argv[1]).glob("*.py"))[:70]
trees = {{file.name: ast.parse(file.read_bytes()) for file in files}}
{_HOLD}
"""
_SQLITE: Final = f"""
import pathlib, sqlite3, sys
base = sqlite3.connect(":memory:")
base.execute("CREATE TABLE line (id INTEGER PRIMARY KEY, file TEXT, number INTEGER, text TEXT)")
for file in sorted(pathlib.Path(sys.argv[1]).glob("[a-m]*/*.py")):
    lines = file.read_text("utf-8", "replace").splitlines()
    rows = [(file.name, number, text) for number, text in enumerate(lines)]
    base.executemany("INSERT INTO line (file, number, text) VALUES (?, ?, ?)", rows)
base.execute("CREATE INDEX by_text ON line (text, file)")
found = base.execute("SELECT text, count(*) FROM line GROUP BY text").fetchall()
{_HOLD}
"""
_SHELL: Final = """
declare -A places; lines=(); number=0
while read -r line; do
    lines+=("$line"); key=${line//[^a-zA-Z0-9]/_}
    places[x$key]+=" $((number++))"
done < <(head -n 20000 "$1")
echo ready; read -r
"""
_NODE: Final = """
const fs = require("fs"), directory = process.argv[1];
const files = fs.readdirSync(directory).filter((name) => name.endsWith(".py")).sort().slice(0, 120);
const lines = [], words = new Map();
for (const name of files) {
  fs.readFileSync(directory + "/" + name, "utf8").split("\\n").forEach((text, number) => {
    lines.push({ name, number, text, words: text.split(/\\W+/) });
    for (const word of text.split(/\\W+/)) words.set(word, (words.get(word) || 0) + 1);
  });
}
console.log("ready");
process.stdin.on("end", () => process.exit(lines.length - words.size)).resume();
"""
_JAVA: Final = """
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;

public class Hold {
    public static void main(String[] arguments) throws Exception {
        Map<String, List<Integer>> index = new HashMap<>();
        List<String> lines = new ArrayList<>();
        for (String line : Files.readAllLines(Path.of(arguments[0]), StandardCharsets.ISO_8859_1)) {
            for (String word : line.split("\\\\W+"))
                index.computeIfAbsent(word, key -> new ArrayList<>()).add(lines.size());
            lines.add(line);
        }
        System.out.println("ready");
        while (System.in.read() >= 0) { }
        System.out.println(index.size() + lines.size());
    }
}
"""


def programs(directory: Path, project: Path) -> tuple[list[Program], list[str]]:
    """Return what can be started here, and a line for each program that cannot.

    :param directory: for what they need to read
    :param project: a checkout, whose C files are compiled and whose history is packed
    """
    text = sysconfig.get_path("stdlib")
    found = [
        Program("python", (sys.executable, "-c", _PYTHON, text)),
        Program("sqlite", (sys.executable, "-c", _SQLITE, text)),
    ]
    missing: list[str] = []
    makers: dict[str, Callable[[str], tuple[str, ...]]] = {
        "gcc": lambda path: _compiler(path, directory, project),
        "git": lambda path: _git(path, project),
        "bash": lambda path: (path, "-c", _SHELL, "bash", _lines(directory, Path(text))),
        "node": lambda path: (path, "-e", _NODE, text),
        "java": lambda path: _java(path, directory, Path(text)),
        "redis-server": lambda path: _redis(path, directory, Path(text)),
    }
    for name, make in makers.items():
        path = shutil.which(name)
        if path is None:
            missing.append(f"{name}: not installed")
            continue
        try:
            found.append(Program(name, make(path), waits=name not in ("gcc", "git")))
        except (CorpusError, OSError, subprocess.SubprocessError) as error:
            missing.append(f"{name}: {error}")
    return found, missing


def _run(*command: str) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CorpusError(lines[-1])
    return done.stdout


def _compiler(gcc: str, directory: Path, project: Path) -> tuple[str, ...]:
    """The compiler proper, without the driver: it must be our own child."""
    source, ready = project / "swapfs" / "session" / "loop.c", directory / "corpus.i"
    include, ours = sysconfig.get_path("include"), project / "swapfs" / "core"
    fuse = _run("pkg-config", "--cflags", "fuse3").split()
    _run(gcc, "-E", f"-I{include}", f"-I{ours}", *fuse, str(source), "-o", str(ready))
    compiler = _run(gcc, "-print-prog-name=cc1").strip()
    return compiler, "-quiet", "-fpreprocessed", "-O2", "-g", str(ready), "-o", "-"


def _git(git: str, project: Path) -> tuple[str, ...]:
    """The greater part of git gc: it writes to stdout and leaves the repository as it is."""
    base = (git, "-c", "safe.directory=*", "-C", str(project))
    _run(*base, "rev-parse", "--git-dir")
    options = ("--all", "--stdout", "--quiet", "--no-reuse-delta", "--window=100", "--threads=1")
    return *base, "pack-objects", *options


def _java(java: str, directory: Path, text: Path) -> tuple[str, ...]:
    source = directory / "Hold.java"
    source.write_text(_JAVA)
    return (
        java,
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-Xmx128m",
        str(source),
        _lines(directory, text),
    )


def _lines(directory: Path, text: Path) -> str:
    """Return a file with the lines of a part of the text."""
    out = directory / "corpus.txt"
    with out.open("wb") as joined:
        for file in sorted(text.glob("*.py"))[:120]:
            joined.write(file.read_bytes())
    return str(out)


def _redis(redis: str, directory: Path, text: Path) -> tuple[str, ...]:
    """A server that loads its log of commands, one key a line of text."""
    home = directory / "redis"
    home.mkdir(exist_ok=True)
    with (home / "appendonly.aof").open("wb") as log:
        for file in sorted(text.glob("*.py")):
            for number, line in enumerate(file.read_bytes().splitlines()):
                words = (b"SET", b"%s:%d" % (file.name.encode(), number), line)
                parts = (b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
                log.write(b"*3\r\n" + b"".join(parts))
    listen = ("--port", "0", "--unixsocket", "socket")  # it must listen somewhere
    return redis, *listen, "--save", "", "--appendonly", "yes", "--dir", str(home)

"""The pages that the benchmarks take from running programs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from swapfs.units import PAGE_SIZE
from tests.bench.corpus import count_kinds, dump
from tests.bench.page_dump import RUN_PAGES, dump_program
from tests.bench.programs import CorpusError, Program, programs

PROJECT = Path(__file__).parents[3]

HOLD = "print('ready', flush=True); sys.stdin.read()"
MARKED = f"""
import mmap, os, sys
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
memory = mmap.mmap(-1, 64 * 4096, flags=private)
for number in range(8):
    memory[number * 4096 : (number + 1) * 4096] = b"private%d" % number * 512
only_read = memory[32 * 4096]
shared = mmap.mmap(-1, 4096)
shared[:] = b"shared.." * 512
with open(sys.argv[1], "w+b") as file:
    file.write(b"in-file." * 512)
    file.flush()
    of_file = mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE)
    copied = mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE)
touched = of_file[0]
copied[0:8] = b"copied.."
{HOLD}
"""


def python(source: str, *arguments: object) -> Program:
    return Program("python", (sys.executable, "-c", source, *map(str, arguments)))


def pages_of(file: Path) -> list[bytes]:
    data = file.read_bytes()
    return [data[start : start + PAGE_SIZE] for start in range(0, len(data), PAGE_SIZE)]


def test_takes_private_anonymous_pages_that_are_present_and_no_others(tmp_path: Path) -> None:
    out = tmp_path / "dump"
    lengths = dump_program(python(MARKED, tmp_path / "file"), out, 1 << 20)
    pages = pages_of(out)
    assert sum(lengths) == len(pages) > 100, "an interpreter has more than that"
    for number in range(8):
        assert pages.count(b"private%d" % number * 512) == 1
    assert b"shared.." * 512 not in pages
    assert b"in-file." * 512 not in pages
    assert b"copied.." + b"in-file." * 511 in pages, "what was written to is anonymous"
    # 56 pages of the mapping were never written, and one of them was read.
    assert pages.count(bytes(PAGE_SIZE)) < 56


def test_neighbours_stay_together(tmp_path: Path) -> None:
    out = tmp_path / "dump"
    lengths = dump_program(python(MARKED, tmp_path / "file"), out, 1 << 20)
    assert max(lengths) == RUN_PAGES
    pages = pages_of(out)
    first = pages.index(b"private0" * 512)
    assert pages[first + 1 : first + 8] == [b"private%d" % number * 512 for number in range(1, 8)]


def test_a_sample_is_spread_over_the_whole_program(tmp_path: Path) -> None:
    source = f"""
import mmap, sys
memory = mmap.mmap(-1, 4096 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for number in range(4096):
    memory[number * 4096 : (number + 1) * 4096] = b"own %04d" % number * 512
{HOLD}
"""
    out = tmp_path / "dump"
    lengths = dump_program(python(source), out, 1024)
    assert 900 < sum(lengths) <= 1024
    # The interpreter's own pages are in the dump too, and one may begin with anything.
    own = [page[:8] for page in pages_of(out) if page == page[:8] * 512 and page[:4] == b"own "]
    numbers = [int(text[4:]) for text in own]
    assert numbers == sorted(numbers)
    assert numbers[0] < 512
    assert numbers[-1] > 3584


@pytest.mark.parametrize("source", ["", "print('ready', flush=True)", "import sys; sys.exit(3)"])
def test_a_program_that_ends_is_an_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="ended with status"):
        dump_program(python(source), tmp_path / "dump", 64)


def test_no_program_is_left_running(tmp_path: Path) -> None:
    source = f"import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); {HOLD}"
    dump_program(python(source, tmp_path / "pid"), tmp_path / "dump", 64)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_kinds_are_counted_once(tmp_path: Path) -> None:
    file = tmp_path / "pages"
    noise = os.urandom(PAGE_SIZE)
    text = (b"some text that can be compressed, " * 200)[:PAGE_SIZE]
    file.write_bytes(bytes(2 * PAGE_SIZE) + b"8 bytes." * 512 + noise + text)
    mix = count_kinds(file)
    assert (mix.pages, mix.zero, mix.same_filled, mix.incompressible) == (5, 2, 1, 1)
    assert PAGE_SIZE < mix.lz4_bytes < PAGE_SIZE + 200
    assert "40.0 % zeros" in mix.describe()


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found, missing = programs(tmp_path, PROJECT)
    assert [program.name for program in found] == ["python", "sqlite"]
    assert "gcc: not installed" in missing
    assert "java: not installed" in missing


def test_a_dump_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    corpus = dump(tmp_path, 2000, PROJECT)
    assert [source.program for source in corpus.sources] == ["python", "sqlite"]
    assert corpus.pages == sum(source.pages for source in corpus.sources) <= 2000
    assert all(source.pages > 300 for source in corpus.sources)
    assert corpus.file.stat().st_mode & 0o777 == 0o600
    assert corpus.file.stat().st_size == corpus.pages * PAGE_SIZE
    assert not list(tmp_path.glob("dump-*"))
    pages = pages_of(corpus.file)
    with corpus.chunks(corpus.pages + 10) as chunks:
        taken = [bytes(chunk) for chunk in chunks]
    assert b"".join(taken) == b"".join([*pages, *pages[:10]])
    assert max(map(len, taken)) == 1 << 20

"""The programs whose memory the corpus is made of: how each is started, where it is installed.

Each fills its memory with the work it is known for, over text that every machine has: Python's own
library. Those that are not installed are left out, and named.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final


class CorpusError(Exception):
    """There is no memory to measure with."""


@dataclass(frozen=True)
class Program:
    """What to start. It writes to stdout when its memory is as it should be, then waits."""

    name: str
    command: tuple[str, ...]
    waits: bool = True
    """For the end of its stdin; the others wait because nobody reads what they write."""


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

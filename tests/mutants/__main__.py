"""Makes each mistake of ``mutations`` in a copy of the tree, and asks whether the tests notice.

Exit 1: a mutant survived, or its text is not in its file any more, or the tests fail without any
mistake. ``-k WORD`` picks mutants by name; ``--jobs`` runs as many at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.mutants.build import build_extensions
from tests.mutants.mutations import Mutation, read_mutations

_ROOT: Final = Path(__file__).parents[2]
_COPIED: Final = ("swapfs", "tests", "deploy", "docs", "pyproject.toml", "Makefile")
_TIMEOUT_S: Final = 300.0
_TEST_TIMEOUT_S: Final = 60
"""For one test: a lost wake-up shows as one that hangs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant: ``killed``, ``survived``, or ``stale``: its text is gone."""

    mutation: Mutation
    verdict: str
    by: str
    seconds: float


class Tree:
    """A copy of the tree, where mistakes are made one after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in _COPIED:
            source = _ROOT / name
            if source.is_dir():
                hidden = shutil.ignore_patterns("__pycache__", ".*", "full", "quick")
                shutil.copytree(source, path / name, ignore=hidden)
            elif source.exists():
                shutil.copy(source, path / name)

    def test(self, tests: tuple[str, ...]) -> tuple[int, str]:
        """Run *tests* up to the first failure; return pytest's exit code and what failed."""
        environment = dict(os.environ, PYTHONPATH=str(self.path), SWAPFS_TEST_PROFILE="mutants")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=no"]
        command += ["-p", "no:cacheprovider", "-o", f"timeout={_TEST_TIMEOUT_S}", *tests]
        try:
            run = subprocess.run(
                command,
                cwd=self.path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 1, "took too long"
        lines = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if not lines:
            return run.returncode, "Timeout" if "Timeout" in run.stderr + run.stdout else "died"
        return run.returncode, lines[0].split(" - ")[0].split(" ", 1)[1]

    def try_out(self, mutation: Mutation) -> Outcome:
        """Make the mistake, run the tests that should notice, and undo it."""
        started = time.monotonic()
        file = self.path / mutation.file
        original = file.read_text() if file.exists() else ""
        text = original
        for old, new in mutation.edits:
            if text.count(old) != 1:
                found = f"{text.count(old)} times in {mutation.file}: {old.strip()[:40]!r}"
                return Outcome(mutation, "stale", found, 0.0)
            text = text.replace(old, new)
        try:
            verdict, by = self._run(mutation, file, text)
        finally:
            self._write(file, original)
        return Outcome(mutation, verdict, by, time.monotonic() - started)

    def _run(self, mutation: Mutation, file: Path, text: str) -> tuple[str, str]:
        self._write(file, text)
        if file.suffix in (".c", ".h"):
            try:
                build_extensions(self.path, only=file)
            except subprocess.CalledProcessError as error:
                return "stale", f"does not compile: {error.stderr.splitlines()[0]}"
        code, by = self.test(mutation.tests)
        return ("survived", "") if code == 0 else ("killed", by)

    def _write(self, file: Path, text: str) -> None:
        if not text:
            return
        file.write_text(text)
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()  # same length, same second: Python would take it for up to date


def _without_mistakes(mutations: list[Mutation], jobs: int, folder: Path) -> list[str]:
    """Return what fails in an unharmed tree, of the test files that *mutations* name."""
    whole = folder / "whole"
    whole.mkdir()
    tree = Tree(whole)
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    print(f"without any mistake: {len(tests)} test files", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        ends = pool.map(lambda test: (test, tree.test((test,))), tests)
        return [f"{test} ({failed})" for test, (code, failed) in ends if code]


def _judge(mutations: list[Mutation], jobs: int, folder: Path) -> list[Outcome]:
    """Try *mutations* out in as many trees as *jobs*; print each as it ends."""
    trees: SimpleQueue[Tree] = SimpleQueue()
    for number in range(jobs):
        path = folder / str(number)
        path.mkdir()
        trees.put(Tree(path))

    def judge(mutation: Mutation) -> Outcome:
        tree = trees.get()
        try:
            outcome = tree.try_out(mutation)
            if mutation.file.endswith((".c", ".h")):
                build_extensions(tree.path, only=tree.path / mutation.file)
        finally:
            trees.put(tree)
        print(f"{outcome.verdict:9}{outcome.seconds:6.1f} s  {mutation.name}", flush=True)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(judge, mutations))


def _report(outcomes: list[Outcome]) -> int:
    width = max(len(outcome.mutation.name) for outcome in outcomes)
    print(f"\n{'mutant':{width}}  {'verdict':8}  by")
    for outcome in outcomes:
        print(f"{outcome.mutation.name:{width}}  {outcome.verdict:8}  {outcome.by}")
    verdicts = [outcome.verdict for outcome in outcomes]
    counts = {verdict: verdicts.count(verdict) for verdict in ("killed", "survived", "stale")}
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(counts["killed"] < len(outcomes))


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("-k", default="", metavar="WORD", help="only those with WORD in their name")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [m for m in read_mutations() if arguments.k in f"{m.name} {m.file}"]
    if not chosen:
        print("no such mutant", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the copies go too
    with tempfile.TemporaryDirectory(prefix="swapfs-mutants-") as folder:
        if failed := _without_mistakes(chosen, arguments.jobs, Path(folder)):
            print(f"without any mistake, this fails: {', '.join(failed)}", file=sys.stderr)
            return 1
        return _report(_judge(chosen, arguments.jobs, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())

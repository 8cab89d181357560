"""Measure swapfs beside what users would pick instead, and write down what was found.

    python -m tests.bench [--full] [--only PART,...] [--rounds N] [--out DIRECTORY]
        [--native] [--check]

Exit code 0: measured (whether targets are met or not); 1: a part failed; 2: wrong arguments;
3: --check, and a target of these parts is missed or was not measured; 130: interrupted, nothing
is written.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final

from tests.bench import host, names, plots, report
from tests.bench.record import Failure, Plan, Recorder, Results, save
from tests.bench.targets import judge

PROJECT: Final = Path(__file__).resolve().parents[2]
QUICK_ROUNDS: Final = 3
FULL_ROUNDS: Final = 5
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Somebody asked to stop. Not an Exception, so that no part takes it for a failure."""


def _stop(number: int, _frame: FrameType | None) -> None:
    # Once: a second signal would end the clean-up that the first one has started.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(signal.Signals(number).name)


def measure(parts: Sequence[str], plan: Plan, results: Results) -> None:
    """Run *parts* one after the other; what a part raises is kept as its failure."""
    about = results.made.setdefault("parts", {})
    for part in parts:
        recorder = Recorder(results, part)
        load, start = host.load(), time.monotonic()
        recorder.say("begins")
        try:
            _run(part, plan, recorder)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the others go on
            traceback.print_exc()
            results.failed.append(Failure(part, _one_line(error)))
        about[part] = {"seconds": round(time.monotonic() - start, 1), "load": load}
        recorder.say(f"done in {about[part]['seconds']:.0f} s")


def _run(part: str, plan: Plan, recorder: Recorder) -> None:
    module = importlib.import_module(f"tests.bench.{part}")
    with tempfile.TemporaryDirectory(prefix=f"swapfs-bench-{part}-", dir=plan.work) as directory:
        module.run(replace(plan, work=Path(directory)), recorder)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def write(results: Results, out: Path, name: str) -> list[Path]:
    """Write pictures, JSON and page of *results*; return the files."""
    pictures = _draw(results, out / name)
    shown: dict[str, list[tuple[str, str]]] = {}
    for picture in pictures:
        path = picture.file.relative_to(out).as_posix()
        shown.setdefault(picture.part, []).append((picture.title, path))
    save(results, out / f"{name}.json")
    (out / f"{name}.md").write_text(report.page(results, shown))
    written = [out / f"{name}.json", out / f"{name}.md", *(picture.file for picture in pictures)]
    _give_back(out, [out, out / name, *written])
    return written


def _draw(results: Results, directory: Path) -> list[plots.Picture]:
    if reason := plots.why_not():
        Recorder(results, "plots").skip("every picture", reason)
        return []
    try:
        return plots.draw(results, directory)
    except Exception as error:  # noqa: BLE001 - figures are kept even if they cannot be drawn
        traceback.print_exc()
        results.failed.append(Failure("plots", _one_line(error)))
        return []


def _give_back(out: Path, written: Sequence[Path]) -> None:
    """Give what root wrote to whoever owns the directory above it."""
    owner = out.parent.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        for path in filter(Path.exists, written):
            os.chown(path, owner.st_uid, owner.st_gid)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=_SUMMARY)
    parser.add_argument("--full", action="store_true", help="more rounds, longer measurements")
    parser.add_argument("--only", help=f"comma-separated parts: {', '.join(names.PARTS)}")
    parser.add_argument("--rounds", type=int, help=f"{QUICK_ROUNDS}, or {FULL_ROUNDS} with --full")
    parser.add_argument("--out", type=Path, default=PROJECT / "bench-results", help="directory")
    parser.add_argument(
        "--native", action="store_true", help="part swap: swap on this machine, not in a VM"
    )
    parser.add_argument("--check", action="store_true", help="exit 3 if a target is not met")
    options = parser.parse_args(words)
    chosen = options.only.split(",") if options.only else list(names.PARTS)
    if unknown := [part for part in chosen if part not in names.PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(names.PARTS)}")
    if options.rounds is None:
        options.rounds = FULL_ROUNDS if options.full else QUICK_ROUNDS
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    options.parts = [part for part in names.PARTS if part in chosen]
    options.name = "full" if options.full else "quick"
    if options.native:
        options.name += "-native"
    if len(options.parts) < len(names.PARTS):
        # Apart, so that a look at one part does not replace the results of all.
        options.name = "-".join([options.name, *options.parts])
    return options


_SUMMARY: Final = "Measure swapfs beside what users would pick instead."


@contextlib.contextmanager
def _plan(options: argparse.Namespace) -> Iterator[Plan]:
    with tempfile.TemporaryDirectory(
        prefix="swapfs-bench-", ignore_cleanup_errors=True
    ) as directory:
        seconds = 3.0 if options.full else 1.0
        work = Path(directory)
        yield Plan(options.full, options.rounds, seconds, work, PROJECT, options.native)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, write, show."""
    options = arguments(words)
    for number in SIGNALS:
        signal.signal(number, _stop)
    start = time.monotonic()
    results = Results(host=host.describe())
    results.made = {
        "kind": options.name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rounds": options.rounds,
        **host.commit(PROJECT),
        "load_before": host.load(),
    }
    try:
        with _plan(options) as plan:
            measure(options.parts, plan, results)
    except Interrupted as stop:
        print(f"bench: stopped by {stop}, nothing is written", file=sys.stderr)
        return 130
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # nothing is left to clean up
    results.made |= {
        "load_after": host.load(),
        "seconds": round(time.monotonic() - start, 1),
    }
    written = write(results, options.out, options.name)
    print(report.summary(results))
    print(f"{results.made['seconds']:.0f} s in all. Written:", *written, sep="\n  ")
    if results.failed:
        return 1
    verdicts = [each for each in judge(results) if each.target.figure.part in options.parts]
    return 3 if options.check and not all(verdict.met for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())

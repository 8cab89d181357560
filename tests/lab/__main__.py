"""An experiment in one command: VMs, workloads, policies, set-ups; one page.

    python -m tests.lab [EXPERIMENT.toml] [--full] [--only WORKLOAD,...] [--policies NAME,...]
        [--kernel K] [--out DIRECTORY] [--again]

Writes NAME.json, NAME.md, pictures and the traces. Exit code 0: all of it was recorded and is
right; 1: something was not, and the page says what; 2: wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from deploy.vm.host.proc import VmError
from swapfs.policy import BUILT_IN
from tests.bench import host
from tests.lab import experiment as experiments
from tests.lab import findings, page, running
from tests.lab.experiment import Experiment, ExperimentError

PROJECT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).parent


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=_SUMMARY)
    parser.add_argument("experiment", nargs="?", type=Path, help="quick.toml of the lab")
    parser.add_argument("--full", action="store_true", help="full.toml: every policy and set-up")
    parser.add_argument("--only", help="comma-separated workloads of it")
    parser.add_argument("--policies", help="comma-separated policies to run live")
    parser.add_argument("--kernel", default="", help="of the VM")
    parser.add_argument("--out", type=Path, default=PROJECT / "lab-results", help="directory")
    parser.add_argument("--again", action="store_true", help="the page only, of what is in --out")
    options = parser.parse_args(words)
    if options.experiment and options.full:
        parser.error("give an experiment or --full")
    path = options.experiment or HERE / ("full.toml" if options.full else "quick.toml")
    policies = options.policies.split(",") if options.policies else []
    if unknown := [name for name in policies if name not in BUILT_IN]:
        parser.error(f"no policy {unknown[0]!r}: {', '.join(BUILT_IN)}")
    try:
        read = experiments.read(path)
        only = options.only.split(",") if options.only else []
        options.wanted = read.only(only, policies, options.kernel)
    except ExperimentError as error:
        parser.error(str(error))
    options.name = path.stem
    return options


_SUMMARY: Final = "Record what a kernel swaps under each policy, and replay it under all."


def _say(line: str) -> None:
    print(f"lab: {line}", file=sys.stderr, flush=True)


def _find(wanted: Experiment, out: Path) -> dict[str, Any]:
    """Run *wanted*, keep its traces in *out*, and return what was found.

    :raises RunningError: the VM did not get to the end
    :raises VmError: there is none to be had here
    """
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="swapfs-lab-", ignore_cleanup_errors=True) as folder:
        found = running.run(wanted, Path(folder))
        for each in found.recorded:
            shutil.copy(each.trace, out / each.trace.name)
        gathered = findings.gather(wanted, found, _say)
    missing = {run.name for run in wanted.runs()} - {each.run.name for each in found.recorded}
    gathered["problems"] += [f"{name} was not recorded" for name in sorted(missing)]
    made = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - began_s),
        **host.commit(PROJECT),
    }
    return {"made": made, "host": host.describe(), **gathered}


def write(found: dict[str, Any], out: Path, name: str) -> Path:
    """Write the page of *found*, with pictures where they can be drawn; return its path."""
    pictures: dict[str, str] = {}
    try:
        pictures = page.draw(found, out)
    except ImportError:
        _say("no pictures: matplotlib is not installed")
    path = out / f"{name}.md"
    path.write_text(page.page(found, pictures))
    return path


def main(words: Sequence[str] | None = None) -> int:
    """Run, write, say where."""
    options = _arguments(words)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    data = out / f"{options.name}.json"
    try:
        if options.again:
            found = json.loads(data.read_text())
        else:
            found = _find(options.wanted, out)
            data.write_text(json.dumps(found, indent=1) + "\n")
    except (running.RunningError, VmError, OSError, ValueError) as error:
        _say(str(error))
        return 1
    path = write(found, out, options.name)
    for problem in found["problems"]:
        _say(problem)
    _say(f"{found['made']['seconds']} s in all; {path}")
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
